"""From an HTTP request to a caller, and to the request that the writer handles.

Invariant: no route reaches the log or a read model without a `Caller`.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar
from uuid import UUID

import orjson
from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.responses import Response

from adapters import writer
from adapters.identity import Identity
from api.problems import Problem, UnauthenticatedError
from api.queries import CommandAnswer
from domain.commands import Command
from domain.envelope import Stream
from domain.errors import PermissionDeniedError
from domain.events import Surface
from domain.permissions import Caller, Permission, may

CLIENT_SURFACES = frozenset(Surface) - {Surface.IMPORT, Surface.BULK}
_ETAG = re.compile(r'(?:W/)?"?([0-9]{1,18})"?')
_PRINTABLE = re.compile(r"[\x21-\x7e]{1,200}")


async def authenticate(request: Request) -> Caller:
    """The caller who holds the request's bearer token."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret or len(secret) > 500:
        raise UnauthenticatedError
    identity: Identity = request.app.state.identity
    caller = await identity.caller(secret.strip())
    if caller is None:
        raise UnauthenticatedError
    return caller


Authenticated = Annotated[Caller, Depends(authenticate)]


def require(caller: Caller, permission: Permission) -> None:
    """Refuse a caller to whom ``permission`` is not granted in any scope."""
    if not may(caller, permission):
        msg = f"This needs the permission '{permission}', which your role does not grant."
        raise PermissionDeniedError(msg)


class Commanding:
    """One HTTP request that carries a command."""

    def __init__(self, request: Request, caller: Caller) -> None:
        self.caller = caller
        self._request = request

    async def execute(
        self,
        command: Command,
        id_: UUID,
        *,
        surface: Surface | None = None,
        key: str | None = None,
    ) -> writer.Outcome:
        """The outcome of ``command`` on the aggregate ``id_``, once it is committed.

        ``key`` is a further idempotency key, which the command itself brings along.
        """
        headers = self._request.headers
        keys = [name for name in (self._idempotency_key(), key) if name]
        request_id = self._request.state.request_id
        outcome: writer.Outcome = await self._request.app.state.writer.execute(
            writer.Request(
                stream=Stream(self.caller.workspace_id, command.STREAM, id_),
                command=command,
                caller=self.caller,
                surface=surface or self._surface(),
                request_id=request_id,
                correlation_id=_uuid(headers.get("correlation-id")) or request_id,
                causation_id=_checked(headers, "causation-id", _PRINTABLE),
                expected_version=self._expected_version(),
                keys=tuple(keys),
                fingerprint=await self._fingerprint() if keys else b"",
            )
        )
        return outcome

    def _idempotency_key(self) -> str | None:
        key = _checked(self._request.headers, "idempotency-key", _PRINTABLE)
        return f"key:{key}" if key else None

    def _expected_version(self) -> int | None:
        value = self._request.headers.get("if-match")
        if value is None or value.strip() == "*":
            return None
        match = _ETAG.fullmatch(value.strip())
        if match is None:
            raise _invalid("if-match", 'a version as the ETag has it, such as "3"')
        return int(match[1])

    def _surface(self) -> Surface:
        value = self._request.headers.get("surface", Surface.API.value)
        if value not in CLIENT_SURFACES:
            raise _invalid("surface", f"one of {', '.join(sorted(CLIENT_SURFACES))}")
        return Surface(value)

    async def _fingerprint(self) -> bytes:
        """A digest of who asks for what: the same request again has the same one."""
        request, actor = self._request, self.caller.actor
        about = f"{actor.kind}:{actor.id}\n{request.method} {request.url.path}\n".encode("utf-8", "surrogatepass")
        return hashlib.sha256(about + await request.body()).digest()


async def commanding(request: Request, caller: Authenticated) -> Commanding:
    """What a route needs to carry out a command."""
    return Commanding(request, caller)


Commands = Annotated[Commanding, Depends(commanding)]


def answer(outcome: writer.Outcome, status: int = 200, location: str | None = None) -> Response:
    """The outcome as a response, its version as the ETag."""
    body: dict[str, Any] = {
        "id": outcome.stream_id,
        "version": outcome.version,
        "position": outcome.position,
        "events": outcome.events,
        "replayed": outcome.replayed,
    }
    if outcome.status is not None:
        body["status"] = outcome.status
    headers = {"ETag": f'"{outcome.version}"'}
    if location is not None:
        headers["Location"] = f"{location}/{outcome.stream_id}"
    return Response(orjson.dumps(body), status, headers, "application/json")


def _uuid(value: str | None) -> UUID | None:
    try:
        return UUID(value) if value else None
    except ValueError:
        raise _invalid("correlation-id", "a UUID") from None


def _checked(headers: Any, name: str, form: re.Pattern[str]) -> str | None:
    value: str | None = headers.get(name)
    if value is not None and not form.fullmatch(value):
        raise _invalid(name, "1 to 200 printable ASCII characters without blanks")
    return value


def _invalid(header: str, expected: str) -> RequestValidationError:
    return RequestValidationError(
        [{"loc": ("header", header), "type": "invalid_header", "msg": f"expected {expected}"}]
    )


def _header(name: str, description: str, example: str) -> dict[str, Any]:
    schema = {"type": "string", "maxLength": 200}
    return {
        "name": name,
        "in": "header",
        "required": False,
        "schema": schema,
        "description": description,
        "example": example,
    }


_COMMAND_HEADERS = [
    _header("Idempotency-Key", "The first answer to a key is given again; another request under it is refused.", "a1"),
    _header("If-Match", "Refuse (412) unless it is at this version.", '"3"'),
    _header("Surface", "Where the actor does it: inbox, listing, bot, channel, automation or api.", "inbox"),
    _header("Correlation-Id", "A UUID that ties together what belongs together.", str(UUID(int=1))),
    _header("Causation-Id", "What made you ask, such as the id of an event.", "evt-17"),
]
_PROBLEM = {"model": Problem, "content": {"application/problem+json": {}}}
QUERY_PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: _PROBLEM | {"description": "No valid access token"},
    403: _PROBLEM | {"description": "Your role does not grant this"},
    404: _PROBLEM | {"description": "Not there, or out of your scope"},
    422: _PROBLEM | {"description": "The request does not fit its description"},
    503: _PROBLEM
    | {"description": "A dependency is down, or too much is waiting; Retry-After says when to come again"},
}
_COMMAND_PROBLEMS: dict[int | str, dict[str, Any]] = QUERY_PROBLEMS | {
    409: _PROBLEM | {"description": "A rule refuses this in the present state"},
    412: _PROBLEM | {"description": "It has changed since the version in If-Match"},
    413: _PROBLEM | {"description": "The body is too large"},
}

Route = TypeVar("Route", bound=Callable[..., Any])


def command_route(
    router: APIRouter,
    path: str,
    summary: str,
    *,
    method: str = "POST",
    status: int = 200,
    model: type[BaseModel] = CommandAnswer,
    example: dict[str, Any] | None = None,
) -> Callable[[Route], Route]:
    """A route that carries a command, documented alike everywhere; ``example`` is a body that runs on the demo."""
    docs: dict[str, Any] = {"parameters": _COMMAND_HEADERS}
    if example is not None:
        docs["requestBody"] = {"content": {"application/json": {"example": example}}}
    return router.api_route(
        path,
        methods=[method],
        summary=summary,
        status_code=status,
        response_model=model,
        responses=_COMMAND_PROBLEMS,
        openapi_extra=docs,
    )
