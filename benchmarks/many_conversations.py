"""A listing of any size: the real log's conversations again and again, with times and names shifted.

Invariant: every row is one that the projector made, but for its id, protocol, contact, labels and times.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid5

import psycopg

from adapters.projector import Projector
from benchmarks.measuring import Bench
from benchmarks.real_log import real_log
from benchmarks.workload import keys
from projections import contacts, listing
from projections.contacts import ContactRow
from projections.listing import ListingRow

_FIRST = """Ana José Maria João Antônia Luís Conceição Caetano Inês Otávio Márcia Rui Beatriz Célio Dália Érico Flávia
Gil Heloísa Ícaro Júlia Lázaro Mônica Nélio Olívia Péricles Quitéria Raúl Sônia Tomás Úrsula Vítor"""
_MIDDLE = """Aparecida Batista Célia Dourado Estêvão Ferraz Gonçalves Horta Itamar Junqueira Klein Lobão Magalhães
Neto Outeiro Pádua Queirós Rebouças Sampaio Távora Uchôa Vidigal"""
_LAST = """Abreu Bragança Camargo Damasceno Espíndola Falcão Guimarães Holanda Ibañez Jordão Leitão Mourão Nóbrega
Olímpio Pimentel Quintão Romão Saldanha Teixeira Ulhôa Valadão Xavier Zanetti Araújo Brandão Cordeiro Durão"""
LABELS = ("vip", "urgent", "billing", "delivery", "legal", "complaint", "new", "partner")
COPIES_APART = timedelta(days=5)
CHUNK = 10_000
TIMES = tuple(name for name in listing.COLUMNS if name.endswith(("_at", "_since")) or name == "waiting_from")


def fill(bench: Bench) -> tuple[str, UUID, int]:
    """The conninfo of a database with the real log's listing, its workspace, and how many rows there are."""
    conninfo = real_log(bench).conninfo
    with closing(Projector(conninfo, keys=keys(conninfo))) as projector:
        projector.catch_up()
    with psycopg.connect(conninfo) as connection:
        row = connection.execute(
            "select workspace_id, count(*) from listing group by 1 order by 2 desc limit 1"
        ).fetchone()
    assert row is not None
    return conninfo, *row


def grow(conninfo: str, workspace_id: UUID, rows: int) -> None:
    """Add copies until the workspace's listing has so many ``rows``."""
    with psycopg.connect(conninfo) as connection:
        connection.execute("set synchronous_commit = off")
        originals = list(_originals(connection, workspace_id))
        people = contacts.load(connection, {(row.workspace_id, row.contact_id) for row in originals})
        found = connection.execute("select count(*) from listing where workspace_id = %s", (workspace_id,)).fetchone()
        assert found is not None
        present = int(found[0])
        connection.execute(b"create table if not exists copies (original uuid, id uuid, later interval)")
        indexes = drop_indexes(connection, "listing")
        while present < rows:
            copy = present // len(originals)
            for start in range(0, min(len(originals), rows - present), CHUNK):
                part = originals[start : start + min(CHUNK, rows - present)]
                _save_copies(connection, part, people, copy)
                present += len(part)
        connection.execute("set maintenance_work_mem = '1GB'")
        for statement in indexes:
            connection.execute(statement.encode())
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("vacuum (analyze) listing")
        connection.execute("vacuum (analyze) contacts")
        connection.execute("checkpoint")


def _originals(connection: psycopg.Connection[Any], workspace_id: UUID) -> Iterator[ListingRow]:
    """The projector's own rows: copies stand under ids of version 5."""
    query = f"select {', '.join(listing.COLUMNS)} from listing where workspace_id = %s and position > 0 order by id"
    for row in connection.execute(query, (workspace_id,)):
        yield ListingRow(*row)


def drop_indexes(connection: psycopg.Connection[Any], name: str) -> list[str]:
    """Drop the indexes of a table that are no keys; the statements that make them again."""
    found = connection.execute(
        "select indexname, indexdef from pg_indexes where tablename = %s and not indexname like '%%pkey'", (name,)
    ).fetchall()
    for index, _ in found:
        connection.execute(f"drop index {index}".encode())
    return [definition for _, definition in found]


def _save_copies(
    connection: psycopg.Connection[Any],
    originals: Sequence[ListingRow],
    people: dict[contacts.Key, ContactRow],
    copy: int,
) -> None:
    random = Random(copy)
    persons: dict[UUID, ContactRow] = {}
    rows, copied = [], []
    for original in originals:
        contact_id = uuid5(original.contact_id, str(copy))
        if contact_id not in persons:
            like = people[original.workspace_id, original.contact_id]
            persons[contact_id] = _person(like, contact_id, random)
        row, later = _shifted(original, copy, random)
        row.contact_id = contact_id
        copied.append((original.id, row.id, later))
        listing.show_contact(row, persons[contact_id])
        rows.append(row)
    known = contacts.load(connection, {(person.workspace_id, person.id) for person in persons.values()})
    contacts.save(connection, [person for person in persons.values() if (person.workspace_id, person.id) not in known])
    listing.save(connection, rows, ())
    with connection.cursor().copy(b"copy copies from stdin") as into:
        for row in copied:
            into.write_row(row)


def _person(like: ContactRow, id_: UUID, random: Random) -> ContactRow:
    name = " ".join(random.choice(names.split()) for names in (_FIRST, _MIDDLE, _LAST))
    phone = f"+55{random.randrange(11, 99)}9{random.randrange(10**8):08d}"
    return replace(like, id=id_, name=name, phones=[phone], emails=[f"contato{random.randrange(10**8)}@example.com"])


def _shifted(original: ListingRow, copy: int, random: Random) -> tuple[ListingRow, timedelta]:
    """The conversation once more, some days before or after, a few of them with labels; and how much later."""
    by = COPIES_APART * (copy - 20) + timedelta(seconds=random.randrange(5 * 86_400))
    times: dict[str, datetime] = {}
    for name in TIMES:
        at = getattr(original, name)
        if at is not None:
            times[name] = at + by
    labels = sorted(set(random.choices(LABELS, weights=range(len(LABELS), 0, -1), k=random.randrange(1, 4))))
    row = replace(
        original,
        id=uuid5(original.id, str(copy)),
        protocol=f"{original.protocol}{copy:02d}",
        labels=labels if random.random() < 0.1 else [],
        position=0,
        **times,  # type: ignore[arg-type]
    )
    return row, by
