"""One conversation: its messages as they come, its history in words, how it stood at any version, and what can be done.

Invariant: an action is offered only to who may do it, as far as the page knows; whether they may is decided by the API.
"""

import asyncio
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query
from starlette.responses import Response

from api.pages.asking import RefusedError
from api.pages.columns import CHANNEL_NAMES, PRIORITY_NAMES, STATUS_NAMES
from api.pages.columns import SURFACE_NAMES as FINALIZED_FROM_NAMES
from api.pages.directory_names import names as names_of
from api.pages.forms import mistakes_of, none_of, said, typed
from api.pages.page import Here, Page, link, page_router
from api.pages.words import (
    CAUSE_NAMES,
    EVENT_NAMES,
    KIND_NAMES,
    PRESENCE_NAMES,
    SURFACE_NAMES,
    actor_name,
)
from domain.events import Owner
from domain.permissions import Permission, may

router = page_router()
MOST = 100
"""Messages, and entries of the history, on one page: the newest first to be seen."""
_EPISODES = 500
_LARGEST = 2**63 - 1
AtLeast = Annotated[int | None, Query(ge=0, le=_LARGEST)]
Cursor = Annotated[str | None, Query(max_length=500)]
WORDS: dict[str, Any] = {
    "statuses": STATUS_NAMES,
    "channels": CHANNEL_NAMES,
    "priorities": PRIORITY_NAMES,
    "surfaces": SURFACE_NAMES,
    "events": EVENT_NAMES,
    "presences": PRESENCE_NAMES,
    "causes": CAUSE_NAMES,
    "kinds": KIND_NAMES,
    "finalized_from": FINALIZED_FROM_NAMES,
    "actor_name": actor_name,
}
"""What templates say of conversations with."""


@router.get("/conversations/{id:uuid}")
async def conversation(
    page: Here,
    id: UUID,
    version: Annotated[int | None, Query(ge=1, le=_LARGEST)] = None,
    at_least: AtLeast = None,
    messages: Cursor = None,
    history: Cursor = None,
) -> Response:
    """The conversation as it is, or as it stood after a version."""
    return await _shown(page, id, version=version, at_least=at_least, messages=messages, history=history)


async def _shown(
    page: Page,
    id_: UUID,
    *,
    version: int | None = None,
    at_least: int | None = None,
    messages: str | None = None,
    history: str | None = None,
    mistakes: dict[str, str] | None = None,
) -> Response:
    path = f"/v1/conversations/{id_}"
    now = await page.get(path, none_of({"at_least": at_least}))
    version = None if version is None or version >= now["version"] else version
    reads_history = _may(page, Permission.READ_HISTORY, now)
    newest = {"limit": MOST, "order": "desc"}
    around = version + MOST // 2 if version else None  # what came after it is shown as well
    then, names, said_, happened, episodes = await asyncio.gather(
        page.get(path, {"version": version}) if version else _same(now),
        names_of(page),
        page.get(f"{path}/messages", none_of(newest | {"cursor": messages, "version": version})),
        page.get(f"{path}/history", none_of(newest | {"cursor": history, "version": around} | speech(page)))
        if reads_history
        else _same({"items": [], "next": None}),
        page.get(f"{path}/episodes", {"limit": _EPISODES}),
    )
    part = page.request.headers.get("fragment") == "live"
    return page.render(
        "conversation_live.html" if part else "conversation.html",
        422 if mistakes else 200,
        id=id_,
        now=now,
        # All of the page is as new as that: what is followed begins there, and is asked for until it is reached.
        reached=min(
            [now["version"], *(entry["version"] for entry in happened["items"][:1] if not (version or history))]
        ),
        then=then,
        version=version,
        names=names,
        items=said_["items"][::-1],
        earlier=said_["next"] and link(path_of(id_), none_of({"version": version, "messages": said_["next"]})),
        history=happened["items"],
        earlier_history=happened["next"]
        and link(path_of(id_), none_of({"version": version, "history": happened["next"]})),
        newest=link(path_of(id_), none_of({"version": version})) if messages or history else None,
        reads_history=reads_history,
        episodes=episodes["items"],
        can=_actions(page, now) if version is None else dict.fromkeys(_actions(page, now), False),
        sees_contact=_may(page, Permission.VIEW_CONTACT, now),
        stream=None if version or messages or history else f"{path}/stream",
        mistakes=mistakes or {},
        typed=typed(page, "label", "priority"),
        **WORDS,
    )


def path_of(id_: UUID) -> str:
    """The address of a conversation's page."""
    return f"/conversations/{id_}"


def speech(page: Page) -> dict[str, str]:
    """In which language, and whose time, the API tells what happened."""
    return {"lang": page.language, "tz": page.formats.zone.key}


async def _same(value: Any) -> Any:
    return value


def _may(page: Page, permission: Permission, row: dict[str, Any]) -> bool:
    owner = Owner(sector_id=row["sector_id"], agent_id=row["agent_id"], bot=row["bot"])
    return page.caller is not None and may(page.caller, permission, owner)


def _actions(page: Page, row: dict[str, Any]) -> dict[str, bool]:
    """What whoever signed in may do with the conversation as it stands."""
    is_open = row["status"] != "finalized"
    agent_id = page.caller.agent_id if page.caller else None
    return {
        "assume": is_open
        and agent_id is not None
        and row["agent_id"] != str(agent_id)
        and row["status"] != "in_progress"
        and _may(page, Permission.ASSUME, row),
        "transfer": is_open and _may(page, Permission.TRANSFER, row),
        "finalize": is_open and finalizing_surface(page, row) is not None,
        "reopen": not is_open and _may(page, Permission.REOPEN, row),
        "label": _may(page, Permission.LABEL, row),
    }


def finalizing_surface(page: Page, row: dict[str, Any]) -> str | None:
    """From where whoever signed in may finalize it: the listing, which this page belongs to; else their inbox."""
    for surface, permission in (
        ("listing", Permission.FINALIZE_FROM_LISTING),
        ("inbox", Permission.FINALIZE_FROM_INBOX),
    ):
        if _may(page, permission, row):
            return surface
    return None


async def carry_out(page: Page, id_: UUID, what: str, body: Any, method: str = "POST") -> Response:
    """Do something with the conversation and show it; why not, where it is refused."""
    try:
        done = await page.send(method, f"/v1/conversations/{id_}/{what}", body)
    except RefusedError as error:
        mistakes = await mistakes_of(page, error, {name: name for name in ("label", "priority")})
        return await _shown(page, id_, mistakes=mistakes)
    return page.go_to(link(f"/conversations/{id_}", {"at_least": done["position"]}))


@router.post("/conversations/{id:uuid}/assume")
async def assume(page: Here, id: UUID) -> Response:
    """Take it."""
    return await carry_out(page, id, "assume", {})


@router.post("/conversations/{id:uuid}/reopen")
async def reopen(page: Here, id: UUID) -> Response:
    """Go on with it: a new episode."""
    return await carry_out(page, id, "reopen", none_of(typed(page, "reason")))


@router.post("/conversations/{id:uuid}/priority")
async def change_priority(page: Here, id: UUID) -> Response:
    """Make it more or less urgent."""
    return await carry_out(page, id, "priority", typed(page, "priority"))


@router.post("/conversations/{id:uuid}/labels")
async def add_label(page: Here, id: UUID) -> Response:
    """Put a label on."""
    return await carry_out(page, id, "labels", {"label": typed(page, "label")["label"].lower()})


@router.post("/conversations/{id:uuid}/labels/{label}/remove")
async def remove_label(page: Here, id: UUID, label: str) -> Response:
    """Take a label off."""
    return await carry_out(page, id, f"labels/{label}", None, "DELETE")


_FINALIZING = ("outcome", "comment", "version")
_TRANSFERRING = ("target", "reason", "version")


@router.get("/conversations/{id:uuid}/finalize")
async def finalize_form(page: Here, id: UUID) -> Response:
    """Ask how it ended."""
    row = await page.get(f"/v1/conversations/{id}")
    return _finalize_form(page, id, row, typed(page, *_FINALIZING), {})


def _finalize_form(
    page: Page, id_: UUID, row: dict[str, Any], given: dict[str, str], mistakes: dict[str, str]
) -> Response:
    return page.render(
        "finalize.html",
        422 if mistakes else 200,
        id=id_,
        row=row,
        typed=given,
        mistakes=mistakes,
        surface=finalizing_surface(page, row) or "listing",
        **WORDS,
    )


@router.post("/conversations/{id:uuid}/finalize")
async def finalize(page: Here, id: UUID) -> Response:
    """End it, as from the listing where that is allowed."""
    path = f"/v1/conversations/{id}"
    row = await page.get(path)
    given, surface = typed(page, *_FINALIZING), finalizing_surface(page, row) or "listing"
    body = {"surface": surface, "outcome": given["outcome"], "comment": given["comment"] or None}
    try:
        done = await page.send("POST", f"{path}/finalize", body, Surface=surface)
    except RefusedError as error:
        return _finalize_form(page, id, row, given, await mistakes_of(page, error, {name: name for name in given}))
    return page.go_to(link(f"/conversations/{id}", {"at_least": done["position"]}))


@router.get("/conversations/{id:uuid}/transfer")
async def transfer_form(page: Here, id: UUID, q: Annotated[str, Query(max_length=20_000)] = "") -> Response:
    """Ask to whom."""
    given = typed(page, *_TRANSFERRING)
    try:
        return await _transfer_form(page, id, given, {}, q)
    except RefusedError as error:
        if error.status != 422:
            raise
        mistakes = await mistakes_of(page, error, {"q": "q"})
    return await _transfer_form(page, id, given, mistakes, q)


async def _transfer_form(
    page: Page, id_: UUID, given: dict[str, str], mistakes: dict[str, str], q: str = ""
) -> Response:
    found_by = "" if "q" in mistakes else q
    row, targets = await asyncio.gather(page.get(f"/v1/conversations/{id_}"), _targets(page, found_by))
    sectors = [each for each in targets if each["kind"] == "sector"]
    agents = [each for each in targets if each["kind"] == "agent"]
    known = {each["id"] for each in sectors}
    if not known.issuperset(sector for agent in agents for sector in agent["sectors"]):
        # Some were left out by the search: an agent is still shown within their sectors.
        everything = await _targets(page, "")
        within = {sector for agent in agents for sector in agent["sectors"]}
        sectors = [each for each in everything if each["kind"] == "sector" and each["id"] in known | within]
    groups = [
        {"sector": sector, "agents": [agent for agent in agents if sector["id"] in agent["sectors"]]}
        for sector in sectors
    ]
    return page.render(
        "transfer.html",
        422 if mistakes else 200,
        id=id_,
        row=row,
        groups=groups,
        loose=[agent for agent in agents if not agent["sectors"]],
        typed=given,
        mistakes=mistakes,
        q=q,
        **WORDS,
    )


async def _targets(page: Page, q: str) -> list[dict[str, Any]]:
    """All targets that ``q`` finds."""
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        answer = await page.get("/v1/transfer-targets", none_of({"q": q, "limit": 1_000, "cursor": cursor}))
        found += answer["items"]
        cursor = answer["next"]
        if cursor is None:
            return found


@router.post("/conversations/{id:uuid}/transfer")
async def transfer(page: Here, id: UUID) -> Response:
    """Give it to a sector's queue or to an agent."""
    given = typed(page, *_TRANSFERRING)
    if not given["target"]:
        return await _transfer_form(page, id, given, {"target": page.text("Choose a sector or an agent.")})
    sector_id, _, agent_id = given["target"].partition("/")
    body = none_of({"sector_id": sector_id, "agent_id": agent_id}) | {"reason": given["reason"]}
    try:
        done = await page.send("POST", f"/v1/conversations/{id}/transfer", body)
    except RefusedError as error:
        fields = {"reason": "reason", "sector_id": "target", "agent_id": "target"}
        if error.code in {"sector-not-found", "agent-not-found"}:
            return await _transfer_form(page, id, given, {"target": said(page, error)})
        return await _transfer_form(page, id, given, await mistakes_of(page, error, fields))
    try:
        await page.get(f"/v1/conversations/{id}", {"at_least": done["position"]})
    except RefusedError:
        return page.go_to("/")  # it went out of their sight
    return page.go_to(link(f"/conversations/{id}", {"at_least": done["position"]}))
