"""Transfer targets: exactly those that a transfer accepts, with presence and queues, of what the caller may see."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from api import demo
from projections.search_words import words

Client = Any
SUPORTE, VENDAS = str(demo.SECTOR), str(demo.OTHER_SECTOR)
BIA, DAVI = str(demo.AGENT), str(demo.OTHER_AGENT)
PATH = "/v1/transfer-targets"


def targets(client: Client, **query: Any) -> dict[str, dict[str, Any]]:
    return {each["id"]: each for each in client.items(PATH, **query)}


def test_sectors_come_before_agents_each_by_name_on_pages_that_fit_together(api: Client) -> None:
    found = api.items(PATH)
    assert [each["kind"] for each in found] == sorted((each["kind"] for each in found), reverse=True)
    for kind, own in (("sector", {SUPORTE, VENDAS}), ("agent", {BIA, DAVI, str(demo.ADMIN)})):
        names = [each["name"] for each in found if each["kind"] == kind]
        assert names == sorted(names, key=words)
        assert own <= {each["id"] for each in found if each["kind"] == kind}
    # Queues are left out: what other tests have just done may still be on its way to them.
    assert [each["id"] for each in api.items(PATH, limit=2)] == [each["id"] for each in found]


def test_names_are_found_by_the_beginnings_of_words_accents_or_not(api: Client) -> None:
    agent = api.ok("POST", "/v1/agents", {"name": "João Antônio Araújo"})
    at_least = {"at_least": agent["position"]}
    for text in ("joao", "JOÃO ara", "ant", "Araújo joão"):
        assert agent["id"] in targets(api, q=text, **at_least)
    for text in ("oao", "joaoa", "joao bia"):
        assert agent["id"] not in targets(api, q=text, **at_least)


def test_a_sector_is_asked_for_with_the_agents_who_serve_in_it(api: Client) -> None:
    found = targets(api, sector=VENDAS)
    assert {VENDAS, DAVI} <= found.keys()
    assert SUPORTE not in found
    assert BIA not in found


def test_every_target_is_accepted_and_what_is_not_one_is_refused(
    api: Client, caller: Callable[..., Client], open_conversation: Any
) -> None:
    gone_sector = api.ok("POST", "/v1/sectors", {"name": "Fechado"})["id"]
    gone_agent = api.ok("POST", "/v1/agents", {"name": "Saiu"})["id"]
    api.ok("DELETE", f"/v1/sectors/{gone_sector}")
    position = api.ok("DELETE", f"/v1/agents/{gone_agent}")["position"]
    davi = caller("agent", DAVI, "agent")
    for client in (api, davi):
        found = targets(client, at_least=position)
        assert not {gone_sector, gone_agent} & found.keys()
        for target in found.values():
            body = {f"{target['kind']}_id": target["id"]}
            assert open_conversation().ask("transfer", body, by=client).status_code == 200, target
        for body in ({"sector_id": gone_sector}, {"agent_id": gone_agent}, {"agent_id": str(uuid4())}):
            assert open_conversation().ask("transfer", body, by=client).status_code in {404, 409}


def test_presence_is_shown(api: Client, bia: Client) -> None:
    bia.ok("PUT", "/v1/presence", {"status": "online"})
    found = targets(api)
    assert (found[BIA]["presence"], found[BIA]["sectors"]) == ("online", [SUPORTE])
    assert found[SUPORTE]["online"] >= 1
    bia.ok("PUT", "/v1/presence", {"status": "away"})
    assert targets(api)[BIA]["presence"] == "away"
    assert targets(api)[SUPORTE]["online"] == found[SUPORTE]["online"] - 1


@pytest.fixture
def quiet(workspace: Callable[[str], Client]) -> tuple[Client, dict[str, str]]:
    """A workspace in which nothing happens but in the test: its admin, sectors and agents by name."""
    admin = workspace(f"w-{uuid4().hex[:8]}")
    ids = {name: admin.ok("POST", "/v1/sectors", {"name": name})["id"] for name in ("um", "dois")}
    for name in ("lia", "rui"):
        ids[name] = admin.ok("POST", "/v1/agents", {"name": name})["id"]
        admin.send_json("PUT", f"/v1/agents/{ids[name]}/sectors/{ids['um']}", None)
    ids["contact"] = admin.ok("POST", "/v1/contacts", {"name": "Zé"})["id"]
    return admin, ids


def test_queues_count_what_the_caller_may_see(
    quiet: tuple[Client, dict[str, str]], caller: Callable[..., Client]
) -> None:
    admin, ids = quiet
    lia = caller("agent", ids["lia"], "agent", of=admin)
    owners = [("um", None), ("um", None), ("dois", None), ("um", "lia"), ("um", "rui"), ("um", "rui"), ("dois", None)]
    for sector, agent in owners:
        body = {"channel": "phone", "contact_id": ids["contact"], "sector_id": ids[sector]}
        opened = admin.ok("POST", "/v1/conversations", body)
        if agent:
            path = f"/v1/conversations/{opened['id']}"
            opened = admin.ok("POST", f"{path}/transfer", {"agent_id": ids[agent]})
    admin.read("/v1/conversations", at_least=opened["position"], limit=1)
    ended = admin.ok("POST", f"/v1/conversations/{opened['id']}/finalize", {"surface": "listing", "outcome": ""})
    admin.read("/v1/conversations", at_least=ended["position"], limit=1)

    role = f"r-{uuid4().hex[:8]}"
    admin.ok("PUT", f"/v1/roles/{role}", {"grants": {"view": "own", "transfer": "own"}})
    rui, away = (admin.ok("POST", "/v1/agents", {"name": name, "role": role})["id"] for name in ("own", "fora"))
    ids |= {"own": rui, "away": away}
    own = caller("agent", rui, role, of=admin)
    admin.send_json("PUT", f"/v1/agents/{away}/sectors/{ids['dois']}", None)

    def queues(client: Client) -> dict[str, int | None]:
        found = targets(client)
        return {name: found[id_]["queue"] for name, id_ in ids.items() if id_ in found}

    assert queues(admin) == {"um": 2, "dois": 1, "lia": 1, "rui": 2, "own": 0, "away": 0}
    assert queues(lia) == {"um": 2, "dois": None, "lia": 1, "rui": 2, "own": None, "away": None}
    assert queues(own) == {"um": None, "dois": None, "lia": None, "rui": None, "own": 0, "away": None}


def test_targets_are_for_those_who_may_transfer_and_of_their_workspace(
    api: Client, stranger: Client, caller: Callable[..., Client]
) -> None:
    auditor = caller("integration", "auditoria", "auditor")
    assert auditor.get(PATH).status_code == 403
    assert not {SUPORTE, BIA} & targets(stranger).keys()
    for wrong in ({"limit": 0}, {"limit": 1001}, {"cursor": "x"}, {"sector": "x"}, {"nonsense": 1}):
        assert api.get(PATH, params=wrong).status_code == 422
