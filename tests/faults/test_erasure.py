"""Erasure, from the outside: contacts full of strings that occur nowhere else, half of them erased, and a byte search.

Invariant: whoever is erased is found nowhere, nor is their key; everybody else is found everywhere.
"""

import asyncio
import io
import random
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from campaign import CAMPAIGN, SLOW_CANARY, only_in_campaigns
from contact_keyring import keys_of
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from databases import project
from erasing import (
    CHANNEL_TOKEN,
    FIELDS,
    SHOWN,
    SHOWN_IMPORTED,
    TOKEN,
    Api,
    Person,
    Place,
    for_all,
    found,
    imported,
    logging_to,
    note_keys,
)
from feed import make_settings
from in_process import carry_out, id_of, serving
from rig import assert_live_equals_rebuilt, contents, handling, query

from adapters import bundle, contact_keys, erasures
from adapters.checkpoints import SigningKey, origin_for
from adapters.event_log import EventLog
from adapters.identity import digest
from adapters.importers import import_file
from adapters.kafka_position import PublisherSettings
from adapters.kafka_publisher import Publisher
from adapters.postgres import embedded, migrate
from adapters.projector import create_missing
from api import demo
from domain.commands import IssueToken
from domain.events import Actor, ActorKind

pytestmark = pytest.mark.faults

CONTACTS = 1_000 if CAMPAIGN else 20
SNAPSHOT_AFTER = 200
SIGNING = SigningKey(Ed25519PrivateKey.generate())


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


@pytest.fixture
def fresh_people() -> list[Person]:
    """Every fourth is brought by an import, one of each half."""
    seed = random.SystemRandom().getrandbits(32)
    print("seed", seed)  # noqa: T201  # shown where it fails
    return [Person(number, seed, is_imported=number % 8 in {3, 4}) for number in range(CONTACTS)]


# What happens


def fill(place: Place, people: Sequence[Person]) -> None:
    """All that is known of ``people``, by the API and by an import, and shown to somebody."""
    create_missing(place.database)
    by_import = [person for person in people if person.is_imported]
    with handling(place.database, keys=keys_of(place.database)) as handler:
        demo.load(handler, TOKEN)
        channel = Actor(kind=ActorKind.INTEGRATION, id="channel")
        secret = digest(CHANNEL_TOKEN.encode())
        token = IssueToken(name="channel", secret_sha256=secret, actor=channel, role="integration")
        carry_out(handler, demo.WORKSPACE, [(id_of("channel"), token)])
        source = place.source(imported(by_import))
        assert import_file(handler, demo.WORKSPACE, source, "ndjson").rejected_count == len(by_import)
    project(place.database)
    find_imported(place.database, by_import)

    async def live() -> None:
        async with serving(place.database) as client:
            api = Api(client)
            await for_all([person for person in people if not person.is_imported], api.live)
            await for_all(by_import, api.be_refused)
            await api.talk_on(people[0], SNAPSHOT_AFTER)
            project(place.database)
            await api.everything()
            await for_all(people, api.look)

    asyncio.run(live())
    kept = query(place.database, "select contact_id::text from snapshots where contact_id is not null")
    assert (people[0].id,) in kept, "a snapshot was to hold something of them"


def find_imported(database: str, people: Sequence[Person]) -> None:
    """Who those are that the import brought."""
    marks = {person.mark("changed"): person for person in people}
    rows = query(database, "select contact_name, contact_id, id from listing where contact_name like 'zq%%'")
    for name, contact_id, id_ in rows:
        marks[name].id, marks[name].conversation = str(contact_id), str(id_)
    assert all(person.id for person in people)


def publish(database: str, settings: PublisherSettings) -> int:
    with EventLog(database) as log, closing(Publisher(log, database, settings)) as publisher:
        assert publisher.start()
        return publisher.publish_available()


async def erase(database: str, people: Sequence[Person], erased: Sequence[Person]) -> None:
    """Erase some over HTTP; what is shown of them afterwards, and of the others."""
    gone = {person.number for person in erased}
    async with serving(database) as client:
        api = Api(client)

        async def forget(person: Person) -> None:
            assert (await api.ok("POST", f"/contacts/{person.id}/erase"))["events"] == 1
            assert (await api.ok("POST", f"/contacts/{person.id}/erase"))["events"] == 0

        async def look(person: Person) -> None:
            shown = await api.look(person)
            seen = {name for name in FIELDS if person.mark(name) in shown}
            if person.number not in gone:
                assert seen >= (SHOWN_IMPORTED if person.is_imported else SHOWN), seen
                return
            assert not seen, f"shown of somebody who was erased: {seen}"
            assert person.phone[1:] not in shown
            assert shown.count('"erased":true') >= (2 if person.is_imported else 4)
            path = f"/conversations/{person.conversation}"
            refused = await api.ask("POST", f"{path}/messages", {"direction": "received", "text": "again"})
            assert (refused.status_code, refused.json()["code"]) == (409, "contact-already-erased")
            await api.ok("POST", f"{path}/labels", {"label": "still-works"})

        await for_all(erased, forget)
        project(database)
        everything = await api.everything()
        await for_all(people, look)
    shown = set(re.findall(rf"zq[0-9a-f]{{15}}(?:{'|'.join(FIELDS)})|[0-9]{{15}}", everything))
    assert shown, "blind search"
    for person in erased:
        assert not shown & {canary.decode() for canary in person.canaries}


# What can be proved


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
    return bundle.verify(io.BytesIO(exported), key, since=since).events


def mebibytes(path: Path) -> int:
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return sum(each.stat().st_size for each in files) >> 20


def purge(database: str) -> None:
    project(database)
    erasures.purge(database, contact_keys.beside(database), lambda _done, _total: None)


@pytest.mark.kafka
def test_who_is_erased_is_found_nowhere_and_everybody_else_everywhere(
    place: Place, fresh_people: list[Person], kafka_on_disk: tuple[str, Path]
) -> None:
    people, erased = fresh_people, fresh_people[::2]
    others, log_file = fresh_people[1::2], place.directory / "application.log"
    address, segments = kafka_on_disk
    feed = make_settings(address, max_batch=4_000)
    with logging_to(log_file):
        fill(place, people)
        assert publish(place.database, feed)
        before, checkpoint = export(place.database)
        note_keys(place.database, people)
        backup = place.dump(place.database)
        asyncio.run(erase(place.database, people, erased))
        with handling(place.database, keys=keys_of(place.database)) as handler:
            report = import_file(handler, demo.WORKSPACE, place.source(), "ndjson")
        assert report.events == 0, "an import that comes again must not bring anybody back"
        assert publish(place.database, feed)
    purge(place.database)
    dumps = [place.dump(place.database), place.dump(contact_keys.beside(place.database))]
    gone = [needle for person in erased for needle in (*person.canaries, *person.sealing)]
    searched = [place.data, *dumps, log_file, segments]
    assert found(searched, gone) == {}
    told = f"{len(people)} contacts, {len(erased)} erased: {len(set(gone))} strings and keys of theirs sought in "
    print(told + ", ".join(f"{path.name} {mebibytes(path)} MiB" for path in searched))  # noqa: T201  # of the campaign
    names = [person.mark("changed").encode() for person in others]
    theirs = [person.wrapped for person in others]
    assert found([place.data, dumps[0]], names).keys() == set(names), "blind search"
    assert found([place.data], theirs).keys() == set(theirs), "blind to keys"
    on_topics = [person.conversation.encode() for person in people]
    assert found([segments], on_topics).keys() == set(on_topics), "blind to topics"
    # proofs hold, and what was proved before says nothing any more
    after, _ = export(place.database)
    assert verify(before, checkpoint) < verify(after, checkpoint)
    bundles = [place.kept(before), place.kept(after)]
    assert found(bundles, gone) == {}
    assert_live_equals_rebuilt(place.database)
    restored_backup(place, backup, people, erased, checkpoint)


def restored_backup(
    place: Place, backup: Path, people: Sequence[Person], erased: Sequence[Person], checkpoint: str
) -> None:
    """A dump from before the erasure, in the place of the log: before it serves, they are erased again."""
    gone = [needle for person in erased for needle in (*person.canaries, *person.sealing)]
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
    assert found([place.data, place.dump(place.database)], gone) == {}
    [(by, count)] = query(
        place.database,
        "select actor_id, count(*) from events where topic = 'contact-erased.v1' group by actor_id",
    )
    assert (by, count) == ("restore", len(erased))
    left = query(place.database, "select name from contacts where name like 'zq%%'")
    assert len(left) == len(people) - len(erased)
    verify(export(place.database)[0], checkpoint)
    lean = place.lean_dump(place.database)
    assert found([lean], [needle for person in people for needle in person.canaries]) == {}
    live = contents(place.database)
    place.new_database()
    place.program("psql", "--dbname", place.database, "--quiet", "--file", str(lean))
    create_missing(place.database)
    project(place.database)
    assert contents(place.database) == live


@only_in_campaigns(SLOW_CANARY)
def test_canary_without_the_purge_traces_are_found(place: Place, fresh_people: list[Person]) -> None:
    people = fresh_people[:5]
    fill(place, people)
    note_keys(place.database, people)
    asyncio.run(erase(place.database, people, people[::2]))
    query(place.database, "checkpoint")
    hits = found([place.data], [needle for person in people[::2] for needle in (*person.canaries, *person.sealing)])
    assert hits.keys() & {needle for person in people[::2] for needle in person.canaries}, "the search finds nothing"
    assert hits.keys() & {needle for person in people[::2] for needle in person.sealing}, "the search finds no key"
