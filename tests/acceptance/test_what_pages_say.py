"""What pages say of what is so now and what was, of who may do what, and of counts; with what a browser does not need.

Invariant: each is said in both languages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from forms_of_pages import PageOfForms

ADMIN_TOKEN = "cvs_acceptance-tests-admin"
Look = Callable[..., httpx.Response]
SAID = {
    "finalized": {"pt": "Já está finalizada.", "en": "It is finalized already."},
    "none then": {"pt": "Naquele momento não havia conversas.", "en": "There was no conversation then."},
    "none yet": {"pt": "Ainda não há conversas aqui.", "en": "There is no conversation here yet."},
    "episodes": {"pt": "Atendimentos", "en": "Episodes"},
    "episodes now": {"pt": "Atendimentos, como estão agora", "en": "Episodes, as they are now"},
}


@pytest.fixture(scope="module")
def look(service: Any) -> Look:
    """A page as whoever holds a token sees it, in a language; or what it answers to a form's ``data``."""
    cookies: dict[str, str] = {}

    def ask(path: str, language: str, token: str = ADMIN_TOKEN, data: Any = None) -> httpx.Response:
        if token not in cookies:
            answer = httpx.post(f"{service.url}/sign-in", data={"token": token})
            cookies[token] = answer.headers["set-cookie"].partition(";")[0]
        headers = {"Cookie": f"{cookies[token]}; __Host-conversas-language={language}"}
        method = "GET" if data is None else "POST"
        answer = httpx.request(method, service.url + path, headers=headers, data=data)
        return ask(answer.headers["location"], language, token) if answer.is_redirect else answer

    return ask


@pytest.fixture(scope="module")
def newcomer(workspace: Callable[[str], Any]) -> Any:
    """The admin of a workspace in which nothing has happened yet."""
    return workspace("newcomer")


def token_of(client: Any) -> str:
    return str(client.headers["authorization"]).removeprefix("Bearer ")


def headings(text: str) -> list[str]:
    return re.findall(r"<h2[^>]*>([^<]*)</h2>", text)


@pytest.mark.parametrize("language", ["pt", "en"])
@pytest.mark.parametrize("form", ["finalize", "transfer"])
def test_a_form_for_a_conversation_that_was_finalized_says_so(
    look: Look, a_conversation: Callable[[str], Any], language: str, form: str
) -> None:
    shown = {}
    for state in ("finalized", "pending"):
        conversation = a_conversation(state)
        conversation.view()
        answer = look(f"/conversations/{conversation.id}/{form}", language)
        assert answer.status_code == 200
        shown[state] = SAID["finalized"][language] in answer.text
    assert shown == {"finalized": True, "pending": False}


@pytest.mark.parametrize("language", ["pt", "en"])
def test_a_listing_that_is_empty_says_whether_it_is_or_was(look: Look, newcomer: Any, language: str) -> None:
    now, then = (look(path, language, token_of(newcomer)).text for path in ("/", "/?as_of=2001-01-01T00:00"))
    assert (SAID["none yet"][language] in now, SAID["none then"][language] in now) == (True, False)
    assert (SAID["none yet"][language] in then, SAID["none then"][language] in then) == (False, True)


@pytest.mark.parametrize("language", ["pt", "en"])
def test_beside_a_past_version_the_episodes_are_called_those_of_now(
    look: Look, a_conversation: Callable[[str], Any], language: str
) -> None:
    conversation = a_conversation("finalized")
    conversation.view()
    path = f"/conversations/{conversation.id}"
    assert SAID["episodes"][language] in headings(look(path, language).text)
    assert SAID["episodes now"][language] in headings(look(f"{path}?version=1", language).text)


def ticks(picture: str) -> list[str]:
    """The numbers at a chart's side."""
    side = picture[picture.index('class="axis y') :]
    return re.findall(r"<text[^>]*>([^<]*)</text>", side[: side.index("</g></g>")])


def test_a_chart_of_counts_has_no_tenths_at_its_side(look: Look, workspace: Callable[[str], Any]) -> None:
    shop = workspace("shop")
    contact = shop.ok("POST", "/v1/contacts", {"name": "Ana"})
    sector = shop.ok("POST", "/v1/sectors", {"name": "Suporte"})
    opened = shop.ok(
        "POST",
        "/v1/conversations",
        {"channel": "phone", "contact_id": contact["id"], "sector_id": sector["id"]},
    )
    shop.read("/v1/metrics", at_least=opened["position"])
    for chart in ("status", "channel", "sector"):
        assert ticks(look(f"/overview/{chart}.svg?days=7", "pt", token_of(shop)).text) == ["0", "1"]


def test_the_history_names_a_view_to_who_may_see_it(look: Look, newcomer: Any, caller: Any) -> None:
    made = {"filter": {"and": []}, "columns": []}
    for name in ("Só minha", "De todos"):
        kept = newcomer.ok("POST", "/v1/views", made | {"name": name, "shared": name == "De todos"})
    newcomer.read("/v1/history", at_least=kept["position"])
    newcomer.read("/v1/views", at_least=kept["position"])
    auditor = caller("integration", "auditing", "auditor", of=newcomer)
    shown = {
        who: [
            name in look("/history?event=view-saved.v1", "pt", token_of(who)).text for name in ("Só minha", "De todos")
        ]
        for who in (newcomer, auditor)
    }
    assert list(shown.values()) == [[True, True], [False, True]]


@pytest.mark.parametrize("language", ["pt", "en"])
def test_the_history_calls_a_role_by_its_name(look: Look, newcomer: Any, language: str) -> None:
    body = {"name": "Caio", "role": "supervisor"}
    agent = newcomer.ok("POST", "/v1/agents", body)
    changed = newcomer.ok("PUT", f"/v1/agents/{agent['id']}/role", {"role": "admin"})
    newcomer.read("/v1/history", at_least=changed["position"])
    text = look(f"/history?stream={agent['id']}", language, token_of(newcomer)).text
    said = {"pt": "de supervisor para administrador por", "en": "from supervisor to administrator by"}
    assert said[language] in text


def test_a_date_that_cannot_be_read_is_told_beside_it_and_stays(look: Look, api: Any) -> None:
    api.ok("PUT", "/v1/attributes/contact/k-desde", {"label": "Cliente desde", "type": "date"})
    contact = api.ok("POST", "/v1/contacts", {"name": "Ana", "attributes": {"k-desde": "2020-01-31"}})
    api.read(f"/v1/contacts/{contact['id']}", at_least=contact["position"])
    path = f"/contacts/{contact['id']}/edit"
    text = look(path, "pt").text
    form, picked = PageOfForms(text).form(path), re.compile('id="attribute-k-desde"[^>]* data-picker="date"')
    assert picked.search(text)
    assert form.values("attribute-k-desde") == ["2020-01-31"]
    sent = form.filled({"attribute-k-desde": "31/01"})
    answer = look(path, "pt", data=_named(sent))
    assert not picked.search(answer.text), "a picker would show nothing of it"
    page = PageOfForms(answer.text)
    assert page.form(path).values("attribute-k-desde") == ["31/01"]
    assert "Informe uma data, como 2026-12-31." in page.texts["attribute-k-desde-mistake"]


def _named(sent: list[tuple[str, str]]) -> dict[str, list[str]]:
    named: dict[str, list[str]] = {}
    for name, value in sent:
        named.setdefault(name, []).append(value)
    return named


def test_an_episode_that_waits_has_one_waiting_time(look: Look, a_conversation: Callable[[str], Any]) -> None:
    conversation = a_conversation("pending")
    conversation.view()
    assert not re.search(r"<td>[^<]* \+ [^<]*</td>", look(f"/conversations/{conversation.id}", "pt").text)
