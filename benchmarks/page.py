"""What the pages cost in a real Chromium, each beside the API's queries behind it, asked in the same rounds.

The listing of the real log, then of 1,000,000 conversations: until its first content is painted, until a filter that is
chosen in the bar shows its rows, until another client's change shows up, and what each page weighs as it is sent; then
a conversation of 10,000 messages.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median, quantiles
from threading import Thread
from time import perf_counter
from typing import Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

import httpx
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from adapters.command_handler import CommandHandler
from adapters.projector import Projector
from api.settings import PREFIX
from benchmarks.exporting import issue_token
from benchmarks.http_commands import TOKEN, server
from benchmarks.many_conversations import fill, grow
from benchmarks.measuring import Bench, table
from benchmarks.workload import contact, keys, note, opening, write

SIZES = (20_769, 1_000_000)
QUICK_SIZES = (20_000,)
LONG = 10_000
QUICK_LONG = 1_000
FIRST_GOAL = 3.0
CHANGE_GOAL_MS, QUERY_GOAL_MS = 300.0, 30.0
WEIGHT_GOAL_KB = 200.0
LISTING = "/v1/conversations"
LIGHT = "/views"
"""A page of next to nothing: what a style sheet, a module and the frame cost in Chromium."""
BARE = b"<!doctype html><title>x</title><p>hello"
"""A page without style sheet, script or query, told as fast as can be: what Chromium itself takes to show anything."""
# Two frames later what the script has put in place is painted.
CHOOSE = """([name, value]) => new Promise((done) => {
  const results = document.getElementById("results");
  const begun = performance.now();
  const watcher = new MutationObserver(() => {
    watcher.disconnect();
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - begun)));
  });
  watcher.observe(results, { attributes: true, attributeFilter: ["data-address"] });
  const field = document.querySelector(`#bar [name="${name}"]` + (name === "q" ? "" : `[value="${value}"]`));
  if (name === "q") {
    field.value = value;
    document.getElementById("bar").requestSubmit();
  } else field.click();
})"""
SEEN = """(id) => new Promise((done) => {
  const watcher = new MutationObserver(() => document.getElementById(id) && (watcher.disconnect(), done()));
  watcher.observe(document.getElementById("results"), { childList: true, subtree: true });
})"""
PAINTED = """() => new Promise((done) => {
  const told = (entries) => entries.find((each) => each.name === "first-contentful-paint");
  const found = told(performance.getEntriesByType("paint"));
  if (found) return done(found.startTime);
  new PerformanceObserver((list) => told(list.getEntries()) && done(told(list.getEntries()).startTime))
    .observe({ type: "paint", buffered: true });
})"""


def run(bench: Bench) -> None:
    """Fill, measure and print, size by size."""
    conninfo, workspace_id, present = fill(bench)
    issue_token(conninfo, workspace_id)
    for size in QUICK_SIZES if bench.is_quick else SIZES:
        if size > present:
            grow(conninfo, workspace_id, size)
        with _served(conninfo) as url, _bare() as bare, _chromium() as browser, closing(_Client(url)) as client:
            rounds = 10 if bench.is_quick else 60
            _measure(browser, client, bare, max(size, present), rounds)
            _weigh(browser, client, max(size, present))
    _long_conversation(conninfo, bench, workspace_id)


def _said(is_met: bool) -> str:  # noqa: FBT001
    return "met" if is_met else "MISSED"


@contextmanager
def _served(conninfo: str) -> Iterator[str]:
    """API and projector, each a process of its own."""
    environment = {**os.environ, f"{PREFIX}DATABASE_URL": conninfo, f"{PREFIX}LOG_LEVEL": "error"}
    with server(conninfo) as (port, _):
        projecting = subprocess.Popen([sys.executable, "-m", "api", "project"], env=environment)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            projecting.terminate()
            projecting.wait()


class _Bare(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Tell it."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(BARE)

    def log_message(self, *_: Any) -> None:
        """Say nothing of it."""


@contextmanager
def _bare() -> Iterator[str]:
    """Where `BARE` is."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Bare) as serving:
        thread = Thread(target=serving.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{serving.server_port}"
        finally:
            serving.shutdown()
            thread.join()


@contextmanager
def _chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class _Client:
    """Somebody with a token, and with a session of it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=60)
        answer = self._http.post("/sign-in", data={"token": TOKEN})
        self.cookie = answer.headers["set-cookie"].partition(";")[0]
        self._http.cookies.clear()

    def query(self, path: str, **parameters: Any) -> Any:
        """What the API answers to a token."""
        return self.command("GET", path, params=parameters).json()

    def command(self, method: str, path: str, **options: Any) -> httpx.Response:
        """What the API answers to a token."""
        answer = self._http.request(method, path, headers={"Authorization": f"Bearer {TOKEN}"}, **options)
        answer.raise_for_status()
        return answer

    def page(self, path: str, **headers: str) -> httpx.Response:
        """A page, as a browser asks for it."""
        answer = self._http.get(path, headers={"Cookie": self.cookie, "Accept-Encoding": "gzip", **headers})
        assert answer.status_code == 200, (path, answer.status_code)
        return answer

    def close(self) -> None:
        """Give the connection back."""
        self._http.close()


@dataclass(slots=True)
class _Times:
    """Milliseconds, by what took them."""

    found: dict[str, list[float]]

    def add(self, name: str, milliseconds: float) -> None:
        """One more."""
        self.found.setdefault(name, []).append(milliseconds)

    def clock(self, name: str, what: Any, *arguments: Any, **named: Any) -> Any:
        """Call ``what`` and note how long it took."""
        began = perf_counter()
        result = what(*arguments, **named)
        self.add(name, (perf_counter() - began) * 1e3)
        return result


def _context(browser: Browser, client: _Client) -> BrowserContext:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, locale="pt-BR")
    answer = context.request.post(f"{client.url}/sign-in", form={"token": TOKEN}, max_redirects=0)
    assert answer.status == 303
    return context


def _measure(browser: Browser, client: _Client, bare: str, size: int, rounds: int) -> None:
    times = _Times({})
    with (
        closing(_context(browser, client)) as context,
        closing(browser.new_context(extra_http_headers={"Authorization": f"Bearer {TOKEN}"})) as of_api,
    ):
        page, bare_answer = context.new_page(), of_api.new_page()
        for _ in range(rounds):
            _rest(page)
            times.clock("rows", client.query, LISTING)
            times.clock("counts", client.query, f"{LISTING}/counts")
            times.clock("all", _all_queries, client)
            times.clock("page", client.page, "/")
            _open(page, bare, times, "bare: ")
            _open(bare_answer, client.url + LISTING, times, "API: ")
            _rest(bare_answer)
            _open(page, client.url + LIGHT, times, "light: ")
            _open(page, client.url, times)
        _first_content(times, size)
        _change_filters(page, client, times, size, rounds)
        _follow(page, client, times, size, rounds)


def _all_queries(client: _Client) -> None:
    """What a client has to ask to show what the page shows."""
    for path in (LISTING, f"{LISTING}/counts", "/v1/sectors", "/v1/agents", "/v1/views"):
        client.query(path)


def _rest(page: Page) -> None:
    """Leave what was open, so that it asks for nothing while the API is measured."""
    page.goto("about:blank")
    page.wait_for_timeout(100)


def _open(page: Page, address: str, times: _Times, of: str = "") -> None:
    """Come from another page of ours, and note when the answer began and when its first content was painted."""
    page.goto(address, wait_until="commit")
    times.add(f"{of}painted", page.evaluate(PAINTED))
    times.add(f"{of}begun", page.evaluate("performance.getEntriesByType('navigation')[0].responseStart"))
    page.wait_for_load_state()
    page.wait_for_timeout(100)


def _first_content(times: _Times, size: int) -> None:
    query = median(times.found["rows"])
    names = {
        "rows": f"GET {LISTING}",
        "counts": f"GET {LISTING}/counts",
        "all": "these, and sectors, agents, views, one after the other",
        "page": "GET / (whole answer)",
        "bare: painted": "in Chromium, a bare page: first content painted",
        "API: painted": f"in Chromium, GET {LISTING} itself: first content painted",
        "light: begun": f"in Chromium, {LIGHT}: answer begun",
        "light: painted": f"in Chromium, {LIGHT}: first content painted",
        "begun": "in Chromium, /: answer begun",
        "painted": "in Chromium, /: first content painted",
    }
    table(
        f"First content of the listing of {size:,}: ms",
        ("", "p50", "p95", "x API query"),
        [(said, *_spread(times.found[name]), median(times.found[name]) / query) for name, said in names.items()],
    )
    # Like against like: answers as a client gets them, and both of them in the same Chromium.
    for name, of in (("page", "rows"), ("painted", "API: painted")):
        ratio = median(times.found[name]) / median(times.found[of])
        print(f"- goal: {names[name]} < {FIRST_GOAL:g} x {names[of]}: {ratio:.2f}, {_said(ratio < FIRST_GOAL)}")
    bare, ours = (median(times.found[name]) for name in ("bare: painted", "painted"))
    print(f"- Chromium itself, on a bare page: {bare / query:.2f} x API query; / takes {ours - bare:.0f} ms more")


def _spread(found: Sequence[float]) -> tuple[float, float]:
    return median(found), quantiles(found, n=20)[18]


def _choices(client: _Client) -> list[tuple[str, str]]:
    """Filters of the bar that find something: fields and values."""
    rows = client.query(LISTING, limit=500)["items"]
    found = {("channel", row["channel"]) for row in rows}
    found |= {("sector", row["sector_id"]) for row in rows if row["sector_id"]}
    found |= {("agent", row["agent_id"]) for row in rows if row["agent_id"]}
    names = [row["contact_name"].split()[-1] for row in rows if row["contact_name"]]
    found |= {("q", name) for name in names} | {("q", row["protocol"]) for row in rows}
    by_field: dict[str, list[tuple[str, str]]] = {}
    for name, value in sorted(found):
        by_field.setdefault(name, []).append((name, value))
    # One after the other of each field, so that none of them decides alone.
    most = max(map(len, by_field.values()))
    return [values[number % len(values)] for number in range(most) for values in by_field.values()]


def _change_filters(page: Page, client: _Client, times: _Times, size: int, rounds: int) -> None:
    choices = _choices(client)
    for name, value in (choices[number % len(choices)] for number in range(rounds * 2)):
        _rest(page)
        times.clock("bare query", client.query, LISTING, **{name: value})
        times.clock("bare page", client.page, f"/?{urlencode({name: value})}")
        page.goto(client.url)
        page.wait_for_function("document.documentElement.classList.contains('scripted')")
        page.wait_for_timeout(200)
        if not page.locator(f'#bar [name="{name}"]' + ("" if name == "q" else f'[value="{value}"]')).count():
            continue  # a channel that has no name of its own is not offered
        took = page.evaluate(CHOOSE, [name, value])
        times.add("shown", took)
        times.add(f"shown: {name}", took)
    names = {
        "bare query": "API query under that filter",
        "bare page": "that page (whole answer)",
        "shown": "chosen in the bar → rows painted",
    } | {name: f"of these {name.partition(' ')[2]}" for name in times.found if name.startswith("shown: ")}
    table(
        f"A filter is changed, {size:,} conversations: ms",
        ("", "times", "p50", "p95"),
        [(said, len(times.found[name]), *_spread(times.found[name])) for name, said in names.items()],
    )
    query, shown = (_spread(times.found[name])[1] for name in ("bare query", "shown"))
    print(f"- goal: new rows within {CHANGE_GOAL_MS:g} ms at p95: {shown:.0f}, {_said(shown < CHANGE_GOAL_MS)}")
    print(
        f"- goal: in the same run the bare query takes less than {QUERY_GOAL_MS:g} ms at p95: {query:.1f}"
        f" (median {median(times.found['bare query']):.1f}), {_said(query < QUERY_GOAL_MS)}",
        flush=True,
    )


def _follow(page: Page, client: _Client, times: _Times, size: int, rounds: int) -> None:
    """How long after another client's command was answered the new row stands in an open listing."""
    page.goto(client.url, wait_until="load")
    contact_id = client.command("POST", "/v1/contacts", json={"name": "Ana Bragança"}).json()["id"]
    body = {"channel": "whatsapp", "contact_id": contact_id, "subject": "ao vivo"}
    for number in range(rounds):
        id_ = str(uuid4())
        page.evaluate(f"(id) => {{ window.seen = ({SEEN})(id); }}", f"c-{id_}")
        began = perf_counter()
        client.command("POST", "/v1/conversations", json={"id": id_, "protocol": f"bench-{number}-{id_[:8]}", **body})
        answered = perf_counter()
        page.evaluate("() => window.seen")
        times.add("sent to seen", (perf_counter() - began) * 1e3)
        times.add("answered to seen", (perf_counter() - answered) * 1e3)
        page.wait_for_timeout(350 + 37 * (number % 10))
    rows = [(name, *_spread(times.found[name])) for name in ("sent to seen", "answered to seen")]
    table(
        f"Another client opens a conversation, {size:,} are there: ms until it is in the listing",
        ("", "p50", "p95"),
        rows,
    )
    worst = max(times.found["sent to seen"])
    print(f"- goal: within a second: at most {worst:.0f} ms, {_said(worst < 1_000)}", flush=True)


def _weigh(browser: Browser, client: _Client, size: int) -> None:
    """Kilobytes as sent, of each page."""
    [first] = client.query(LISTING, limit=1)["items"]
    conversation, person = f"/conversations/{first['id']}", f"/contacts/{first['contact_id']}"
    paths = {
        "listing": "/",
        "conditions": "/filter",
        "views": "/views",
        "bulk action": f"/bulk/new?action=finalize&id={first['id']}",
        "conversation": conversation,
        "transfer": f"{conversation}/transfer",
        "finalize": f"{conversation}/finalize",
        "contacts": "/contacts",
        "contact": person,
        "edit a contact": f"{person}/edit",
        "history": "/history",
        "overview": "/overview?days=90",
    }
    weights = {name: _weight(browser, client, path) for name, path in paths.items()}
    table(
        f"Page weight, {size:,} conversations: kB as sent, with style sheets and scripts, charts left out",
        ("", "first visit", "the page unpacked", "later visits"),
        [(name, *weight) for name, weight in weights.items()],
    )
    heaviest = max(weight[0] for weight in weights.values())
    print(f"- goal: every page < {WEIGHT_GOAL_KB:g} kB: heaviest {heaviest:.0f}, {_said(heaviest < WEIGHT_GOAL_KB)}")


def _weight(browser: Browser, client: _Client, path: str) -> tuple[float, float, float]:
    with closing(_context(browser, client)) as context:
        page = context.new_page()
        session = context.new_cdp_session(page)
        sizes: dict[str, float] = {}
        charts: set[str] = set()
        session.send("Network.enable")
        session.on("Network.responseReceived", lambda told: _note_chart(told, charts))
        session.on("Network.loadingFinished", lambda told: _note_size(told, sizes))
        visits = []
        for _ in range(2):
            sizes.clear()
            answer = page.goto(client.url + path, wait_until="load")
            assert answer is not None
            assert answer.ok, (path, answer.status)
            page.wait_for_timeout(300)
            visits.append(sum(size for id_, size in sizes.items() if id_ not in charts) / 1e3)
    return visits[0], len(client.page(path).content) / 1e3, visits[1]


def _note_chart(told: dict[str, Any], charts: set[str]) -> None:
    if told["response"]["url"].partition("?")[0].endswith(".svg") and "/static/" not in told["response"]["url"]:
        charts.add(told["requestId"])


def _note_size(told: dict[str, Any], sizes: dict[str, float]) -> None:
    sizes[told["requestId"]] = told["encodedDataLength"]


def _long_conversation(conninfo: str, bench: Bench, workspace_id: UUID) -> None:
    """A conversation of very many messages against one of few."""
    many, rounds = QUICK_LONG if bench.is_quick else LONG, 10 if bench.is_quick else 40
    with (
        closing(CommandHandler(conninfo, keys(conninfo))) as handler,
        closing(Projector(conninfo, keys=keys(conninfo))) as projector,
    ):
        person = contact(handler, workspace_id)
        found = {}
        for count in (10, many):
            begun = opening(person, workspace_id)
            write(handler, [begun, *(note(begun.stream.id, workspace_id) for _ in range(count))])
            found[count] = begun.stream.id
        projector.catch_up()
    times = _Times({})
    with (
        _served(conninfo) as url,
        _chromium() as browser,
        closing(_Client(url)) as client,
        closing(_context(browser, client)) as context,
    ):
        page = context.new_page()
        page.goto(url)
        for _ in range(rounds):
            for count, id_ in found.items():
                path = f"{LISTING}/{id_}/messages"
                times.clock(f"{count}: query", client.query, path, order="desc", limit=100)
                times.clock(f"{count}: page", client.page, f"/conversations/{id_}")
                page.goto(url + LIGHT)
                _open(page, f"{url}/conversations/{id_}", times, f"{count}: ")
    names = {
        "query": "the API's newest 100 messages",
        "page": "GET (whole answer)",
        "painted": "in Chromium: first content painted",
    }
    rows = [
        (
            said,
            *(value for count in found for value in _spread(times.found[f"{count}: {name}"])),
            median(times.found[f"{many}: {name}"]) / median(times.found[f"10: {name}"]),
        )
        for name, said in names.items()
    ]
    table(
        f"A conversation of {many:,} messages, and one of 10: ms",
        ("", "10: p50", "p95", f"{many:,}: p50", "p95", "ratio"),
        rows,
    )
