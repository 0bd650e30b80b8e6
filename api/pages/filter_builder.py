"""The advanced filters: conditions nested with and, or, not, put together in a form."""

from typing import Any

import orjson
from pydantic import ValidationError
from starlette.responses import Response

from api.pages.asking import RefusedError
from api.pages.directory_names import names
from api.pages.filter_fields import CHOICE_NAMES, GROUPS, IN_USE, PEOPLE
from api.pages.filter_form import JOINS, Part, act, filter_of_form, form_of, form_of_filter
from api.pages.listing_state import BAR, MISTAKES, State, state_of
from api.pages.page import Here, Page, page_router
from projections.filters import EVERYTHING, FILTER

router = page_router()
LONGEST = 4_000
"""What a listing's address holds."""


@router.get("/filter")
async def filter_form(page: Here) -> Response:
    """The form; with `do=apply` on to the listing that it describes."""
    given = page.request.query_params
    state = state_of(given, page.formats)
    root, action = _root(page, state), given.get("do", "")
    act(root, action)
    if not root.parts and action != "apply":
        root.parts.append(Part("0.0"))
    made = filter_of_form(root, page.formats)
    text = "" if made is None or made == {"and": []} else orjson.dumps(made).decode()
    if len(text) > LONGEST:
        root.mistake, made = MISTAKES["filter"], None
    if action == "apply" and made is not None:
        return page.go_to(state.but(filter=text).address)
    if action != "apply":
        for part in root.all():
            part.mistake = ""  # it is still being put together
    fits = await _count(page, state, text) if made is not None else None
    return page.render(
        "filter.html",
        422 if action == "apply" else 200,
        state=state,
        root=root,
        fits=fits,
        joins=JOINS,
        groups=GROUPS,
        choices=CHOICE_NAMES,
        people=PEOPLE,
        in_use=IN_USE,
        names=await names(page),
    )


def _root(page: Page, state: State) -> Part:
    """The form as sent; where it comes from the listing, the filter that is in force there."""
    given = page.request.query_params
    if "0.join" in given or not state["filter"]:
        return form_of(given)
    try:
        valid = FILTER.validate_json(state["filter"])
    except ValidationError:
        return Part("0", "and")
    return form_of_filter(orjson.loads(FILTER.dump_json(valid, by_alias=True)), page.formats)


async def _count(page: Page, state: State, text: str) -> Any:
    """How many conversations there are with these conditions and the bar's."""
    try:
        found = await page.get("/v1/conversations/counts", state.but(filter=text).query(BAR))
    except RefusedError:
        return None
    return found["total"]


assert FILTER.dump_python(EVERYTHING, by_alias=True) == {"and": ()}
