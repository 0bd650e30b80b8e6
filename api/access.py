"""From an HTTP request to a caller, and to the request that the writer handles.

Invariant: no route reaches the log or a read model without a `Caller`.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_type_hints
from uuid import UUID

import orjson
from fastapi import APIRouter, Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from adapters import deciding
from adapters.identity import Identity
from adapters.writer import Writer
from api.problems import Problem, UnauthenticatedError
from api.queries import CommandAnswer, fetch
from api.sessions import session_of
from domain.commands import Command
from domain.envelope import Stream
from domain.errors import PermissionDeniedError, VersionConflictError
from domain.events import Surface
from domain.permissions import Caller, Permission, Scope, may

CLIENT_SURFACES = {
    surface.value.encode(): surface for surface in Surface if surface not in {Surface.IMPORT, Surface.BULK}
}
BODY_SECONDS = 30.0
MOST_ERRORS = 100
MOST_TOKEN_BYTES = 8_192
_ETAG = re.compile(rb'(W/)?"[0-9]{1,18}"|[0-9]{1,18}|\*')
_PRINTABLE = re.compile(rb"[\x21-\x7e]{1,200}")
_UUID = re.compile(rb"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_EXPECTED = {
    _ETAG: 'expected a version as the ETag has it, such as "3"',
    _PRINTABLE: "expected 1 to 200 printable ASCII characters without blanks",
    _UUID: "expected a UUID",
}


async def authenticate(request: Request) -> Caller:
    """The caller who holds the request's bearer token, or who signed in to the session that it comes from."""
    identity: Identity = request.app.state.identity
    given = [value for name, value in request.scope["headers"] if name == b"authorization"]
    if not given and (session := session_of(request)) is not None:
        caller = await identity.of_session(session.workspace_id, session.token_id, session.id)
    else:
        scheme, _, secret = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        if scheme.lower() != b"bearer" or not secret or len(secret) > MOST_TOKEN_BYTES:
            raise UnauthenticatedError
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


class Needs:
    """A dependency: the caller of a route, who must have ``permission``, in ``scope`` where one is given."""

    def __init__(self, permission: Permission, scope: Scope | None = None) -> None:
        self.permission = permission
        self.scope = scope

    async def __call__(self, request: Request) -> Caller:
        """The caller."""
        caller = await authenticate(request)
        require(caller, self.permission)
        if self.scope is not None and caller.scope(self.permission) is not self.scope:
            msg = f"This needs the permission '{self.permission}' in the scope '{self.scope}'."
            raise PermissionDeniedError(msg)
        return caller


def needs(permission: Permission, scope: Scope | None = None) -> Any:
    """The annotation of a route's ``caller``, who must have ``permission`` (in ``scope``): `Annotated[Caller, …]`."""
    return Depends(Needs(permission, scope))


async def only_known_parameters(request: Request) -> None:
    """Refuse query parameters that a route under /v1 does not have: what is misspelt is not taken for absent."""
    if request.scope["query_string"] and request.scope["path"].startswith("/v1/"):
        _refuse_unknown(request, frozenset(_names(request.scope["route"].dependant)))


def _names(dependant: Dependant) -> Iterator[str]:
    """The query parameters of a route, one by one or as the fields of a model."""
    for field in dependant.query_params:
        model = field.field_info.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            yield from model.model_fields
        else:
            yield field.alias
    for each in dependant.dependencies:
        yield from _names(each)


def _refuse_unknown(request: Request, known: frozenset[str] = frozenset()) -> None:
    unknown = [name for name in request.query_params if name not in known]
    if unknown:
        message = "is no parameter of this route"
        raise RequestValidationError([{"loc": ("query", name), "type": "unknown", "msg": message} for name in unknown])


class Commanding:
    """One HTTP request that carries a command, and the arguments parsed from it."""

    def __init__(
        self, request: Request, caller: Caller, headers: Mapping[bytes, bytes], route: str, arguments: dict[str, Any]
    ) -> None:
        self.caller = caller
        self.request = request
        self._headers = headers
        self._route = route
        self._arguments = arguments

    async def execute(
        self, command: Command, id_: UUID, *, surface: Surface | None = None, key: str | None = None
    ) -> deciding.Outcome:
        """The outcome of ``command`` on the aggregate ``id_``, once it is committed.

        ``key`` is a further idempotency key, which the command itself brings along.
        """
        given = _form(self._headers, b"idempotency-key", _PRINTABLE)
        actor = self.caller.actor
        whose = f"{actor.kind}:{actor.id}"  # a key is its actor's: whether others used it is not told
        keys = [name for name in (given and f"key:{whose} {given}", key) if name]
        from_header = self._surface()
        if surface is not None and from_header not in {None, surface}:
            raise _invalid("surface", f"contradicts the body, which says '{surface}'")
        request_id = self.request.state.request_id
        correlation_id = _form(self._headers, b"correlation-id", _UUID)
        handling: Writer = self.request.app.state.writer
        asked = deciding.Request(
            stream=Stream(self.caller.workspace_id, command.STREAM, id_),
            command=command,
            caller=self.caller,
            surface=surface or from_header or Surface.API,
            request_id=request_id,
            correlation_id=UUID(correlation_id) if correlation_id else request_id,
            causation_id=_form(self._headers, b"causation-id", _PRINTABLE),
            expected_version=self._expected_version(),
            keys=tuple(keys),
            fingerprint=self._fingerprint() if keys else b"",
        )
        try:
            return await handling.execute(asked)
        except VersionConflictError as conflict:
            conflict.since = await self._since(id_, conflict.expected)
            raise

    async def _since(self, id_: UUID, version: int) -> list[dict[str, Any]]:
        """What happened after ``version``, for a caller who may see it: the first hundred events, without contents."""
        return await fetch(
            self.request,
            self.caller,
            "select version, topic, actor_kind || ':' || actor_id as actor, surface, recorded_at from events"
            " where workspace_id = %s and stream_id = %s and version > %s order by version limit 100",
            (self.caller.workspace_id, id_, version),
        )

    def _expected_version(self) -> int | None:
        value = _form(self._headers, b"if-match", _ETAG)
        return None if value in {None, "*"} else int(str(value).strip('W/"'))

    def _surface(self) -> Surface | None:
        value = self._headers.get(b"surface")
        if value is None:
            return None
        try:
            return CLIENT_SURFACES[value]
        except KeyError:
            raise _invalid("surface", f"expected one of {', '.join(CLIENT_SURFACES.values())}") from None

    def _fingerprint(self) -> bytes:
        """A digest of who asks for what: the same request again has the same one, however it is written."""
        asked = [self.caller.actor.kind, self.caller.actor.id, self._route]
        asked += [a.model_dump_json() if isinstance(a, BaseModel) else str(a) for a in self._arguments.values()]
        return hashlib.sha256("\n".join(asked).encode()).digest()


async def _given_by_the_route() -> None:
    """Keeps FastAPI from taking `Commanding` for a part of the request."""


Commands = Annotated[Commanding, Depends(_given_by_the_route)]
"""What a handler of a `CommandRoute` carries out its command with."""


Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class CommandRoute(APIRoute):
    """A route that carries a command: as FastAPI documents it, without its general way of finding arguments.

    A handler takes path parameters, at most one JSON body, and `Commanding`; parsing just that costs far less
    (``make bench``, HTTP).
    """

    def get_route_handler(self) -> Handler:
        """What is run for a request."""
        hints = get_type_hints(self.endpoint, include_extras=True)
        places = {name: TypeAdapter(hints[name]) for name in self.param_convertors}
        body_name = next((name for name in hints if name not in {*places, "commands", "return"}), None)
        body_type = TypeAdapter(hints[body_name]) if body_name else None
        route = f"{sorted(self.methods or ())} {self.path}"

        async def handler(request: Request) -> Response:
            headers = dict(request.scope["headers"])
            caller = await authenticate(request)
            if request.scope["query_string"]:
                _refuse_unknown(request)
            found = request.path_params
            arguments = {
                name: _parse(type_.validate_python, found[name], "path", name) for name, type_ in places.items()
            }
            if body_name is not None and body_type is not None:
                if headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
                    raise HTTPException(415, "Send JSON, and say so: Content-Type: application/json")
                arguments[body_name] = _parse(body_type.validate_json, await _body(request), "body")
            else:
                await _body(request)
            commands = Commanding(request, caller, headers, route, arguments)
            response: Response = await self.endpoint(**arguments, commands=commands)
            return response

        return handler


async def _body(request: Request) -> bytes:
    """All of the body: also of one that nobody wants, so that no command runs before its request is through."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.body()
    except TimeoutError:
        raise HTTPException(408, f"The body did not come within {BODY_SECONDS:.0f} seconds") from None


def _parse(validate: Callable[[Any], Any], value: Any, *place: str) -> Any:
    try:
        return validate(value)
    except ValidationError as error:
        if error.error_count() > MOST_ERRORS:  # describing them all would keep everybody else waiting
            few = [{"loc": place, "type": "too_many_errors", "msg": f"{error.error_count()} things are wrong with it"}]
            raise RequestValidationError(few) from None
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([{**e, "loc": (*place, *e["loc"])} for e in found]) from None


def answer(outcome: deciding.Outcome, status: int = 200, location: str | None = None) -> Response:
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
    if outcome.warnings:
        body["warnings"] = outcome.warnings
    headers = {"ETag": f'"{outcome.version}"'}
    if location is not None:
        headers["Location"] = f"{location}/{outcome.stream_id}"
    return Response(orjson.dumps(body), status, headers, "application/json")


def _form(headers: Mapping[bytes, bytes], name: bytes, form: re.Pattern[bytes]) -> str | None:
    """The header's value, which must have ``form``; None where it did not come."""
    value = headers.get(name)
    if value is None:
        return None
    if not form.fullmatch(value):
        raise _invalid(name.decode(), _EXPECTED[form])
    return value.decode("ascii")


def _invalid(header: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("header", header), "type": "invalid_header", "msg": message}])


def _header(name: str, description: str, **schema: Any) -> dict[str, Any]:
    # Without an example: /docs would fill it in, and the second command under one key is refused.
    return {
        "name": name,
        "in": "header",
        "required": False,
        "schema": {"type": "string", **schema},
        "description": description,
    }


_WORD = "^[!-~]{1,200}$"


_COMMAND_HEADERS = [
    _header(
        "Idempotency-Key",
        "Your first answer to a key is given again; another request of yours under it is refused.",
        pattern=_WORD,
    ),
    _header(
        "If-Match",
        'Refuse (412) unless it is at this version, such as "3".',
        pattern=r'^((W/)?"[0-9]{1,18}"|[0-9]{1,18}|\*)$',
    ),
    _header("Surface", "Where the actor does it; an agent names no program's.", enum=sorted(CLIENT_SURFACES.values())),
    _header("Correlation-Id", "Ties together what belongs together.", format="uuid"),
    _header("Causation-Id", "What made you ask, such as the id of an event.", pattern=_WORD),
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
COMMAND_PROBLEMS: dict[int | str, dict[str, Any]] = QUERY_PROBLEMS | {
    409: _PROBLEM | {"description": "A rule refuses this in the present state"},
    412: _PROBLEM | {"description": "It has changed since the version in If-Match"},
    413: _PROBLEM | {"description": "The body is too large"},
    415: _PROBLEM | {"description": "The body is not announced as JSON"},
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
    """Make a route of a handler that carries a command; ``example`` is a body that runs on the demo."""
    docs: dict[str, Any] = {"parameters": _COMMAND_HEADERS}
    if example is not None:
        docs["requestBody"] = {"content": {"application/json": {"example": example}}}

    def register(endpoint: Route) -> Route:
        router.add_api_route(
            path,
            endpoint,
            methods=[method],
            summary=summary,
            status_code=status,
            response_model=model,
            responses=COMMAND_PROBLEMS,
            openapi_extra=docs,
            route_class_override=CommandRoute,
        )
        return endpoint

    return register
