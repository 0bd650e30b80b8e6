"""Brings a request that carries a command straight to its route.

FastAPI's way there matches one route after the other and opens exit stacks for dependencies that commands do not have
(``make bench``, HTTP, shows what that would cost).

Invariant: what is not certainly a command's is left to FastAPI, which also documents the commands; nothing under /v1
is read of a request whose caller is not known.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api import problems
from api.access import CommandRoute, Handler, authenticate


@dataclass(slots=True)
class _Node:
    """What may follow a part of a path, segment by segment."""

    literals: dict[str, Self] = field(default_factory=dict)
    parameter: Self | None = None
    handlers: dict[str, tuple[Handler, tuple[str, ...]]] = field(default_factory=dict)
    """By method: the handler, and the names of the parameters on the way here."""


class CommandDispatch:
    """Finds a command's handler by its path in a tree, whatever the number of routes."""

    def __init__(self, app: ASGIApp, routes: Iterable[CommandRoute]) -> None:
        self._app = app
        self._root = _Node()
        for route in routes:
            node, names = self._root, []
            for segment in route.path.split("/"):
                if segment.startswith("{"):
                    names.append(segment.strip("{}"))
                    node.parameter = node.parameter or _Node()
                    node = node.parameter
                else:
                    node = node.literals.setdefault(segment, _Node())
            handler = route.get_route_handler()
            node.handlers.update(dict.fromkeys(route.methods or (), (handler, tuple(names))))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or pass it on."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            if (found := self._find(scope)) is None:
                await authenticate(
                    request
                )  # before FastAPI reads a body: strangers learn nothing of what is right in it
                response: ASGIApp = self._app
            else:
                handler, scope["path_params"] = found
                response = await handler(request)
        except Exception as error:  # noqa: BLE001  # every class of error has its answer, a bug as well
            response = await problems.answer_to(request, error)
        await response(scope, receive, send)

    def _find(self, scope: Scope) -> tuple[Handler, dict[str, str]] | None:
        node = self._root
        values = []
        for segment in scope["path"].split("/"):
            deeper = node.literals.get(segment)
            if deeper is None and segment:
                deeper = node.parameter
                values.append(segment)
            if deeper is None:
                return None
            node = deeper
        found = node.handlers.get(scope["method"])
        return None if found is None else (found[0], dict(zip(found[1], values, strict=True)))
