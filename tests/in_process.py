"""The HTTP application in the test's own process, on a database of its own: to patch it, or to ask it very often.

Invariant: requests go through the whole application, middleware included; only the socket is missing.
"""

import hashlib
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

import httpx

from adapters.command_handler import CommandHandler
from adapters.deciding import Request
from api.app import create_app
from api.settings import Settings
from domain.commands import Command
from domain.envelope import Stream
from domain.events import Actor, ActorKind, Surface
from domain.permissions import BUILT_IN_ROLES, Caller

sys.modules.setdefault("sniffio", None)  # type: ignore[arg-type]  # httpx looks for it on the disk for each request
SYSTEM = Actor(kind=ActorKind.SYSTEM, id="tests")


def id_of(name: str) -> UUID:
    """An id for ``name``, always the same."""
    return uuid5(NAMESPACE_URL, f"conversas:tests:{name}")


def carry_out(
    handler: CommandHandler, workspace_id: UUID, commands: Iterable[tuple[UUID, Command]], key: str | None = None
) -> None:
    """Carry the commands out as the system, all of which must succeed; ``key`` is the first one's idempotency key."""
    caller = Caller(workspace_id, SYSTEM, BUILT_IN_ROLES["admin"])
    requests = [
        Request(
            stream=Stream(workspace_id, command.STREAM, id_),
            command=command,
            caller=caller,
            surface=Surface.API,
            request_id=uuid4(),
            correlation_id=uuid4(),
            keys=(key,) if key and number == 0 else (),
            fingerprint=hashlib.sha256(repr(command).encode()).digest(),
        )
        for number, (id_, command) in enumerate(commands)
    ]
    for start in range(0, len(requests), 500):
        for answer in handler.handle(requests[start : start + 500]):
            if isinstance(answer, Exception):
                raise answer


@asynccontextmanager
async def serving(database: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application on ``database``, without a token."""
    app = create_app(Settings(database_url=database), database)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://conversas", timeout=30) as client,
    ):
        yield client
