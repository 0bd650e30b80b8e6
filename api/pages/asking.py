"""How a page asks the API: the whole application, in this process, for the session that the page was asked for.

Invariant: what a page is answered is what any client of the API would be: same checks, same errors, same recording.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import orjson
from starlette.requests import Request
from starlette.types import Message, Scope

from api.sessions import IN_PROCESS, Session

Query = Mapping[str, Any] | Sequence[tuple[str, Any]]


class RefusedError(Exception):
    """The API refused: its problem document, with a stable code."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(status, problem.get("code"))
        self.status = status
        self.problem = problem
        self.code: str = problem.get("code", "")


async def ask(
    request: Request,
    session: Session,
    method: str,
    path: str,
    query: Query = (),
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Any:
    """The answer's JSON.

    Raises `RefusedError` for every status that is no success.
    """
    content = b"" if body is None else orjson.dumps(body)
    given = {"host": "conversas.local", "content-length": str(len(content))} | dict(headers or {})
    if body is not None:
        given["content-type"] = "application/json"
    scope: Scope = {
        "type": "http",
        "asgi": request.scope["asgi"],
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": urlencode(query, doseq=True).encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
        "client": request.scope.get("client"),
        "server": request.scope.get("server"),
        "state": {},
        IN_PROCESS: session,
    }
    told = iter([{"type": "http.request", "body": content, "more_body": False}])

    async def receive() -> Message:
        message = next(told, None)
        if message is None:
            await asyncio.Event().wait()  # it never goes away before it is answered
        return message or {"type": "http.disconnect"}

    status, parts = 500, list[bytes]()

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    await request.app(scope, receive, send)
    answer = orjson.loads(b"".join(parts) or b"null")
    if status >= 400:
        raise RefusedError(status, answer)
    return answer
