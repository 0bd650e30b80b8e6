"""Nothing of one workspace reaches another: every route, asked by an admin with every id of the other workspace.

A is the demo workspace, B is full of marks and ids that stand nowhere else. What is asked of is read off the OpenAPI
document, so that a new route is asked too. Canaries: without the application's own conditions row-level security holds
alone; with that off as well, these tests find B's bytes.
"""

import asyncio
import copy
import json
import re
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID

import psycopg
import pytest
from contact_keyring import keys_of
from databases import prepare, project
from fastapi import FastAPI
from in_process import carry_out, id_of
from psycopg.conninfo import make_conninfo

from adapters.command_handler import CommandHandler
from adapters.event_log import EventLog, in_clear, people_of
from adapters.identity import digest
from api import demo
from api.app import create_app
from api.settings import Settings
from domain.commands import (
    AddLabel,
    AddNote,
    Assume,
    Command,
    CreateSector,
    CreateWorkspace,
    DefineRole,
    Finalize,
    HandOffToBot,
    IssueToken,
    JoinSector,
    OpenConversation,
    ReceiveMessage,
    RegisterAgent,
    RegisterContact,
    SendMessage,
    SetAttribute,
    role_id,
)
from domain.events import Actor, ActorKind, ContactDetails, Surface
from domain.permissions import Permission, Scope

DOCUMENT: dict[str, Any] = create_app(Settings(), "postgresql://nowhere").openapi()
TOKEN_A, TOKEN_B = "cvs_isolation-tests-admin-of-a", "cvs_isolation-tests-admin-of-b"
KEY_B = "isolation-tests-key-of-b"
B = id_of("isolation: workspace b")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MARK = re.compile(r"zq7mark[0-9]+")
STREAM_SECONDS = 0.3
AT_ONCE = 30

Work = Callable[[], Coroutine[Any, Any, None]]


# What stands in workspace B


def mark(number: int) -> str:
    """A text that stands nowhere else."""
    return f"zq7mark{number}"


def in_b(name: str) -> UUID:
    return id_of(f"isolation: b's {name}")


def story() -> Iterator[tuple[UUID, Command]]:
    """Everything that there can be in a workspace, every text with a mark of its own."""
    admin, agent = in_b("admin"), in_b("agent")
    yield B, CreateWorkspace(slug=mark(1), name=mark(2))
    yield in_b("sector"), CreateSector(name=mark(3))
    yield in_b("other sector"), CreateSector(name=mark(4))
    yield role_id(mark(5)), DefineRole(name=mark(5), grants={Permission.VIEW: Scope.ALL})
    for id_, name, role in ((admin, mark(6), "admin"), (agent, mark(7), "agent")):
        yield id_, RegisterAgent(name=name, role=role)
        yield id_, JoinSector(sector_id=in_b("sector"))
    herself = Actor(kind=ActorKind.AGENT, id=str(admin))
    yield (
        in_b("token"),
        IssueToken(name=mark(8), secret_sha256=digest(TOKEN_B.encode()), actor=herself, role="admin"),
    )
    details = ContactDetails(name=mark(9), emails=(f"{mark(10)}@example.com",), attributes={mark(11): mark(12)})
    yield in_b("contact"), RegisterContact(contact_id=in_b("contact"), details=details)
    for number, status in enumerate(("pending", "with bot", "in progress", "finalized")):
        yield from _conversation(in_b(f"conversation {status}"), 100 + 20 * number, status, agent)


def _conversation(id_: UUID, first: int, status: str, agent: UUID) -> Iterator[tuple[UUID, Command]]:
    marks = iter(range(first, first + 20))
    opening = OpenConversation(
        protocol=mark(next(marks)),
        channel=mark(next(marks)),
        contact_id=in_b("contact"),
        sector_id=in_b("sector"),
        subject=mark(next(marks)),
    )
    author = Actor(kind=ActorKind.AGENT, id=str(agent))
    yield id_, opening
    yield id_, ReceiveMessage(message_id=id_of(f"{id_} 1"), text=mark(next(marks)))
    yield id_, AddNote(message_id=id_of(f"{id_} 2"), text=mark(next(marks)), author=author)
    yield id_, AddLabel(label=mark(next(marks)))
    yield id_, SetAttribute(key=mark(next(marks)), value=mark(next(marks)))
    if status == "with bot":
        yield id_, HandOffToBot(bot=mark(next(marks)), reason=mark(next(marks)))
    elif status != "pending":
        yield id_, Assume(agent_id=agent)
        yield id_, SendMessage(message_id=id_of(f"{id_} 3"), text=mark(next(marks)), author=author)
    if status == "finalized":
        yield id_, Finalize(surface=Surface.LISTING, outcome=mark(next(marks)), comment=mark(next(marks)))


def rows_of(database: str, workspace: UUID) -> dict[str, list[str]]:
    """All rows of the workspace, as text, by table."""
    with psycopg.connect(database) as connection:
        tables = connection.execute(
            "select c.relname, a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid"
            " where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'"
            " and c.relname <> 'token_uses'"  # written in the background, when B's own token was used
            " and (a.attname = 'workspace_id' or (c.relname = 'workspaces' and a.attname = 'id'))"
        ).fetchall()
        return {
            table: [
                row
                for (row,) in connection.execute(
                    f"select row_to_json(t)::text from {table} t where {column} = %s order by 1", (workspace,)
                )
            ]
            for table, column in tables
        }


def names_in(text: str) -> set[str]:
    """The ids and marks in ``text``."""
    lowered = text.lower()
    return {*_UUID.findall(lowered), *_MARK.findall(lowered)}


def names_of(rows: dict[str, list[str]]) -> set[str]:
    """The ids and marks in ``rows``, in the events' bytes too."""
    texts = [row for theirs in rows.values() for row in theirs]
    raw = [
        bytes.fromhex(found).decode(errors="replace")
        for text in texts
        for found in re.findall(r'"\\\\x([0-9a-f]+)"', text)
    ]
    return {name for text in (*texts, *raw) for name in names_in(text)}


def sealed_names(database: str, workspace: UUID) -> set[str]:
    """The ids and marks that are in the workspace's events only once they are opened."""
    with closing(keys_of(database)) as keys, EventLog(database) as log:
        rows = [row for row in log.read_rows(0, 100_000) if row.workspace_id == workspace]
        ciphers = keys.find(people_of(rows))
        return {name for row in rows for name in names_in(in_clear(row, ciphers).data.decode())}


# Asking


@dataclass(frozen=True)
class Asked:
    """One request of A's admin."""

    method: str
    template: str
    path: str
    body: Any = None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def sent(self) -> set[str]:
        return names_in(json.dumps([self.path, self.body, self.headers]))


async def call(app: FastAPI, asked: Asked, token: str) -> tuple[int, str]:
    """Status and everything that was answered, headers too; of a stream what comes in a moment."""
    status, answered = 0, b""
    path, _, query = asked.path.partition("?")
    content = b"" if asked.body is None else json.dumps(asked.body).encode()
    headers = [(b"authorization", f"Bearer {token}".encode()), (b"host", b"conversas")]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in asked.headers]
    messages = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.sleep(STREAM_SECONDS if is_stream(asked.template) else 30)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status, answered
        if message["type"] == "http.response.start":
            status = message["status"]
            answered += b"\n".join(b": ".join(header) for header in message["headers"]) + b"\n\n"
        answered += message.get("body", b"")

    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1"}
    scope |= {"method": asked.method.upper(), "path": path, "raw_path": path.encode(), "root_path": ""}
    scope |= {"query_string": query.encode(), "headers": headers, "client": ("127.0.0.1", 1), "scheme": "http"}
    scope |= {"server": ("conversas", 80), "state": {}}
    async with asyncio.timeout(30):
        await app(scope, receive, send)
    return status, answered.decode()


def is_stream(template: str) -> bool:
    return template.endswith("/stream")


async def together(work: Iterable[Work]) -> None:
    room = asyncio.Semaphore(AT_ONCE)

    async def one(what: Work) -> None:
        async with room:
            await what()

    await asyncio.gather(*(one(what) for what in work))


# Every id place of every route


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return resolved(DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]])
    return schema


Place = tuple[str | int, ...]


def id_places(schema: dict[str, Any], at: Place = (), depth: int = 4) -> Iterator[Place]:
    """Where in a value of ``schema`` a UUID may stand."""
    schema = resolved(schema)
    if schema.get("format") == "uuid":
        yield at
    if depth == 0:
        return
    for either in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from id_places(either, at, depth)
    for name, below in schema.get("properties", {}).items():
        yield from id_places(below, (*at, name), depth - 1)
    if isinstance(schema.get("items"), dict):
        yield from id_places(schema["items"], (*at, 0), depth - 1)


def put(body: Any, at: Place, value: Any) -> Any:
    """``body`` with ``value`` at a place; what is missing on the way is made."""
    if not at:
        return value
    step, rest = at[0], at[1:]
    if isinstance(step, int):
        return [put(body[0] if isinstance(body, list) and body else None, rest, value)]
    found = dict(body) if isinstance(body, dict) else {}
    found[step] = put(found.get(step), rest, value)
    return found


ID_FIELDS = ("sector", "agent", "contact", "ever_in_sector", "ever_with_agent")


def a_filter(id_: str) -> dict[str, Any]:
    """Conditions on everything that has an id, and the text box."""
    found: list[Any] = [{"field": name, "operator": "is", "value": id_} for name in ID_FIELDS]
    found += [{"field": "finalized_by", "operator": "contains", "value": id_}]
    found += [{"field": "text", "operator": "contains", "value": "zq7mark"}]
    return {"or": found}


def path_with(template: str, operation: dict[str, Any], given: dict[str, str]) -> str:
    """The path, filled with ``given`` and else with the examples of the demo."""
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            name = parameter["name"]
            example = parameter["schema"].get("examples", [str(demo.SPARE_TOKEN)])[0]
            template = template.replace(f"{{{name}}}", quote(given.get(name, str(example)), safe=""))
    return template


def is_read(method: str, template: str) -> bool:
    return method == "get" or template.endswith("/search")


def requests(ids: list[str], *, reads: bool) -> Iterator[Asked]:
    """Every route of the document with every id in every place; the ones that read, or the others."""
    for template, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            if is_read(method, template) is reads:
                yield from _of_one(method, template, operation, ids)


def _of_one(method: str, template: str, operation: dict[str, Any], ids: list[str]) -> Iterator[Asked]:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    example, schema = content.get("example"), content.get("schema", {})
    headers = (("Idempotency-Key", KEY_B), ("If-Match", '"1"')) if method != "get" else ()
    parameters = operation.get("parameters", [])
    # As the example has it. What would end A's own things is left out.
    plain = path_with(template, operation, {})
    if method != "delete":
        yield Asked(method, template, plain, example)
    for id_ in ids:
        for parameter in parameters:
            name = parameter["name"]
            if parameter["in"] == "path":
                path = path_with(template, operation, {name: id_})
                yield Asked(method, template, path, example)
                if headers:
                    yield Asked(method, template, path, example, headers)
            elif parameter["in"] == "query":
                values = [id_] if name != "filter" else [json.dumps(a_filter(id_))]
                yield from (Asked(method, template, f"{plain}?{urlencode({name: value})}") for value in values)
        for place in set(id_places(schema)):
            yield Asked(method, template, plain, put(copy.deepcopy(example or {}), place, id_))
        if isinstance(example, dict) and ("filter" in example or "filter" in resolved(schema).get("properties", {})):
            yield Asked(method, template, plain, {**example, "filter": a_filter(id_)})
        if isinstance(example, dict) and isinstance(example.get("on"), dict):
            yield Asked(method, template, plain, {**example, "on": {"ids": [id_]}})
            yield Asked(method, template, plain, {**example, "on": {"filter": a_filter(id_)}})
    for parameter in parameters:
        if parameter["in"] == "path" and parameter["schema"].get("format") != "uuid":
            yield from (
                Asked(method, template, path_with(template, operation, {parameter["name"]: mark(number)}), example)
                for number in (5, 105)
            )
        if parameter["in"] == "query" and parameter["schema"].get("format") != "uuid":
            yield from (
                Asked(method, template, f"{plain}?{urlencode({parameter['name']: text})}")
                for text in ("zq7mark", mark(9), mark(100), mark(101), mark(130))
            )


def by_hand() -> Iterator[Asked]:
    """What no place of an id in the document shows: actors."""
    agent = str(in_b("agent"))
    author = {"kind": "agent", "id": agent}
    message = {"direction": "sent", "text": "x", "author": author}
    path = f"/v1/conversations/{demo.CONVERSATION}/messages"
    yield Asked("post", "/v1/conversations/{id}/messages", path, message)
    yield Asked("post", "/v1/tokens", "/v1/tokens", {"name": "x", "actor": author, "role": "agent"})


# The tests


@dataclass
class Found:
    """What came back that is B's: by route, the ids and marks that were not in the request."""

    leaks: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    asked: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    broken: list[tuple[Asked, int, str]] = field(default_factory=list)


class Attack:
    """Asks as A's admin and keeps what is B's of the answers."""

    def __init__(self, app: FastAPI, database: str, names: set[str]) -> None:
        self.found = Found()
        self._app = app
        self._database = database
        self._names = names
        self._ever_sent: set[str] = set()

    def one(self, asked: Asked) -> Work:
        async def work() -> None:
            self._ever_sent |= asked.sent
            status, answered = await call(self._app, asked, TOKEN_A)
            for _ in range(1_000):
                if status != 503:  # too many of its kind at a time: come again
                    break
                await asyncio.sleep(0.02)
                status, answered = await call(self._app, asked, TOKEN_A)
            route = f"{asked.method} {asked.template}"
            self.found.asked[route] += 1
            if status >= 500:
                self.found.broken.append((asked, status, answered[-300:]))
            leaked = names_in(answered) & self._names - asked.sent
            if leaked and not self._taken_by_a(leaked):
                self.found.leaks[route] |= leaked

        return work

    def _taken_by_a(self, names: set[str]) -> bool:
        """Whether A has sent all of these before and has things of its own under them: a sector with that id, say."""
        return names <= self._ever_sent and names <= names_of(rows_of(self._database, demo.WORKSPACE))


def fill(database: str) -> None:
    """Workspaces A and B, projected."""
    prepare(database)
    with closing(CommandHandler(database, keys_of(database))) as handler:
        demo.load(handler, TOKEN_A)
        carry_out(handler, B, story(), KEY_B)
    project(database)


async def run_examples(app: FastAPI, token: str, ids: dict[str, str]) -> None:
    """Run all examples but those that end something, with ``ids`` in the place of the demo's and texts marked.

    So that what only a route makes (views, jobs, presences …) is there as well.
    """
    number = 500
    for template, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            body = json.dumps(content.get("example"))
            if ids:
                number += 1
                body = re.sub(r'("(?:name|text|reason|comment|outcome|subject)": ")', rf"\g<1>{mark(number)} ", body)
            path = path_with(template, operation, {})
            for of_demo, other in ids.items():
                body, path = body.replace(of_demo, other), path.replace(of_demo, other)
            if method in {"post", "put"}:
                await call(app, Asked(method, template, path, json.loads(body)), token)


OF_B = {
    str(of_demo): str(in_b(name))
    for of_demo, name in (
        (demo.SECTOR, "sector"),
        (demo.OTHER_SECTOR, "other sector"),
        (demo.AGENT, "agent"),
        (demo.OTHER_AGENT, "agent"),
        (demo.CONTACT, "contact"),
        (demo.OTHER_CONTACT, "contact"),
        (demo.CONVERSATION, "conversation in progress"),
        (demo.SPARE_CONTACT, "no contact"),
        (demo.SPARE_TOKEN, "no token"),
        (demo.SPARE_AGENT, "no agent"),
        (demo.SPARE_SECTOR, "no sector"),
    )
}


def ids_to_send(rows: dict[str, list[str]], names: set[str]) -> list[str]:
    """B's streams and whatever else has an id of its own, and the workspace."""
    found = {str(B)}
    for theirs in rows.values():
        for row in theirs:
            record = json.loads(row)
            found |= {str(record[key]) for key in ("id", "stream_id", "job_id", "message_id") if record.get(key)}
    found |= {str(id_of(f"{in_b('conversation in progress')} 1"))}
    return sorted(id_ for id_ in found if id_ in names)


Scenario = Callable[[FastAPI, str, list[str], set[str]], Coroutine[Any, Any, Any]]


def on_two_workspaces(database: str, scenario: Scenario) -> Any:
    """Run ``scenario`` with the application on workspaces A and B: it gets B's ids, and all names that are B's only."""

    async def run() -> Any:
        app = create_app(Settings(database_url=database), database)
        async with app.router.lifespan_context(app):
            await run_examples(app, TOKEN_A, {})
            await run_examples(app, TOKEN_B, OF_B)
            project(database)
            rows = rows_of(database, B)
            names = names_of(rows) | sealed_names(database, B)
            names -= names_of(rows_of(database, demo.WORKSPACE)) | sealed_names(database, demo.WORKSPACE)
            assert {mark(n) for n in (1, 2, 3, 5, 9, 100, 103)} <= names
            return await scenario(app, database, ids_to_send(rows, names), names)

    fill(database)
    return asyncio.run(run())


@pytest.fixture
def two_workspaces(database: str) -> str:
    return make_conninfo(database)


def test_no_route_gives_or_changes_anything_of_another_workspace(two_workspaces: str) -> None:
    async def scenario(app: FastAPI, database: str, ids: list[str], names: set[str]) -> None:
        attack = Attack(app, database, names)
        before = rows_of(database, B)
        await together(attack.one(asked) for asked in requests(ids, reads=True))
        await together(attack.one(asked) for asked in (*requests(ids, reads=False), *by_hand()))
        project(database)
        await together(attack.one(asked) for asked in requests(ids[:3], reads=True))
        assert attack.found.broken == []
        assert dict(attack.found.leaks) == {}
        assert set(attack.found.asked) == {
            f"{method} {path}"
            for path, operations in DOCUMENT["paths"].items()
            for method in operations
            if (method, "{") != ("delete", path)
        }
        assert len(ids) >= 20
        assert rows_of(database, B) == before

    on_two_workspaces(two_workspaces, scenario)


ONE_OF_EACH = [str(in_b(name)) for name in ("conversation pending", "contact", "sector", "agent", "token")]

_OWN_CONDITION = re.compile(r"((?:\w+\.)?workspace_id = (?:%s|%\(\w+\)s)(?:::uuid)?)")


def drop_own_conditions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Take the workspace out of every condition of the application's own; the statements that it was taken out of."""
    changed: list[str] = []
    execute = psycopg.AsyncCursor.execute

    async def without(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(query, str) and _OWN_CONDITION.search(query):
            query = _OWN_CONDITION.sub(r"(\1 or true)", query)
            changed.append(query)
        return await execute(self, query, *arguments, **options)

    monkeypatch.setattr(psycopg.AsyncCursor, "execute", without)
    return changed


async def read_everything(app: FastAPI, database: str, ids: list[str], names: set[str]) -> Found:
    attack = Attack(app, database, names)
    await together(attack.one(asked) for asked in requests(ids, reads=True))
    return attack.found


def test_row_level_security_alone_keeps_workspaces_apart(two_workspaces: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary for row-level security: nothing of B is seen without the application's own conditions."""

    async def scenario(app: FastAPI, database: str, ids: list[str], names: set[str]) -> tuple[Found, int]:
        changed = drop_own_conditions(monkeypatch)
        assert set(ONE_OF_EACH) <= set(ids)
        found = await read_everything(app, database, ONE_OF_EACH, names)
        return found, len(changed)

    found, changed = on_two_workspaces(two_workspaces, scenario)
    assert changed > 100
    assert found.broken == []
    assert dict(found.leaks) == {}


LEAKING = {
    "get /v1/conversations",
    "get /v1/conversations/{id}",
    "get /v1/conversations/{id}/messages",
    "get /v1/conversations/{id}/history",
    "get /v1/conversations/{id}/episodes",
    "get /v1/contacts/{id}",
    "get /v1/sectors",
    "get /v1/agents",
    "get /v1/tokens",
    "get /v1/roles",
    "get /v1/history",
    "get /v1/events",
}
"""Routes that have nothing but the two: the least that must be found once both are gone."""


def test_without_row_level_security_and_conditions_the_bytes_of_the_other_workspace_are_found(
    two_workspaces: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canary of the two tests above: they would notice."""

    async def scenario(app: FastAPI, database: str, ids: list[str], names: set[str]) -> Found:
        with psycopg.connect(database, autocommit=True) as connection:
            tables = connection.execute("select oid::regclass::text from pg_class where relrowsecurity").fetchall()
            assert tables
            for (table,) in tables:
                connection.execute(f"alter table {table} disable row level security")
        drop_own_conditions(monkeypatch)
        assert set(ONE_OF_EACH) <= set(ids)
        return await read_everything(app, database, ONE_OF_EACH, names)

    found = on_two_workspaces(two_workspaces, scenario)
    assert set(found.leaks) >= LEAKING, LEAKING - set(found.leaks)
    assert any(_MARK.fullmatch(name) for name in found.leaks["get /v1/conversations"])
