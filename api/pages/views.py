"""Saved views: the listing's state kept under a name."""

from typing import Any
from uuid import UUID

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response

from api.pages.asking import RefusedError
from api.pages.forms import mistakes_of
from api.pages.listing import saved_view
from api.pages.listing_state import State, state_of
from api.pages.page import Here, Page, page_router
from api.pages.texts import N_
from domain.permissions import Permission

router = page_router()
_NAME = N_("From 1 to 200 characters.")
_FILTER = N_("These filters cannot be kept; check them in the listing.")


@router.get("/views")
async def views(page: Here) -> Response:
    """All views, to remove some."""
    found = await page.get("/v1/views")
    return _list(page, found["items"])


@router.get("/views/new")
async def new_view(page: Here) -> Response:
    """Ask for a name."""
    state = state_of(page.request.query_params, page.formats)
    return _form(page, state)


@router.post("/views")
async def save_view(page: Here) -> Response:
    """Keep it."""
    state = state_of(page.form, page.formats)
    name, shared = str(page.form.get("name", "")).strip(), "shared" in page.form
    body: dict[str, Any] = {"name": name, "shared": shared, "columns": state.columns}
    body |= {key: state[key] for key in ("sort", "order") if state[key]}
    try:
        body["filter"] = orjson.loads(state.filter_json())
        outcome = await page.send("POST", "/v1/views", body)
    except RequestValidationError:
        return _form(page, state, {"": page.text(_FILTER)})
    except RefusedError as refused:
        if refused.status not in {409, 422}:
            raise
        mistakes = await mistakes_of(page, refused, {"name": "name"})
        if "name" in mistakes:
            mistakes["name"] = page.text(_NAME)
        elif refused.code == "invalid-request":
            mistakes = {"": page.text(_FILTER)}
        return _form(page, state, mistakes)
    await page.get("/v1/views", {"at_least": outcome["position"]})  # so that the listing offers it at once
    return page.go_to(f"{state.address}#view-{outcome['id']}")  # which opens the menu that it is in


@router.post("/views/{id}/remove")
async def remove_view(id: UUID, page: Here) -> Response:
    """Keep it no longer."""
    try:
        outcome = await page.send("DELETE", f"/v1/views/{id}")
    except RefusedError as refused:
        if refused.status not in {403, 409, 412}:
            raise
        found = await page.get("/v1/views")
        name = next((view["name"] for view in found["items"] if view["id"] == str(id)), "")
        mistakes = await mistakes_of(page, refused, {}, name)
        return _list(page, found["items"], mistakes[""], refused.status)
    await page.get("/v1/views", {"at_least": outcome["position"]})
    return page.go_to("/views")


def _list(page: Page, found: list[dict[str, Any]], mistake: str = "", status: int = 200) -> Response:
    may_all = page.may(Permission.MANAGE_DIRECTORY)
    shown = [saved_view(page, view) for view in found]
    return page.render("views.html", status, views=shown, may_all=may_all, mistake=mistake)


def _form(page: Page, state: State, mistakes: dict[str, str] | None = None) -> Response:
    state = state.but()
    return page.render(
        "view_new.html",
        422 if mistakes else 200,
        state=state,
        kept=[*state.query(), *state.columns_query],
        name=str(page.form.get("name", "")),
        shared="shared" in page.form,
        mistakes=mistakes or {},
    )
