"""Every form of the pages: bad input is told beside its field, in the user's language, nothing typed is lost,
nothing is changed; what is sent twice is done once; what changed meanwhile is told.

Invariant: a form, or a field of one, that is not looked at here fails here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import pytest
from campaign import CAMPAIGN
from fastapi.routing import iter_route_contexts
from forms_of_pages import Form, PageOfForms

from api import demo
from api.app import create_app
from api.pages.page import PageRoute
from api.settings import Settings

ADMIN_TOKEN = "cvs_acceptance-tests-admin"
LONG, PLAIN = "x" * 501, "algo que alguém digitou"
Filling = dict[str, str | list[str]]


@dataclass(frozen=True)
class Case:
    """A form, what is right in it, and what is not, field by field; some fields cannot be wrong."""

    page: str
    action: str
    right: Filling = field(default_factory=dict)
    wrong: dict[str, str | list[str]] = field(default_factory=dict)
    never_wrong: frozenset[str] = frozenset()


MOMENTS = [f"{period}_{end}" for period in ("opened", "last_activity", "finalized") for end in ("from", "until")]
CONDITION = "/filter?0.join=and&0.0.field={}&0.0.operator={}"
BUILDER = frozenset({"do", "0.join", "0.0.field", "0.0.operator"})


def condition(name: str, operator: str, wrong: str | list[str], part: str = "value", **right: str) -> Case:
    return Case(
        CONDITION.format(name, operator),
        "/filter",
        {"do": "apply", "0.0.value": "1", **{f"0.0.{each}": value for each, value in right.items()}},
        {f"0.0.{part}": wrong},
        BUILDER | {f"0.0.{each}" for each in ("value", "key")},
    )


def bulk(action: str, **wrong: str) -> Case:
    named = {name.replace("_", "-"): value for name, value in wrong.items()}
    right = {"new-label": "nova", "target": f"sector:{demo.SECTOR}", "priority": "high"}
    fits = {name: right.get(name, PLAIN) for name in named}
    return Case(f"/bulk/new?action={action}&id={{conversation}}", "/bulk", {**fits, "how": "do"}, dict(named))


CASES: dict[str, Case] = {
    "signing in": Case("/sign-in?next=/contacts", "/sign-in", {}, {"token": "nobody's"}),
    "a view": Case("/views/new?q=ana&status=pending", "/views", {"shared": "yes"}, {"name": "x" * 201}),
    "a view without a name": Case("/views/new?status=pending", "/views", {"shared": "yes"}, {"name": " "}),
    "finalizing": Case(
        "/conversations/{conversation}/finalize",
        "/conversations/{conversation}/finalize",
        {"outcome": "resolvida", "comment": PLAIN},
        {"outcome": LONG, "comment": "x" * 65_537},
    ),
    "transferring": Case(
        "/conversations/{conversation}/transfer",
        "/conversations/{conversation}/transfer",
        {"reason": PLAIN, "target": f"{demo.SECTOR}/"},
        {"target": "nobody/", "reason": LONG},
    ),
    "transferring to nobody": Case(
        "/conversations/{conversation}/transfer",
        "/conversations/{conversation}/transfer",
        {"reason": PLAIN},
        {"target": []},
        frozenset({"reason"}),
    ),
    "transferring to who is not there": Case(
        "/conversations/{conversation}/transfer",
        "/conversations/{conversation}/transfer",
        {"reason": PLAIN},
        {"target": f"{uuid4()}/"},
        frozenset({"reason"}),
    ),
    "finding a target": Case(
        "/conversations/{conversation}/transfer", "/conversations/{conversation}/transfer", {}, {"q": LONG}
    ),
    "a label": Case(
        "/conversations/{conversation}", "/conversations/{conversation}/labels", {}, {"label": "Não serve!"}
    ),
    "the priority": Case(
        "/conversations/{conversation}", "/conversations/{conversation}/priority", {}, {"priority": "enormous"}
    ),
    "a contact": Case(
        "/contacts/{contact}/edit",
        "/contacts/{contact}/edit",
        {"name": "Ana", "phones": "+55 11 98765-4321", "emails": "ana@example.com", "attribute-limite": "7,5"},
        {
            "name": "x" * 201,
            "phones": "+55 11 98765-4321\nnão tenho",
            "emails": "ana@example.com\nana at example",
            "attribute-limite": "sete",
            "attribute-desde": "2026-13-45",
            "attribute-site": "javascript:alert(1)",
            "attribute-texto": LONG,
            "attribute-plano": "chumbo",
        },
        frozenset({"attribute-ativo"}),  # a choice of three
    ),
    "an attribute with a bad name": Case(
        "/contacts/{contact}/edit", "/contacts/{contact}/edit", {"value": [PLAIN, ""]}, {"key": ["Não Serve!", ""]}
    ),
    "an attribute that is too long": Case(
        "/contacts/{contact}/edit", "/contacts/{contact}/edit", {"key": ["nota", ""]}, {"value": [LONG, ""]}
    ),
    "an attribute without a name": Case(
        "/contacts/{contact}/edit",
        "/contacts/{contact}/edit",
        {"value": [PLAIN, ""]},
        {"key": ["", ""]},
    ),
    "an erasure": Case("/contacts/{contact}/erase", "/contacts/{contact}/erase", {}, {"sure": []}),
    "many finalized": bulk("finalize", outcome=LONG, comment="x" * 65_537),
    "many transferred": bulk("transfer", target="", reason=LONG),
    "many put back": bulk("mark-pending", reason=LONG),
    "many reopened": bulk("reopen", reason=LONG),
    "many labelled": bulk("add-label", new_label="Não serve!"),
    "many without a label": bulk("remove-label", new_label=""),
    "many more urgent": bulk("change-priority", priority="enormous"),
    "the bar": Case(
        "/?sector={sector}",
        "/",
        {"q": "ana", "label": "troca"},
        {"q": LONG, "label": "Não, serve!", "bot": "Não", "channel": ["Não!"], "sector": ["x"], "agent": ["x"]}
        | dict.fromkeys(MOMENTS, "ontem")
        | {"as_of": "2999-01-01 00:00"},
    ),
    "finding contacts": Case("/contacts", "/contacts", {}, {"q": LONG}),
    "the history": Case(
        "/history",
        "/history",
        {"actor": "bia"},
        {
            **dict.fromkeys(("event", "surface", "actor_kind", "status", "sector", "agent"), "Não!"),
            **dict.fromkeys(("status_before", "sector_before", "agent_before"), "Não!"),
            **dict.fromkeys(("occurred_from", "occurred_until", "recorded_from", "recorded_until"), "ontem"),
            **dict.fromkeys(("contact", "stream", "request_id", "correlation_id"), "x"),
            **dict.fromkeys(("actor", "bot", "bot_before", "causation_id"), LONG),
        },
    ),
    "a condition on a moment": condition("opened", "before", "ontem"),
    "a condition on two moments": condition("opened", "between", ["ontem", "2026-01-01T00:00"]),
    "a condition on days": condition("opened", "in_last_days", "1,5"),
    "a condition on a number": condition("transfers", "greater", "muitas"),
    "a condition on minutes": condition("waiting_seconds", "greater", "muitos"),
    "a condition on texts": condition("label", "in", " "),
    "a condition on an id": condition("contact", "is", "ana"),
    "a condition on an attribute": condition("attributes.", "is", "Não Serve!", "key", value="1"),
}
NO_FIELDS = {
    "/language",
    "/sign-out",
    "/views/{id}/remove",
    "/bulk/{id}/cancel",
    "/conversations/{id:uuid}/assume",
    "/conversations/{id:uuid}/reopen",
    "/conversations/{id:uuid}/labels/{label}/remove",
}
"""Forms of a button alone."""


class Visitor:
    """Somebody signed in, without scripts."""

    def __init__(self, url: str, language: str, token: str = ADMIN_TOKEN) -> None:
        self._client = httpx.Client(base_url=url, timeout=30)
        cookie = self._client.post("/sign-in", data={"token": token}).headers["set-cookie"].partition(";")[0]
        self._headers = {"Cookie": f"{cookie}; __Host-conversas-language={language}"}
        self._seen: dict[str, str] = {}

    def form(self, address: str, action: str, name: str) -> Form:
        """The form as it was when first looked at: what is refused changes nothing of it."""
        if address not in self._seen:
            self._seen[address] = self.get(address).text
        return form_in(self._seen[address], action, name)[1]

    def get(self, address: str) -> httpx.Response:
        return self._client.get(address, headers=self._headers)

    def send(self, form: Form, filled: list[tuple[str, str]]) -> httpx.Response:
        named: dict[str, Any] = {}
        for name, value in filled:
            named.setdefault(name, []).append(value)
        if form.method == "get":
            answer = self._client.get(form.action, headers=self._headers, params=named)
            return self.get(answer.headers["location"]) if answer.is_redirect else answer
        return self._client.post(form.action, headers=self._headers, data=named)

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def visitors(service: Any) -> Any:
    found = {language: Visitor(service.url, language) for language in ("pt", "en")}
    yield found
    for each in found.values():
        each.close()


@pytest.fixture(scope="module")
def places(api: Any) -> dict[str, str]:
    """A conversation and a contact to try forms on, with an attribute of each type."""
    types = {"limite": "number", "desde": "date", "site": "link", "texto": "text", "ativo": "checkbox"}
    for key, type_ in types.items():
        api.ok("PUT", f"/v1/attributes/contact/{key}", {"label": key.title(), "type": type_})
    last = api.ok(
        "PUT", "/v1/attributes/contact/plano", {"label": "Plano", "type": "list", "options": ["ouro", "prata"]}
    )
    contact = api.ok("POST", "/v1/contacts", {"name": "Ana dos Formulários"})
    opened = {"channel": "whatsapp", "contact_id": contact["id"], "sector_id": str(demo.SECTOR)}
    conversation = api.ok("POST", "/v1/conversations", opened)
    api.read(f"/v1/contacts/{contact['id']}", at_least=conversation["position"])
    api.read(f"/v1/conversations/{conversation['id']}", at_least=conversation["position"])
    assert last["position"] < conversation["position"]
    return {"conversation": conversation["id"], "contact": contact["id"], "sector": str(demo.SECTOR)}


def said_beside(page: PageOfForms, form: Form, name: str) -> str:
    """What is said beside a field; nothing where no mistake is."""
    wrong = [each for each in form.named(name) if each.is_invalid or each.kind in {"radio", "checkbox"}]
    ids = [id_ for each in wrong for id_ in each.described_by if "mistake" in id_ or id_.startswith("m-")]
    return " ".join(dict.fromkeys(page.texts.get(id_, "").strip() for id_ in ids)).strip()


def lost(form: Form, filled: list[tuple[str, str]], bad: str) -> list[str]:
    """What was typed and is not there any more."""
    found = []
    for name in dict(filled):
        kinds = {each.kind for each in form.named(name)}
        if kinds <= {"password"} or name in {"form-token", "once", "version", "do", "how"}:
            continue
        if name == bad and kinds & {"select", "radio", "checkbox"}:
            continue  # nobody can have chosen what is not there to choose
        wanted = [value.strip().replace("\r\n", "\n") for other, value in filled if other == name and value.strip()]
        there = [value.strip() for value in form.values(name)]
        if any(each not in there for each in wanted):
            found.append(name)
    return found


def form_in(text: str, action: str, name: str) -> tuple[PageOfForms, Form]:
    page = PageOfForms(text)
    fits = (each for each in page.forms if each.action == action and name in each.names())
    return page, next(fits)


def at(places: dict[str, str], address: str) -> str:
    for name, value in places.items():
        address = address.replace(f"{{{name}}}", value)
    return address


FIELDS = [(case, name) for case, each in CASES.items() for name in each.wrong]


@pytest.mark.parametrize(("name", "bad"), FIELDS)
def test_bad_input_is_told_beside_its_field_and_nothing_typed_is_lost(
    visitors: dict[str, Visitor], places: dict[str, str], api: Any, name: str, bad: str
) -> None:
    case, said = CASES[name], {}
    action = at(places, case.action)
    for language, visitor in visitors.items():
        form = visitor.form(at(places, case.page), action, bad)
        filled = form.filled({**case.right, bad: case.wrong[bad]})
        before = api.log_head()
        answer = visitor.send(form, filled)
        assert answer.status_code == 422, answer.text
        assert api.log_head() == before
        page, shown = form_in(answer.text, action, bad)
        said[language] = said_beside(page, shown, bad)
        assert said[language], (page.alerts, page.texts)
        assert lost(shown, filled, bad) == []
    assert said["pt"] != said["en"]


NASTY = [
    *(
        "\0",
        "\uffff",
        "\u202e",
        "%s",
        "%(what)s",
        "{{7*7}}",
        '"><script>',
        "3\r\nX-Evil: 1",
        "//[",
        "\\",
        "x" * 16_000,
        "😀" * 300,
    ),
    *(
        "-1",
        "0",
        "9" * 18,
        "9" * 400,
        "1e400",
        "NaN",
        "\U0001d7d9",
        "\u0661",
        "[" * 5_000,
        '{"not":' * 2_000,
        '{"and":[]}',
        "*",
        'W/"3"',
    ),
    *("2026-13-45", "0001-01-01T00:00", "0001-01-01T00:00+23:59", "9999-12-31T23:59:59.999999-23:59"),
    *(
        str(uuid4()),
        "sector:x",
        f"{demo.SECTOR}/x",
        "a/b/c",
        "..",
        "yes",
        "add:0",
        "remove:0.0",
        "between",
        "attributes.",
        "İ",
        "ﬁ",
    ),
    '{"field":"opened","operator":"before","value":"9999-12-31T23:59:59-23:59"}',
]
"""What nobody types, and an attacker sends."""


@pytest.mark.parametrize("name", CASES)
def test_whatever_a_field_holds_hidden_ones_too_is_no_bug(
    visitors: dict[str, Visitor], places: dict[str, str], name: str
) -> None:
    case, visitor = CASES[name], visitors["en"]
    form = visitor.form(at(places, case.page), at(places, case.action), next(iter(case.wrong)))
    fields = sorted({each.name for each in form.controls} - {"form-token"} | {"status", "filter", "at_least"})
    tried = [(field, value) for field in fields for value in NASTY]
    for field_, value in tried if CAMPAIGN else random.sample(tried, 3):
        answer = visitor.send(form, form.filled({**case.right, field_: value}))
        assert answer.status_code < 500, (field_, value)
        assert "x-evil" not in answer.headers
        assert answer.headers.get("location", "/").startswith("/")


@pytest.mark.parametrize(
    ("typed", "is_taken"),
    [
        *((text, True) for text in ("9007199254740991", "-9007199254740991", "7,5", "1e+300")),
        *((text, False) for text in ("9007199254740992", "-9007199254740992", "9" * 25, "9" * 400, "1e400", "nan")),
    ],
)
def test_a_number_is_taken_as_far_as_the_api_takes_it(
    visitors: dict[str, Visitor], places: dict[str, str], api: Any, typed: str, *, is_taken: bool
) -> None:
    assert places  # the attribute is defined
    visitor, name = visitors["en"], "attribute-limite"
    contact = api.ok("POST", "/v1/contacts", {"name": "Ana dos Números"})
    api.read(f"/v1/contacts/{contact['id']}", at_least=contact["position"])
    action = f"/contacts/{contact['id']}/edit"
    form = visitor.form(action, action, name)
    answer = visitor.send(form, form.filled({name: typed}))
    assert answer.status_code == (303 if is_taken else 422), answer.text
    if is_taken:
        at_least = int(answer.headers["location"].rpartition("at_least=")[2])
        kept = api.read(f"/v1/contacts/{contact['id']}", at_least=at_least)["attributes"]["limite"]
        assert kept == (float if set(typed) & set(",e") else int)(typed.replace(",", "."))
    else:
        page, shown = form_in(answer.text, action, name)
        assert said_beside(page, shown, name) == "This must be a number."
        assert shown.values(name) == [typed]


def test_every_field_is_tried(visitors: dict[str, Visitor], places: dict[str, str]) -> None:
    tried: dict[str, set[str]] = {}
    there: dict[str, set[str]] = {}
    for case in CASES.values():
        form = visitors["pt"].form(at(places, case.page), at(places, case.action), next(iter(case.wrong)))
        tried.setdefault(case.action, set()).update(case.wrong, case.never_wrong)
        # What other tests of this service have defined is none of these; all of a type are asked for alike.
        defined_here = {name for name in form.names() if not name.startswith("attribute-k")}
        there.setdefault(case.action, set()).update(defined_here)
    left = {action: there[action] - tried[action] - {"how", "shared"} for action in there}
    assert {action: names for action, names in left.items() if names} == {}


def test_every_form_is_tried() -> None:
    routes = [each.original_route for each in iter_route_contexts(create_app(Settings(), "postgresql://x").routes)]
    posts = {route.path for route in routes if isinstance(route, PageRoute) and "POST" in route.methods}
    tried = {re.sub(r"\{(conversation|contact)\}", "{id:uuid}", case.action) for case in CASES.values()}
    assert posts - tried == NO_FIELDS


# Once, and only on what was seen


def versions(api: Any, path: str) -> int:
    return int(api.read(path)["version"])


DONE: dict[str, tuple[str, str, Filling]] = {
    "finalizing": ("/conversations/{id}/finalize", "/conversations/{id}/finalize", {"outcome": "resolvida"}),
    "transferring": (
        "/conversations/{id}/transfer",
        "/conversations/{id}/transfer",
        {"target": f"{demo.OTHER_SECTOR}/", "reason": "troca"},
    ),
    "a label": ("/conversations/{id}", "/conversations/{id}/labels", {"label": "urgente"}),
    "the priority": ("/conversations/{id}", "/conversations/{id}/priority", {"priority": "urgent"}),
    "assuming": ("/conversations/{id}", "/conversations/{id}/assume", {}),
}
MEANWHILE = {"pt": "Nota adicionada (Administradora", "en": "Note added (Administradora"}


def opened(visitor: Visitor, conversation: Any, name: str) -> Form:
    page, action, _ = DONE[name]
    found = PageOfForms(visitor.get(page.format(id=conversation.id)).text)
    return next(
        each for each in found.forms if each.action == action.format(id=conversation.id) and each.method == "post"
    )


def history_after(answer: httpx.Response, conversation: Any) -> list[dict[str, Any]]:
    """The conversation's history, with what a form did that was answered so."""
    conversation.answer = {"position": int(answer.headers["location"].partition("at_least=")[2])}
    found: list[dict[str, Any]] = conversation.history()
    return found


@pytest.mark.parametrize("name", DONE)
def test_a_form_that_is_sent_twice_is_done_once(
    visitors: dict[str, Visitor], open_conversation: Callable[..., Any], name: str
) -> None:
    conversation = open_conversation()
    conversation.view()
    form = opened(visitors["pt"], conversation, name)
    first, again = (visitors["pt"].send(form, form.filled(DONE[name][2])) for _ in range(2))
    assert (first.status_code, again.status_code) == (303, 303), again.text
    assert first.headers["location"] == again.headers["location"]
    assert len(history_after(first, conversation)) == 2


@pytest.mark.parametrize("language", ["pt", "en"])
@pytest.mark.parametrize("name", DONE)
def test_what_happened_meanwhile_is_told_and_nothing_is_done_or_lost(
    visitors: dict[str, Visitor], open_conversation: Callable[..., Any], api: Any, name: str, language: str
) -> None:
    conversation = open_conversation()
    conversation.view()
    form = opened(visitors[language], conversation, name)
    conversation.do("notes", {"text": "Espere!"})
    filled, before = form.filled(DONE[name][2]), api.log_head()
    answer = visitors[language].send(form, filled)
    assert answer.status_code == 422
    assert api.log_head() == before
    page = PageOfForms(answer.text)
    assert MEANWHILE[language] in " ".join(page.alerts)
    shown = next(each for each in page.forms if (each.action, each.method) == (form.action, "post"))
    assert lost(shown, filled, "") == []
    assert visitors[language].send(shown, shown.filled(DONE[name][2])).status_code == 303


def test_a_view_is_saved_once_and_not_removed_once_it_is_another(visitors: dict[str, Visitor], api: Any) -> None:
    visitor, name = visitors["en"], f"Vista {uuid4().hex}"
    form = PageOfForms(visitor.get("/views/new?status=pending").text).form("/views")
    for _ in range(2):
        assert visitor.send(form, form.filled({"name": name})).status_code == 303
    [view] = [each for each in api.read("/v1/views")["items"] if each["name"] == name]
    changed = {key: view[key] for key in ("filter", "sort", "order", "columns", "shared")} | {"name": f"{name}!"}
    done = api.ok("PUT", f"/v1/views/{view['id']}", changed)
    api.read("/v1/views", at_least=done["position"])
    said = {"pt": f"Visão salva: “{name}!” (Administradora", "en": f"View saved: “{name}!” (Administradora"}
    for language, each in visitors.items():
        form = PageOfForms(each.get("/views").text).form(f"/views/{view['id']}/remove")
        stale = [(key, str(view["version"]) if key == "version" else value) for key, value in form.sent()]
        answer = each.send(form, stale)
        assert answer.status_code == 412
        assert said[language] in " ".join(PageOfForms(answer.text).alerts)


def test_a_bulk_action_is_begun_once_by_each_form(visitors: dict[str, Visitor], places: dict[str, str]) -> None:
    address = f"/bulk/new?action=add-label&id={places['conversation']}"
    page = PageOfForms(visitors["pt"].get(address).text)
    form = page.form("/bulk")
    filled = form.filled({"new-label": "a", "how": "try"})
    first, again = (visitors["pt"].send(form, filled).headers["location"] for _ in range(2))
    other = visitors["pt"].send(form, form.filled({"new-label": "b", "how": "try"})).headers["location"]
    assert first == again != other


# What exists is suggested


def test_labels_and_bots_in_use_are_suggested_to_who_may_see_them(
    api: Any, bia: Any, stranger: Any, open_conversation: Callable[..., Any]
) -> None:
    name = f"x{uuid4().hex[:12]}"
    hidden = open_conversation(sector_id=str(demo.OTHER_SECTOR))
    hidden.do("labels", {"label": f"{name}.oculta"})
    hidden.do("handoff-to-bot", {"bot": f"{name}.bot"})
    shown = open_conversation()
    shown.do("labels", {"label": name})
    shown.view()
    path = "/v1/conversations/suggestions"
    everything, theirs = api.read(path), bia.read(path)
    assert {name, f"{name}.oculta"} <= set(everything["labels"])
    assert f"{name}.bot" in everything["bots"]
    assert name in theirs["labels"]
    assert f"{name}.oculta" not in theirs["labels"]
    assert f"{name}.bot" not in theirs["bots"]
    assert stranger.read(path) == {"labels": [], "bots": []}


@pytest.mark.parametrize(
    "page",
    [
        "/",
        "/conversations/{conversation}",
        "/bulk/new?action=add-label&id={conversation}",
        "/filter?0.join=and&0.0.field=label&0.0.operator=is",
    ],
)
def test_where_a_label_is_typed_there_are_suggestions(
    visitors: dict[str, Visitor], places: dict[str, str], page: str
) -> None:
    text = visitors["pt"].get(at(places, page)).text
    assert re.search(r'<input[^>]* list="labels-in-use"', text)
    assert '<datalist id="labels-in-use" data-suggest="labels">' in text


# Canaries


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace("aria-describedby", "data-nothing"),
        lambda text: text.replace("aria-invalid", "data-nothing"),
        lambda text: re.sub(r'<p class="mistake"[^>]*>[^<]*', "<p>", text),
        lambda text: text.replace(PLAIN, ""),
    ],
    ids=["not beside", "not marked", "not said", "lost"],
)
def test_canary_a_page_that_does_not_tell_or_loses_something_is_found(
    visitors: dict[str, Visitor], places: dict[str, str], spoil: Callable[[str], str]
) -> None:
    case = CASES["finalizing"]
    action = at(places, case.action)
    _, form = form_in(visitors["pt"].get(at(places, case.page)).text, action, "outcome")
    filled = form.filled({**case.right, "outcome": LONG})
    text = visitors["pt"].send(form, filled).text

    def is_good(text: str) -> bool:
        page, shown = form_in(text, action, "outcome")
        return bool(said_beside(page, shown, "outcome")) and lost(shown, filled, "outcome") == []

    assert is_good(text)
    assert not is_good(spoil(text))


def test_canary_a_form_that_forgets_what_it_showed_overwrites_and_repeats(
    visitors: dict[str, Visitor], open_conversation: Callable[..., Any]
) -> None:
    conversation = open_conversation()
    conversation.view()
    form = opened(visitors["pt"], conversation, "finalizing")
    conversation.do("notes", {"text": "Espere!"})
    filled = [(name, value) for name, value in form.filled(DONE["finalizing"][2]) if name != "version"]
    assert len(history_after(visitors["pt"].send(form, filled), conversation)) == 3
