"""What the verifiable log costs: appends while its tree is built beside them, proofs over ten million leaves, bundles.

The projector runs in both kinds of rounds of the first part, with all read models or with all but the tree: what is
compared is the tree, not that something projects.
"""

import asyncio
import os
import random
from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from time import monotonic, sleep

import psycopg
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adapters import bundle
from adapters.checkpoints import SigningKey, origin_for
from adapters.command_handler import CommandHandler
from adapters.postgres import LIMITS, Role, connect
from adapters.projector import READ_MODELS, Projector
from adapters.writer import Writer
from benchmarks.measuring import Bench, Sample, Stopwatch, goal, middle, ratio, table
from benchmarks.store import _write
from benchmarks.workload import WORKSPACE, conversations, keys, note
from domain.merkle import Span, inclusion_spans, is_included
from projections.tree import FIND_QUERY, TILES_QUERY, Tile, _Growing, coordinates, hashes_of, index_in, tiles_of

WRITERS = 64
BUNDLE = 100_000
LEAVES = 10_000_000
WITH, WITHOUT = "all read models", "all but the tree"


def _project(conninfo: str, kind: str, stop: Event) -> None:
    models = [model for model in READ_MODELS if kind == WITH or model.name != "tree"]
    with closing(Projector(conninfo, models, keys=keys(conninfo))) as ours:
        while not stop.is_set():
            if not ours.advance_all():
                sleep(0.01)


async def _append(bench: Bench, conninfo: str, seconds: float) -> Sample:
    handler = CommandHandler(conninfo, keys(conninfo))
    prepared = [[note(id_) for _ in range(8)] for id_ in conversations(handler, WRITERS)]
    with closing(Writer(handler)) as writer:
        await asyncio.gather(*(writer.execute(requests[-1]) for requests in prepared))
        watch, deadline = Stopwatch(bench.postmaster), monotonic() + seconds
        return watch.sample(sum(await asyncio.gather(*(_write(writer, each, deadline) for each in prepared))))


def _appending(bench: Bench) -> None:
    samples: dict[str, list[Sample]] = {WITH: [], WITHOUT: []}
    context = get_context("spawn")
    for number in bench.rounds(6):
        for kind in ((WITH, WITHOUT), (WITHOUT, WITH))[number % 2]:
            conninfo, stop = bench.database(read_models=True), context.Event()
            process = context.Process(target=_project, args=(conninfo, kind, stop), daemon=True)
            process.start()
            sleep(1.5)
            samples[kind].append(uvloop.run(_append(bench, conninfo, 2.5)))
            stop.set()
            process.join()
            bench.drop(conninfo)
    table(
        f"Appending with {WRITERS} writers while the projector runs",
        ("projected meanwhile", "events/s", "/ without the tree", "CPU µs/event, PostgreSQL"),
        [
            (kind, middle(rounds).rate, ratio(rounds, samples[WITHOUT]), middle(rounds).postgres_cpu_microseconds)
            for kind, rounds in samples.items()
        ],
    )
    goal("appends with the tree / without", ratio(samples[WITH], samples[WITHOUT]), 0.9)


def _bundles(bench: Bench) -> None:
    conninfo, count = bench.database(read_models=True), BUNDLE // (10 if bench.is_quick else 1)
    with closing(CommandHandler(conninfo, keys(conninfo))) as handler:
        ids = conversations(handler, 1_000)
        for start in range(0, count, 500):
            handler.handle([note(ids[(start + number) % len(ids)]) for number in range(500)])
    only_tree = [model for model in READ_MODELS if model.name == "tree"]
    with closing(Projector(conninfo, only_tree, keys=keys(conninfo))) as projector:
        projector.catch_up()
    key, path, lines = SigningKey(Ed25519PrivateKey.generate()), bench.directory / "bundle", []
    public = key.verifier(origin_for("bench", WORKSPACE))
    with connect(conninfo) as connection:
        taken = bundle.take_checkpoint(connection, WORKSPACE, "bench", key)
        for name, stream_id in (("a workspace", None), ("a conversation", ids[0])):
            times = [monotonic()]
            with path.open("wb") as out:
                bundle.write(connection, out, taken, WORKSPACE, stream_id)
            times.append(monotonic())
            with path.open("rb") as file:
                found = bundle.verify(file, public)
            times.append(monotonic())
            writing, verifying = (end - begin for begin, end in pairwise(times))
            lines.append((name, found.checkpoint.size, found.events, path.stat().st_size / 1e6, writing, verifying))
    table("Bundles", ("of", "events of the workspace", "shown", "MB", "writing, s", "verifying, s"), lines)
    bench.drop(conninfo)


def _proofs(bench: Bench) -> None:
    conninfo, size = bench.database(read_models=True), LEAVES // (100 if bench.is_quick else 1)
    _grow(conninfo, size)
    chance, times, most = random.Random(1), [], 0
    with connect(conninfo, LIMITS | {"role": Role.READER.value}) as connection:
        connection.execute("select set_config('conversas.workspace', %s, false)", (str(WORKSPACE),))
        for _ in range(500):
            index, started = chance.randrange(size), monotonic()
            found = connection.execute(FIND_QUERY, (WORKSPACE, index + 1)).fetchone()
            spans = [Span(index, index + 1), Span(0, size), *inclusion_spans(index, size)]
            tiles = tiles_of(spans)
            leaf, root, *path = _read(connection, spans, tiles)
            times.append((monotonic() - started) * 1_000)
            most = max(most, len(tiles))
            assert index_in(found, index + 1) == index
            assert is_included(leaf, index, size, path, root)
    middling, slow = sorted(times)[len(times) // 2], sorted(times)[len(times) * 99 // 100]
    table(
        "Inclusion proofs",
        ("leaves", "tiles read, at most", "median, ms", "p99, ms"),
        [(f"{size:,}", most, middling, slow)],
    )
    bench.drop(conninfo)


def _read(connection: psycopg.Connection, spans: Sequence[Span], tiles: Sequence[Tile]) -> list[bytes]:
    rows = connection.execute(TILES_QUERY, (WORKSPACE, *coordinates(tiles)))
    return hashes_of(spans, {Tile(level, number): hashes for level, number, hashes in rows})


def _grow(conninfo: str, size: int) -> None:
    """A tree of random leaves, of which leaf i is the event at position i + 1."""
    tree = _Growing()
    tree.extend([os.urandom(32) for _ in range(size)], range(1, size + 1))
    columns = "workspace_id, level, number, hashes, positions, first_position"
    with (
        connect(conninfo, LIMITS | {"statement_timeout": "0", "role": Role.PROJECTOR.value}) as connection,
        connection.cursor().copy(f"copy tree_tiles ({columns}) from stdin (format binary)".encode()) as copy,
    ):
        copy.set_types(["uuid", "int2", "int8", "bytea", "int8[]", "int8"])
        for _, *row in tree.rows(str(WORKSPACE)):
            copy.write_row((WORKSPACE, *row))


def run(bench: Bench) -> None:
    """Measure and print the tables."""
    _appending(bench)
    _bundles(bench)
    _proofs(bench)
