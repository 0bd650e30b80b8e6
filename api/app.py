"""The HTTP application: routes, limits, errors, and what lives as long as the process does.

Invariant: a request that cannot be served soon is refused, never piled up.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

from fastapi import FastAPI
from fastapi_swagger import patch_fastapi
from prometheus_client import Histogram
from psycopg_pool import AsyncConnectionPool
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils.compat import uuid7

from adapters.command_handler import CommandHandler
from adapters.identity import Identity
from adapters.postgres import with_settings
from adapters.writer import Writer
from api import contacts, conversations, directory, history, listing, operations, problems
from api.settings import Settings

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
        conninfo = with_settings(database_url, application="conversas-api")
        size = settings.read_connections
        async with AsyncConnectionPool(
            conninfo, min_size=1, max_size=size, open=False, timeout=5.0, max_waiting=500, kwargs={"autocommit": True}
        ) as pool:
            handler = CommandHandler(database_url, cached_states=settings.cached_states)
            app.state.pool = pool
            app.state.identity = Identity(pool, settings.token_cache_seconds)
            app.state.writer = Writer(
                handler, queue_limit=settings.writer_queue_limit, batch_limit=settings.writer_batch_limit
            )
            try:
                yield
            finally:
                app.state.writer.close()

    app = FastAPI(
        title="Conversas",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    for module in (conversations, listing, contacts, directory, history, operations):
        app.include_router(module.router)
    patch_fastapi(app)  # Swagger UI from this process: the page works without any other host
    problems.install(app)
    app.add_middleware(Limits, max_body_bytes=settings.max_body_bytes)
    _describe_security(app)
    return app


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
            content["application/problem+json"] = content.pop("application/json")


class Limits:
    """Gives each request an id, which comes back as `Request-Id`, and refuses bodies that are too large."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, started = uuid7(), perf_counter()
        scope.setdefault("state", {})["request_id"] = request_id
        header = (b"request-id", str(request_id).encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append(header)
                REQUESTS.labels(scope["method"], message["status"]).observe(perf_counter() - started)
            await send(message)

        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not length.isdigit() or len(length) > 15 or int(length) > self._max_body_bytes:
            await self._refuse(scope, receive, send_with_id)
            return
        if not any(name == b"transfer-encoding" for name, _ in scope["headers"]):
            await self._app(scope, receive, send_with_id)
            return
        body = await self._read(receive)
        if body is None:
            await self._refuse(scope, receive, send_with_id)
            return
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(messages, None) or await receive()

        await self._app(scope, replay, send_with_id)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole of a body of unannounced length; None where it is too large."""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                return None
            if not message.get("more_body", False):
                return bytes(body)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"A body may have {self._max_body_bytes} bytes; put files elsewhere and send their URL and digest."
        await problems.problem(413, "too-large", detail, {"Connection": "close"})(scope, receive, send)
