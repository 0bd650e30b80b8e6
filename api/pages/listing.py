"""The listing: tabs with counts, filter bar, rows that change as conversations do.

Invariant: all of its state is in the address (`listing_state`); a script that asks for the results alone is given the
same as who loads the page.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import orjson
from starlette.responses import Response

from api.pages.asking import RefusedError
from api.pages.bulk import actions
from api.pages.columns import CHANNEL_NAMES, COLUMNS, PRIORITY_NAMES, SORTS, STATUS_NAMES, SURFACE_NAMES
from api.pages.directory_names import names
from api.pages.listing_state import BAR, LISTS, MISTAKES, MOMENTS, PERIODS, State, mistakes_of, state_of
from api.pages.page import Here, Page, link, page_router
from api.pages.texts import N_
from domain.events import Status
from domain.permissions import Permission
from projections.listing_query import Sort

router = page_router()
_EMPTY: dict[str, Any] = {"items": [], "next": None, "position": None}
PERIOD_NAMES = {"opened": N_("Opened"), "last_activity": N_("Last activity"), "finalized": N_("Finalized")}
END_NAMES = {"from": N_("from"), "until": N_("until")}
FILTER_NAMES = {
    "status": N_("Status"),
    "channel": N_("Channel"),
    "sector": N_("Sector"),
    "agent": N_("Agent"),
    "bot": N_("Bot"),
    "label": N_("Label"),
    "q": N_("Search"),
}


@router.get("/")
async def listing(page: Here) -> Response:
    """The listing in the state that the address says."""
    given = page.request.query_params
    state = state_of(given, page.formats)
    wants_part = page.request.headers.get("fragment") == "results"
    if not wants_part and state.address != page.here and _is_loose(given.multi_items(), state):
        return page.go_to(state.address)  # a form's address: without what is empty, moments with their zone
    directory, views, (found, counts, mistakes) = await asyncio.gather(
        names(page), _none() if wants_part else saved_views(page), _found(page, state)
    )
    if "cursor" in mistakes:
        return page.go_to(state.but().address)  # that page belongs to another order: begin anew
    return page.render(
        "listing_results.html" if wants_part else "listing.html",
        422 if mistakes else 200,
        state=state,
        mistakes={name: page.text(mistake) for name, mistake in mistakes.items()},
        field_names=_field_names(page),
        items=found["items"],
        following=state.but(cursor=found["next"]).address if found["next"] else None,
        counts=counts,
        position=min(found["position"], counts["position"]) if counts and not state["as_of"] else None,
        names=directory,
        views=views,
        chips=_chips(page, state, directory),
        columns=[replace(COLUMNS[name], said=page.text(COLUMNS[name].said)) for name in state.shown_columns],
        all_columns=COLUMNS,
        sorts=SORTS,
        sort=_sort(state),
        statuses=_said(page, STATUS_NAMES),
        channels=_said(page, CHANNEL_NAMES) | {each: each for each in state["channel"] if each not in CHANNEL_NAMES},
        priorities=_said(page, PRIORITY_NAMES),
        surfaces=_said(page, SURFACE_NAMES),
        periods=PERIOD_NAMES,
        ends=END_NAMES,
        bar=BAR,
        ends_of_periods=[name for name in MOMENTS if name != "as_of"],
        actions=actions(page),
        stream=None if state["as_of"] else link("/v1/conversations/stream", state.query(_STREAMED)),
        exports=_exports(page, state),
    )


async def _none() -> list[dict[str, Any]]:
    """No views: a part of the page has no menu to show them."""
    return []


async def saved_views(page: Page) -> list[dict[str, Any]]:
    """The views that whoever signed in may see."""
    return [saved_view(page, view) for view in (await page.get("/v1/views"))["items"]]


def _said(page: Page, names: Mapping[str, str]) -> dict[str, str]:
    """What codes are called, looked up once for all rows."""
    return {code: page.text(name) for code, name in names.items()}


def _field_names(page: Page) -> dict[str, str]:
    """What the fields of the bar are called."""
    found = {name: page.text(said) for name, said in FILTER_NAMES.items()}
    for period, period_name in PERIOD_NAMES.items():
        found |= {f"{period}_{end}": f"{page.text(period_name)} {page.text(said)}" for end, said in END_NAMES.items()}
    return found | {"filter": page.text("Advanced filters"), "as_of": page.text("As of")}


async def _found(page: Page, state: State) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, str]]:
    """The rows, the counts, and what is wrong with the filters."""
    try:
        found, counts = await asyncio.gather(
            page.get("/v1/conversations", state.query()),
            page.get("/v1/conversations/counts", state.query(BAR)),
        )
    except RefusedError as refused:
        if mistakes := mistakes_of(refused.problem):
            return _EMPTY, None, mistakes
        raise
    return found, counts, {}


_STREAMED = tuple(name for name in BAR if name not in {"status", "as_of"})
"""Of all statuses, so that the counts of the other tabs are live, too."""


def _is_loose(given: Iterable[tuple[str, str]], state: State) -> bool:
    """Whether an address holds what is empty, or a moment without its zone."""
    strict = {*state.query(), *(("columns", each) for each in state.shown_columns)}
    return any(
        not value or ((name in MOMENTS or name in LISTS) and (name, value) not in strict) for name, value in given
    )


def _sort(state: State) -> tuple[Sort, bool]:
    """By what it is sorted, and whether downwards: as `api.listing.sort_of` decides."""
    given = [period for period in PERIODS if state[f"{period}_from"] or state[f"{period}_until"]]
    usual = Sort(f"{given[0]}_at") if len(given) == 1 else Sort.LAST_ACTIVITY
    wanted = next((sort for sort in Sort if sort == state["sort"]), usual)
    return wanted, state["order"] != "asc"


def saved_view(page: Page, view: dict[str, Any]) -> dict[str, Any]:
    """A saved view as a link to the listing that it shows."""
    filter_ = "" if view["filter"] == {"and": []} else orjson.dumps(view["filter"]).decode()
    columns = [name for name in view["columns"] if name in COLUMNS]
    state = State({}, {"filter": filter_, "sort": view["sort"], "order": view["order"]}, tuple(columns))
    mine = page.caller is not None and view["owner"]["id"] == page.caller.actor.id
    kept = {name: view[name] for name in ("id", "name", "shared", "version")}
    return kept | {"mine": mine, "address": state.address}


def _chips(page: Page, state: State, directory: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """What is filtered by, each with the address without it."""
    chips, field_names = [], _field_names(page)
    for name in LISTS[1:]:
        for value in state[name]:
            shown = directory.get(name, {}).get(value) or (CHANNEL_NAMES.get(value) if name == "channel" else None)
            said = page.text(shown) if name == "channel" and shown else shown or value
            chips.append(
                {"name": page.text(FILTER_NAMES[name]), "value": said, "off": state.without(name, value).address}
            )
    if text := state["q"]:
        name = FILTER_NAMES["q"]
        chips.append({"name": page.text(name), "value": text, "off": state.without("q").address})
    for period in PERIOD_NAMES:
        for end in END_NAMES:
            if value := state[f"{period}_{end}"]:
                said = field_names[f"{period}_{end}"]
                shown = page.formats.exactly(page.formats.typed(value)) if page.formats.typed(value) else value
                chips.append({"name": said, "value": shown, "off": state.without(f"{period}_{end}").address})
    if state["filter"]:
        count = page.text("conditions: %(n)s", n=state["filter"].count('"field"'))
        chips.append({"name": page.text("Advanced filter"), "value": count, "off": state.without("filter").address})
    return chips


def _exports(page: Page, state: State) -> dict[str, str]:
    """Addresses of the whole result as a file."""
    if not page.may(Permission.EXPORT):
        return {}
    wanted = state.query((*BAR, "sort", "order"))
    return {name: link("/v1/conversations/export", [*wanted, ("format", name)]) for name in ("csv", "ndjson")}


assert set(STATUS_NAMES) == set(Status)
assert {*LISTS, "q"} == set(FILTER_NAMES) <= set(MISTAKES)
