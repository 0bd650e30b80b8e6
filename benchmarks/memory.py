"""What grows with the log, and with a conversation: memory and the cost of a command should not.

The log grows by new conversations with notes in each, so that the cache of folded states fills and overflows.
"""

from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from statistics import median
from time import perf_counter
from uuid import UUID

import psutil

from adapters.command_handler import CommandHandler
from adapters.projector import Projector
from benchmarks.measuring import Bench, in_new_process, table
from benchmarks.workload import BATCH, contact, conversations, keys, note, opening, write

NOTES_PER_CONVERSATION = 4
CACHED_STATES = 5_000
"""Folded states that the writer keeps: so few that the log outgrows them at the second length."""
SHORT, LONG = 10, 10_100
"""Messages: the long conversation has as many after its last snapshot as conversations have on average."""


class _Memory:
    """Resident memory in MiB of this process, noted when it has come so far for the first time."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._process = psutil.Process()
        self._lengths = list(lengths)
        self.found: list[float] = [self._now()]

    def note(self, position: int) -> None:
        while self._lengths and position >= self._lengths[0]:
            self._lengths.pop(0)
            self.found.append(self._now())

    def _now(self) -> float:
        return float(self._process.memory_info().rss / 2**20)


def _writing(conninfo: str, lengths: Sequence[int]) -> list[float]:
    """Fill the log; the writer's memory at the start and at each of ``lengths`` events."""
    with closing(CommandHandler(conninfo, keys(conninfo), cached_states=CACHED_STATES)) as handler:
        contact_id = contact(handler)
        memory, position, openings = _Memory(lengths), 1, BATCH // (NOTES_PER_CONVERSATION + 1)
        while position < lengths[-1]:
            opened = [opening(contact_id) for _ in range(openings)]
            notes = [note(request.stream.id) for _ in range(NOTES_PER_CONVERSATION) for request in opened]
            write(handler, opened + notes)
            position += len(opened) + len(notes)
            memory.note(position)
    return memory.found


def _projecting(conninfo: str, lengths: Sequence[int]) -> list[float]:
    """Catch up with the log; the projector's memory at the start and at each of ``lengths`` events."""
    memory = _Memory(lengths)
    with closing(Projector(conninfo, keys=keys(conninfo))) as projector:
        projector.catch_up(lambda position, _: memory.note(position))
    return memory.found


def _cost(conninfo: str, repetitions: int) -> dict[str, tuple[float, float]]:
    """Median seconds of a note on a short and on the long conversation, when its state is cached and when not."""
    with closing(CommandHandler(conninfo, keys(conninfo))) as handler:
        [long], short = conversations(handler, 1), conversations(handler, repetitions)
        write(handler, [note(id_) for id_ in short for _ in range(SHORT)])
        write(handler, [note(long) for _ in range(LONG)])
        warm = _alternate(handler, short, long)
    # One state is kept, and the next command is always on another conversation.
    with closing(CommandHandler(conninfo, keys(conninfo), cached_states=1)) as handler:
        cold = _alternate(handler, short, long)
    return {"cached": warm, "cold": cold}


def _alternate(handler: CommandHandler, short: Sequence[UUID], long: UUID) -> tuple[float, float]:
    found: dict[bool, list[float]] = {False: [], True: []}
    write(handler, [note(id_) for id_ in (*short[:1], long)])
    for id_ in chain.from_iterable((id_, long) for id_ in short):
        request = note(id_)
        started = perf_counter()
        write(handler, [request])
        found[id_ == long].append(perf_counter() - started)
    return median(found[False]), median(found[True])


def run(bench: Bench) -> None:
    """Measure and print the tables."""
    lengths = (2_000, 10_000, 30_000) if bench.is_quick else (10_000, 100_000, 300_000, 900_000)
    conninfo = bench.database(read_models=True)
    writing = in_new_process(_writing, conninfo, lengths)
    projecting = in_new_process(_projecting, conninfo, lengths)
    table(
        "Memory: MiB resident, by the length of the log",
        ("", "at start", *(f"{length:,} events" for length in lengths), "last / second last"),
        [
            (name, *found, found[-1] / found[-2])
            for name, found in ((f"writer, {CACHED_STATES:,} states cached", writing), ("projector", projecting))
        ],
    )
    costs = in_new_process(_cost, conninfo, 10 if bench.is_quick else 100)
    table(
        "A note on a long conversation, alone in its transaction",
        ("its state is", f"after {SHORT} messages, ms", f"after {LONG:,} messages, ms", "long / short"),
        [(name, short * 1e3, long * 1e3, long / short) for name, (short, long) in costs.items()],
    )
    bench.drop(conninfo)
