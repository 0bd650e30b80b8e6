"""Every route under /v1 names the permission that it needs, or is on a list of those that need none.

Invariant: a route that forgets fails here, before anybody calls it. That they do refuse is for
`tests/acceptance/test_tokens.py`, which calls them all with a token that grants nothing.
"""

import inspect
from collections.abc import Iterable, Iterator

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.routing import BaseRoute

from api.access import Authenticated, CommandRoute, Needs, command_route
from api.app import create_app
from api.settings import Settings
from domain.permissions import Permission

OPEN_TO_EVERY_CALLER = {"/v1/me"}
"""Who has a token may know whose it is."""
OPEN_TO_ALL = {"/healthz", "/readyz", "/metrics"}


def routes_of(app: FastAPI) -> Iterator[APIRoute]:
    for context in iter_route_contexts(app.routes):
        route: BaseRoute = context.original_route
        if isinstance(route, APIRoute):
            yield route


def dependencies(dependant: Dependant) -> Iterator[object]:
    for each in dependant.dependencies:
        yield each.call
        yield from dependencies(each)


def permissions(route: APIRoute) -> list[Permission]:
    return [call.permission for call in dependencies(route.dependant) if isinstance(call, Needs)]


def unguarded(routes: Iterable[APIRoute]) -> list[str]:
    """The routes under /v1 that name no permission: neither by `needs`, nor by a command that has one."""
    found = []
    for route in routes:
        if not route.path.startswith("/v1/") or route.path in OPEN_TO_EVERY_CALLER or permissions(route):
            continue
        carries_a_command = isinstance(route, CommandRoute) and "commands.execute(" in inspect.getsource(route.endpoint)
        if not carries_a_command:
            found.append(f"{sorted(route.methods)} {route.path}")
    return found


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(Settings(), "postgresql://nowhere")


def test_every_route_names_its_permission(app: FastAPI) -> None:
    routes = list(routes_of(app))
    assert len([route for route in routes if route.path.startswith("/v1/")]) > 60
    assert unguarded(routes) == []


def test_nothing_but_health_and_metrics_is_outside_v1(app: FastAPI) -> None:
    outside = {route.path for route in routes_of(app) if not route.path.startswith("/v1/") and route.include_in_schema}
    assert outside == OPEN_TO_ALL


def test_a_route_names_one_permission(app: FastAPI) -> None:
    assert [route.path for route in routes_of(app) if len(set(permissions(route))) > 1] == []


def test_canary_a_route_that_forgets_is_found() -> None:
    router = APIRouter(prefix="/v1")

    @router.get("/open")
    async def open_to_all() -> None:
        """Ask for nothing."""

    @router.get("/any")
    async def for_any_caller(caller: Authenticated) -> None:
        """Ask for a token, but for no permission."""

    @command_route(router, "/silent", "Carry no command")
    async def carries_no_command() -> None:
        """Look like a command, and be none."""

    app = FastAPI()
    app.include_router(router)
    assert unguarded(routes_of(app)) == ["['GET'] /v1/open", "['GET'] /v1/any", "['POST'] /v1/silent"]
