"""The history: the auditor's search over all events, the files to take away, and what proves that nothing was altered.

Invariant: the address holds all that was searched for: whoever may read it sees the same.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.responses import Response

from api.pages.asking import RefusedError
from api.pages.columns import STATUS_NAMES
from api.pages.conversation import WORDS, speech
from api.pages.directory_names import names as names_of
from api.pages.forms import mistakes_of, none_of
from api.pages.listing import saved_views
from api.pages.page import Here, Page, link, page_router
from api.pages.texts import N_
from api.pages.words import ACTOR_NAMES, EVENT_NAMES, SURFACE_NAMES, Names
from domain.permissions import Permission, Scope

router = page_router()
_NOT_A_MOMENT = N_("A date and a time, such as 2026-12-31 14:30.")


@dataclass(frozen=True, slots=True)
class Field:
    """Something to search by."""

    said: str
    options: dict[str, str] | str | None = None
    """What to choose from, by value; "sector" or "agent": those of the workspace."""
    kind: str = "text"
    is_usual: bool = False


FIELDS = {
    "event": Field(N_("What happened"), EVENT_NAMES, is_usual=True),
    "surface": Field(N_("From where"), SURFACE_NAMES, is_usual=True),
    "actor": Field(N_("Who did it (id)"), is_usual=True),
    "occurred_from": Field(N_("Happened from"), kind="moment", is_usual=True),
    "occurred_until": Field(N_("Happened until"), kind="moment", is_usual=True),
    "recorded_from": Field(N_("Recorded from"), kind="moment"),
    "recorded_until": Field(N_("Recorded until"), kind="moment"),
    "actor_kind": Field(N_("Kind of actor"), ACTOR_NAMES),
    "status": Field(N_("Status after it"), STATUS_NAMES),
    "sector": Field(N_("Sector after it"), "sector"),
    "agent": Field(N_("Agent after it"), "agent"),
    "bot": Field(N_("Bot after it")),
    "status_before": Field(N_("Status before it"), STATUS_NAMES),
    "sector_before": Field(N_("Sector before it"), "sector"),
    "agent_before": Field(N_("Agent before it"), "agent"),
    "bot_before": Field(N_("Bot before it")),
    "contact": Field(N_("Contact (id)")),
    "stream": Field(N_("Conversation or other stream (id)")),
    "request_id": Field(N_("Request (id)")),
    "correlation_id": Field(N_("Correlation (id)")),
    "causation_id": Field(N_("Caused by (id)")),
}


@router.get("/history")
async def history(page: Here) -> Response:
    """Search it."""
    given = {name: value for name, value in page.request.query_params.items() if name in FIELDS and value}
    query, mistakes = dict(given), dict[str, str]()
    for name in (name for name in given if FIELDS[name].kind == "moment"):
        moment = page.formats.typed(given[name])
        if moment is None:
            mistakes[name] = page.text(_NOT_A_MOMENT)
        else:
            query[name] = moment.isoformat()
    cursor = page.request.query_params.get("cursor")
    found: dict[str, Any] = {"items": [], "next": None}
    names, checkpoint, views = await asyncio.gather(names_of(page), _checkpoint(page), saved_views(page))
    if not mistakes:
        try:
            found = await page.get("/v1/history", none_of(query | speech(page) | {"limit": 50, "cursor": cursor}))
        except RefusedError as error:
            if error.status != 422:
                raise
            mistakes = await mistakes_of(page, error, {name: name for name in FIELDS})
    exports = {
        name: link("/v1/history/export", query | speech(page) | {"format": name.lower()}) for name in ("CSV", "NDJSON")
    }
    return page.render(
        "history.html",
        422 if mistakes else 200,
        fields=FIELDS,
        options={name: _options(page, field, names) for name, field in FIELDS.items()},
        given=given,
        mistakes=mistakes,
        items=found["items"],
        first=cursor is None,
        beginning=link("/history", given),
        following=link("/history", given | {"cursor": found["next"]}) if found["next"] else None,
        exports=exports if page.may(Permission.EXPORT) and not mistakes else {},
        checkpoint=checkpoint,
        names=names,
        views={view["id"]: view for view in views},
        pretty=lambda value: orjson.dumps(value, option=orjson.OPT_INDENT_2).decode(),
        **WORDS,
    )


def _options(page: Page, field: Field, names: Names) -> list[tuple[str, str]]:
    """What a field can be chosen from, as it is called."""
    if field.options is None:
        return []
    if isinstance(field.options, str):
        return sorted(names[field.options].items(), key=lambda each: each[1])
    return [(value, page.text(name)) for value, name in field.options.items()]


async def _checkpoint(page: Page) -> dict[str, Any] | None:
    """The signed head of the log, for who may verify it; without one, why there is none."""
    if page.caller is None or page.caller.scope(Permission.VERIFY_HISTORY) is not Scope.ALL:
        return None
    try:
        return dict(await page.get("/v1/checkpoint"))
    except RefusedError:
        return {"size": None}
