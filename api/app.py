"""The HTTP application: routes, limits, errors, and what lives as long as the process does.

Invariant: a request that cannot be served soon is refused, never piled up.
"""

import gc
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI
from fastapi_swagger import patch_fastapi
from prometheus_client import Histogram
from psycopg import AsyncConnection
from psycopg.pq import PipelineStatus
from psycopg_pool import AsyncConnectionPool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils.compat import uuid7

from adapters.accesses import Lately
from adapters.bulk import BulkRunner
from adapters.command_handler import CommandHandler
from adapters.contact_keys import KeyReader
from adapters.identity import Identity
from adapters.live import Live
from adapters.postgres import QUERY_LIMITS, Role, with_settings
from adapters.presence import Presences
from adapters.token_uses import TokenUses
from adapters.writer import Writer
from api import (
    accesses,
    asyncapi,
    attributes,
    bulk,
    contacts,
    conversations,
    directory,
    exports,
    history,
    history_export,
    identities,
    listing,
    metrics,
    operations,
    presence,
    problems,
    proofs,
    reading,
    streams,
    suggestions,
    transfer_targets,
    views,
)
from api.access import CommandRoute, only_known_parameters
from api.dispatch import CommandDispatch
from api.keys import contact_keys_of, keys_url
from api.pages import site
from api.settings import Settings
from api.streams import Streams

if TYPE_CHECKING:
    from adapters.oidc_sign_in import SignIn

log = logging.getLogger(__name__)

REQUESTS = Histogram(
    "conversas_http_request_seconds",
    "Time until the answer began",
    ["method", "status"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)

DESCRIPTION = """
Every conversation of a company's support channels, in every status, and how it got there.

Press **Authorize**, give the access token that `make run` printed (or one of `conversas token create`), and try any
route: the examples run on the demo data. A command's answer holds a
`position`; give it to a query as `at_least` to read your own write. Errors are RFC 9457 problem documents with a
stable `code`.
"""


def create_app(settings: Settings, database_url: str) -> FastAPI:
    """The application on the database at ``database_url``."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        size = settings.read_connections
        # Searches must not keep those waiting who only want to know whose a token is, or whether we are ready.
        async with (
            _pool(database_url, Role.READER, size) as pool,
            _pool(database_url, Role.ACCESS, 2) as quick_pool,
            _pool(database_url, Role.WRITER, 1) as bulk_pool,
            _pool(database_url, Role.READER, 1) as live_pool,
            _keys_pool(keys_url(settings, database_url)) as keys_pool,
            _identity(settings, quick_pool) as (identity, sign_in),
        ):
            keys = contact_keys_of(settings, database_url)
            handler = CommandHandler(database_url, keys, cached_states=settings.cached_states)
            reader = app.state.keys = KeyReader(keys_pool, keys.master)
            app.state.pool = pool
            app.state.quick_pool = quick_pool
            app.state.identity = identity
            app.state.lately = Lately()
            app.state.sign_in = sign_in
            app.state.signer = proofs.signer_of(settings)
            presences = app.state.presences = Presences(quick_pool, settings.presence_seconds)
            app.state.writer = Writer(
                handler,
                queue_limit=settings.writer_queue_limit,
                batch_limit=settings.writer_batch_limit,
                presences=presences,
            )
            app.state.streams = Streams(Live(database_url, live_pool, reader, settings.open_streams), presences)
            chunk, keep_days = settings.bulk_chunk, settings.bulk_keep_days
            app.state.bulk = BulkRunner(bulk_pool, app.state.writer, identity, chunk=chunk, keep_days=keep_days)
            try:
                async with app.state.bulk, app.state.streams:
                    yield
            finally:
                app.state.writer.close()
                reader.close()

    app = FastAPI(
        title="Conversas",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
        dependencies=[Depends(only_known_parameters)],
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    commands: list[CommandRoute] = []
    for module in (
        conversations,
        streams,  # before the listing: its paths are no ids of conversations
        exports,
        suggestions,
        listing,
        reading,
        metrics,
        bulk,
        contacts,
        attributes,
        directory,
        identities,
        views,
        history,
        history_export,
        accesses,
        proofs,
        presence,
        transfer_targets,
        operations,
    ):
        app.include_router(module.router)
        commands += [route for route in module.router.routes if isinstance(route, CommandRoute)]
    app.include_router(asyncapi.install(settings))
    patch_fastapi(
        app, redirect_from_root_to_docs=False
    )  # Swagger UI from this process: the page works without any other host
    problems.install(app)
    site.install(app, settings)
    app.add_middleware(CommandDispatch, routes=commands)
    app.add_middleware(Limits, max_body_bytes=settings.max_body_bytes)
    _describe_security(app)
    return app


def settle() -> None:
    """Take what is loaded out of the garbage collector's sight and let it look less often: it slowed every request.

    ``make bench`` (HTTP) shows the effect; call it once, before serving.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@asynccontextmanager
async def _identity(
    settings: Settings, pool: AsyncConnectionPool[Any]
) -> AsyncIterator[tuple[Identity, "SignIn | None"]]:
    """Who is calling: by our own tokens and, where an outside issuer is set, by what that one says."""
    async with AsyncExitStack() as stack:
        uses = await stack.enter_async_context(TokenUses(pool))
        verifier, sign_in = None, None
        if settings.oidc_issuer is not None:
            from api.outside import issuer_of  # noqa: PLC0415  # cryptography that most need not load

            verifier, sign_in = await stack.enter_async_context(issuer_of(settings, settings.oidc_issuer))
        yield Identity(pool, settings.token_cache_seconds, uses=uses, verifier=verifier), sign_in


def _pool(database_url: str, role: Role, size: int) -> AsyncConnectionPool[Any]:
    return _pool_of(with_settings(database_url, QUERY_LIMITS | {"role": role.value}, application="conversas-api"), size)


def _keys_pool(url: str) -> AsyncConnectionPool[Any]:
    return _pool_of(with_settings(url, QUERY_LIMITS, application="conversas-api-keys"), 2)


def _pool_of(conninfo: str, size: int) -> AsyncConnectionPool[Any]:
    return AsyncConnectionPool(
        conninfo,
        min_size=1,
        max_size=size,
        open=False,
        timeout=5.0,
        max_waiting=500,
        reset=_discard_interrupted,
        kwargs={"autocommit": True},
    )


async def _discard_interrupted(connection: AsyncConnection[Any]) -> None:
    """Close a connection whose pipeline a cancelled request left open: the pool makes another."""
    if connection.pgconn.pipeline_status != PipelineStatus.OFF:
        await connection.close()


def _describe_security(app: FastAPI) -> None:
    """Say in the OpenAPI document that routes under /v1 take a bearer token."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["token"] = {"type": "http", "scheme": "bearer"}
            for path, operations_ in document["paths"].items():
                if path.startswith("/v1/"):
                    for operation in operations_.values():
                        operation["security"] = [{"token": []}]
                        _describe_problems(operation["responses"])
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _describe_problems(responses: dict[str, dict[str, Any]]) -> None:
    """Give problem documents their own media type: FastAPI puts every model under the route's."""
    for response in responses.values():
        content = response.get("content", {})
        if "application/problem+json" in content:
            content["application/problem+json"] = content.pop(
                next(type_ for type_ in content if "problem" not in type_)
            )


_PRIVATE = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


class Limits:
    """Gives each request an id, which comes back as `Request-Id`, and refuses bodies that are too large.

    What the API answers is kept nowhere: a session's cookie, unlike a token, does not keep caches from it.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._too_large = f"A body may have {max_body_bytes} bytes; put files elsewhere and send their URL and digest."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, started = uuid7(), perf_counter()
        scope.setdefault("state", {})["request_id"] = request_id
        header, is_api = (b"request-id", str(request_id).encode()), scope["path"].startswith("/v1/")

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [header, *(_PRIVATE if is_api else ())]
                REQUESTS.labels(scope["method"], message["status"]).observe(perf_counter() - started)
            await send(message)

        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not length.isdigit() or len(length) > 15 or int(length) > self._max_body_bytes:
            await self._refuse(scope, receive, send_with_id)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise HTTPException(413, self._too_large)
            return message

        await self._app(scope, counted, send_with_id)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        await problems.problem(413, "too-large", self._too_large, {"Connection": "close"})(scope, receive, send)
