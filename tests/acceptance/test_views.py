"""Saved views over HTTP: kept for oneself or for the workspace, in the listing's own grammar.

Invariant: a private view exists for its owner only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from api import demo

if TYPE_CHECKING:
    from tests.acceptance.conftest import Api

FILTER = {
    "and": [
        {"field": "status", "operator": "in", "value": ["pending", "in_progress"]},
        {"or": [{"not": {"field": "label", "operator": "is", "value": "vip"}}]},
        {"field": "text", "operator": "contains", "value": "pessoa procurada"},
    ]
}
BODY: dict[str, Any] = {
    "name": "Minhas",
    "shared": False,
    "filter": FILTER,
    "sort": "opened_at",
    "order": "asc",
    "columns": ["protocol", "status"],
}


def saved(by: Api, **more: Any) -> dict[str, Any]:
    return by.ok("POST", "/v1/views", BODY | more)


def views(by: Api, position: int = 0) -> dict[str, dict[str, Any]]:
    return {view["id"]: view for view in by.read("/v1/views", at_least=position)["items"]}


def test_a_view_comes_back_as_it_was_saved(bia: Api) -> None:
    answer = saved(bia)
    view = views(bia, answer["position"])[answer["id"]]
    assert view == BODY | {"id": answer["id"], "owner": {"kind": "agent", "id": str(demo.AGENT)}, "version": 1}


def test_a_view_of_nothing_but_a_name_shows_everything(bia: Api) -> None:
    answer = bia.ok("POST", "/v1/views", {"name": "Tudo"})
    view = views(bia, answer["position"])[answer["id"]]
    assert (view["filter"], view["shared"], view["columns"]) == ({"and": []}, False, [])


def test_what_a_view_holds_can_be_searched_with(api: Api, bia: Api) -> None:
    answer = saved(bia)
    view = views(bia, answer["position"])[answer["id"]]
    body = {"filter": view["filter"], "sort": view["sort"], "order": view["order"]}
    assert api.send_json("POST", "/v1/conversations/search", body).status_code == 200


def test_a_private_view_exists_for_its_owner_only(api: Api, bia: Api, davi: Api) -> None:
    answer = saved(bia)
    id_, position = answer["id"], answer["position"]
    assert id_ in views(bia, position)
    head = api.log_head()
    for other in (api, davi):
        assert id_ not in views(other, position)
        assert id_ not in other.get("/v1/views").text
        for method, body in (("PUT", BODY), ("DELETE", None)):
            refused = other.send_json(method, f"/v1/views/{id_}", body)
            assert (refused.status_code, refused.json()["code"]) == (404, "view-not-found")
            assert "Minhas" not in refused.text
        taken = other.send_json("POST", "/v1/views", BODY | {"id": id_})
        assert (taken.status_code, taken.json()["code"]) == (409, "already-exists")
    assert api.log_head() == head


def test_a_shared_view_is_everybodys_to_see_and_its_owners_or_the_directorys_to_change(
    api: Api, bia: Api, davi: Api
) -> None:
    named = {"shared": True, "filter": {"field": "status", "operator": "is", "value": "pending"}}
    answer = saved(bia, **named, name="De todos")
    path = f"/v1/views/{answer['id']}"
    for each in (api, bia, davi):
        assert views(each, answer["position"])[answer["id"]]["name"] == "De todos"
    assert davi.send_json("PUT", path, BODY).status_code == 403
    assert davi.send_json("DELETE", path, None).status_code == 403
    bia.ok("PUT", path, BODY | named | {"name": "Da dona"})
    changed = api.ok("PUT", path, BODY | named | {"name": "Da direção"})
    view = views(davi, changed["position"])[answer["id"]]
    assert (view["name"], view["version"]) == ("Da direção", 3)
    assert view["owner"] == {"kind": "agent", "id": str(demo.AGENT)}
    removed = api.ok("DELETE", path)
    assert answer["id"] not in views(bia, removed["position"])


def test_what_is_shared_no_longer_is_the_owners_only(bia: Api, davi: Api) -> None:
    answer = saved(bia, shared=True)
    hidden = bia.ok("PUT", f"/v1/views/{answer['id']}", BODY | {"shared": False})
    assert answer["id"] not in views(davi, hidden["position"])
    assert davi.send_json("PUT", f"/v1/views/{answer['id']}", BODY).status_code == 404


def test_a_removed_view_is_gone_and_removing_it_again_changes_nothing(bia: Api) -> None:
    answer = saved(bia)
    path = f"/v1/views/{answer['id']}"
    removed = bia.ok("DELETE", path)
    assert (removed["events"], bia.ok("DELETE", path)["events"]) == (1, 0)
    assert answer["id"] not in views(bia, removed["position"])
    assert bia.send_json("PUT", path, BODY).status_code == 404


def test_saving_the_same_again_is_no_change_and_another_under_the_same_id_is_refused(bia: Api) -> None:
    id_ = str(uuid4())
    assert [saved(bia, id=id_)["events"], saved(bia, id=id_)["events"]] == [1, 0]
    assert bia.send_json("POST", "/v1/views", BODY | {"id": id_, "name": "Outra"}).status_code == 409


def test_a_stale_change_is_refused_by_its_version(bia: Api) -> None:
    answer = saved(bia)
    path = f"/v1/views/{answer['id']}"
    bia.ok("PUT", path, BODY | {"name": "Dois"}, if_match='"1"')
    assert bia.send_json("PUT", path, BODY | {"name": "Três"}, if_match='"1"').status_code == 412


@pytest.mark.parametrize(
    "wrong",
    [
        {"field": "nothing", "operator": "is", "value": "x"},
        {"field": "status", "operator": "before", "value": "pending"},
        {"field": "opened", "operator": "after", "value": "soon"},
        {"and": [{"field": "status", "operator": "is", "value": "pending"}] * 51},
    ],
)
def test_a_filter_that_the_listing_would_not_take_is_not_kept(bia: Api, wrong: dict[str, Any]) -> None:
    answer = bia.send_json("POST", "/v1/views", BODY | {"filter": wrong})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")


def test_a_filter_that_is_too_long_to_keep_is_refused(bia: Api) -> None:
    long = {"and": [{"field": "outcome", "operator": "in", "value": ["x" * 500] * 3}] * 50}
    answer = bia.send_json("POST", "/v1/views", BODY | {"filter": long})
    assert answer.status_code == 422, answer.text


def test_no_history_tells_what_a_view_looks_for(api: Api, bia: Api) -> None:
    answer = saved(bia, name="Nome Secreto")
    for path in (f"/v1/history?stream={answer['id']}", f"/v1/events?after={answer['position'] - 1}"):
        text = api.get(path, params={"at_least": answer["position"]} if "history" in path else {}).text
        if "history" in path:
            assert "view-saved.v1" in text
        assert "procurada" not in text
        assert "Nome Secreto" not in text


def test_views_stay_within_their_workspace(bia: Api, service: Any, connect: Callable[..., Api]) -> None:
    answer = saved(bia, shared=True)
    stranger = connect(service.new_workspace(f"w-{uuid4().hex[:8]}"))
    assert views(stranger) == {}
    assert stranger.send_json("PUT", f"/v1/views/{answer['id']}", BODY).status_code == 404


def test_whoever_may_not_view_keeps_and_sees_no_views(api: Api, caller: Callable[..., Api]) -> None:
    role = f"r-{uuid4().hex}"
    api.ok("PUT", f"/v1/roles/{role}", {"grants": {"manage-tokens": "all"}})
    clerk = caller("integration", role, role)
    assert clerk.get("/v1/views").status_code == 403
    assert clerk.send_json("POST", "/v1/views", BODY).status_code == 403


BY_NAME = {"or": [{"not": {"field": "contact.name", "operator": "is", "value": "Pessoa Procurada"}}]}
BY_PLAN = {"and": [{"field": "contact.attributes.plano", "operator": "is", "value": "ouro"}]}
BY_STATUS = {"field": "status", "operator": "is", "value": "pending"}


def test_a_shared_view_names_contacts_only_to_those_who_may_view_them(
    api: Api, bia: Api, caller: Callable[..., Api]
) -> None:
    api.ok("PUT", "/v1/roles/sem-contatos", {"grants": {"view": "all"}})
    blind, auditor = caller("integration", "sem-contatos", "sem-contatos"), caller("bot", "auditoria", "auditor")
    filters = {"text": FILTER, "name": BY_NAME, "plan": BY_PLAN, "status": BY_STATUS}
    made = {name: saved(api, shared=True, filter=filter_) for name, filter_ in filters.items()}
    mine = saved(blind, filter=BY_NAME)
    position = mine["position"]

    def seen(by: Api) -> set[str]:
        found = views(by, position)
        assert "Procurada" in str(found) or by is not auditor
        return {name for name, answer in made.items() if answer["id"] in found}

    assert seen(auditor) == seen(api) == set(made)
    assert seen(bia) == {"plan", "status"}
    assert seen(blind) == {"status"}
    assert mine["id"] in views(blind, position), "what one wrote oneself"
