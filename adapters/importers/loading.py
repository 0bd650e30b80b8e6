"""The shared part of all importers: changes in, batches of requests to the writer, a report out.

Invariant: every change carries an idempotency key made of the source's own id, and what stands in for a refused
change (a note) is recorded under the same key; so a change is recorded once, in one form, for ever.
"""

import gc
import lzma
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from io import BufferedReader
from itertools import islice
from pathlib import Path
from time import monotonic, sleep
from typing import BinaryIO, Protocol, Self
from uuid import UUID, uuid4, uuid5

from adapters.command_handler import UnavailableError
from adapters.deciding import Answer, Outcome, Request
from adapters.importers.report import Rejected, Report
from domain.commands import AddNote, Command
from domain.envelope import Stream, StreamType
from domain.errors import ConversationNotFoundError, DomainError, IdempotencyKeyReusedError
from domain.events import Actor, ActorKind, Surface
from domain.permissions import BUILT_IN_ROLES, Caller

LINE_LIMIT_BYTES = 1_048_576
"""A longer line is reported and skipped: it cannot be a change, and it must not fill the memory."""
BATCH = 500
"""Changes per transaction."""
RETRY_SECONDS = 0.5
PATIENCE_SECONDS = 60.0
"""How long the writer may be unable to write, beyond its own patience, before the import stops."""
SYSTEM = Actor(kind=ActorKind.SYSTEM, id="import")


class ImportStoppedError(Exception):
    """The import cannot go on; what was imported until then stays, and running it again continues."""


class Handles(Protocol):
    """What an import needs of the writer: `adapters.command_handler.CommandHandler` has it."""

    def handle(self, requests: Sequence[Request]) -> list[Answer]:
        """Decide and append ``requests`` in order, in one transaction; an answer for each."""


class Progress(Protocol):
    """Told after each transaction how far the import is."""

    def __call__(self, bytes_done: int, total_bytes: int, events: int, /) -> None:
        """Bytes read and bytes in all, of the file as it lies there, and events appended so far."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happened in the source, as the command that records it."""

    line: int
    kind: str
    """What it becomes, for the summary."""
    key: str
    """Names the change within its source for ever."""
    fingerprint: bytes
    """Digest of what the source says; the same key with another one is rejected."""
    stream: Stream
    command: Command
    actor: Actor
    occurred_at: datetime
    causation_id: str
    """The source's name for the row or line that it came from."""
    otherwise: Command | None = None
    """Decided next, in the same transaction, where ``command`` is refused: for what a source cannot foresee."""
    trace: Callable[[str], AddNote] | None = None
    """The note, with the reason in it, that stays where ``command`` caused no event: for what must leave a trace and
    is not expected to be refused, because that note comes one transaction later."""
    refused: str = ""
    """Why a rule refused what ``command``, a note, stands for."""


def source_id(workspace_id: UUID, source: str, kind: str, name: str) -> UUID:
    """The id in ``workspace_id`` of what ``source`` calls ``name``: always the same."""
    return uuid5(workspace_id, f"{source}:{kind}:{name}")


class Lines:
    """The lines of a plain or ``.xz`` file with their numbers from 1, read in constant memory; may be read again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._raw: BinaryIO = path.open("rb")
        except OSError as error:
            msg = f"{path} cannot be read: {error.strerror}"
            raise ImportStoppedError(msg) from error
        self.size = path.stat().st_size

    @property
    def bytes_done(self) -> int:
        """How much of the file, as it lies there, has been read."""
        return min(self._raw.tell(), self.size)

    def __iter__(self) -> Iterator[tuple[int, bytes | None]]:
        """Number and content, without the line's end; None for a line above `LINE_LIMIT_BYTES`."""
        self._raw.seek(0)
        content: BinaryIO = self._raw
        if self._path.suffix == ".xz":
            # In large pieces: each ends with a wait for the thread that writes to let go of the interpreter.
            content = BufferedReader(lzma.LZMAFile(self._raw), LINE_LIMIT_BYTES)  # noqa: SIM115  # `self` closes it
        number = 0
        try:
            while line := content.readline(LINE_LIMIT_BYTES + 1):
                number += 1
                if len(line) > LINE_LIMIT_BYTES and not line.endswith(b"\n"):
                    while (rest := content.readline(LINE_LIMIT_BYTES)) and not rest.endswith(b"\n"):
                        pass
                    yield number, None
                else:
                    yield number, line.rstrip(b"\r\n")
        except (lzma.LZMAError, EOFError, OSError) as error:
            msg = f"{self._path} cannot be read beyond line {number}: {error}"
            raise ImportStoppedError(msg) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Look for reference cycles less often: a batch makes many objects and no cycles; saves a quarter of the time."""
    usual = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


class _ReportsEvents(Protocol):
    def __call__(self, events: int, /) -> None: ...


class Loader:
    """Loads changes batch by batch; while one batch is being written the next is being read."""

    def __init__(
        self,
        handler: Handles,
        workspace_id: UUID,
        source: str,
        progress: _ReportsEvents,
    ) -> None:
        self._handler = handler
        self._workspace_id = workspace_id
        self._prefix = f"import:{source}:"
        self._progress = progress
        self._run_id = uuid4()
        self._callers: dict[Actor, Caller] = {}
        self._nowhere = Stream(workspace_id, StreamType.CONVERSATION, source_id(workspace_id, source, "nowhere", ""))
        self._probe = AddNote(message_id=self._nowhere.id, author=SYSTEM, text="")
        self._resuming = True
        self.report = Report()

    def load(self, items: Iterable[Change | Rejected]) -> Report:
        """Import all ``items``. Raises `ImportStoppedError` when the log cannot be written for too long."""
        started, iterator = monotonic(), iter(items)
        with _rare_collections(), ThreadPoolExecutor(1, thread_name_prefix="import") as executor:
            writing: Future[None] | None = None
            while batch := list(islice(iterator, BATCH)):
                if writing is not None:
                    writing.result()
                    self._progress(self.report.events)
                writing = executor.submit(self._load_batch, batch)
            if writing is not None:
                writing.result()
        self.report.seconds = monotonic() - started
        self._progress(self.report.events)
        return self.report

    def _load_batch(self, batch: list[Change | Rejected]) -> None:
        changes = []
        for item in batch:
            if isinstance(item, Rejected):
                self.report.rejected.add(item)
            else:
                changes.append(item)
        absent = self._absent(changes) if self._resuming else changes
        self.report.already_present += len(changes) - len(absent)
        traces, replayed = self._write(absent)
        if changes:
            self._resuming = replayed or len(absent) < len(changes)
        if traces:
            self._write(traces)

    def _absent(self, changes: list[Change]) -> list[Change]:
        """Those whose keys have no answer yet.

        Asked with a note to a conversation that is nowhere: refused, and so without effect, unless the key has an
        answer. This loads no streams, so a run that continues another hurries through what is there.
        """
        probes = [
            self._request(change, self._probe, SYSTEM, self._nowhere, self._prefix + change.key) for change in changes
        ]
        answers = self._patiently(probes, changes) if probes else []
        return [
            change
            for change, answer in zip(changes, answers, strict=True)
            if not isinstance(answer, Outcome) or (change.trace is not None and answer.events == 0)
        ]

    def _write(self, changes: list[Change]) -> tuple[list[Change], bool]:
        """Record ``changes``; the traces that are missing still, and whether any change was there already."""
        requests = [request for change in changes for request in self._requests(change)]
        answers = iter(self._patiently(requests, changes) if requests else ())
        traces, replayed = [], False
        for change in changes:
            answer = next(answers)
            instead = None if change.otherwise is None else next(answers)
            replayed |= isinstance(answer, Outcome) and answer.replayed
            trace = _trace(change, answer)
            if trace is None:
                self._count(change, answer, instead)
            else:
                traces.append(trace)
        return traces, replayed

    def _requests(self, change: Change) -> Iterator[Request]:
        key = self._prefix + change.key
        yield self._request(change, change.command, change.actor, change.stream, key)
        if change.otherwise is not None:
            yield self._request(change, change.otherwise, change.actor, change.stream, key)

    def _request(self, change: Change, command: Command, actor: Actor, stream: Stream, key: str) -> Request:
        caller = self._callers.get(actor)
        if caller is None:
            agent_id = UUID(actor.id) if actor.kind is ActorKind.AGENT else None
            caller = Caller(self._workspace_id, actor, BUILT_IN_ROLES["admin"], agent_id)
            self._callers[actor] = caller
        return Request(
            stream=stream,
            command=command,
            caller=caller,
            surface=Surface.IMPORT,
            request_id=self._run_id,
            correlation_id=self._run_id,
            causation_id=change.causation_id,
            occurred_at=change.occurred_at,
            keys=(key,),
            fingerprint=change.fingerprint,
        )

    def _patiently(self, requests: list[Request], changes: list[Change]) -> list[Answer]:
        """The writer's answers, asked for again while it cannot write: the keys make that safe."""
        deadline = monotonic() + PATIENCE_SECONDS
        while True:
            answers = self._handler.handle(requests)
            unavailable = next((answer for answer in answers if isinstance(answer, UnavailableError)), None)
            if unavailable is None:
                return answers
            if monotonic() > deadline:
                msg = f"stopped at line {changes[0].line}: {unavailable}. Run the import again to continue."
                raise ImportStoppedError(msg) from unavailable
            sleep(RETRY_SECONDS)

    def _count(self, change: Change, answer: Answer, instead: Answer | None) -> None:
        kind, refused = change.kind, change.refused
        if not isinstance(answer, Outcome):
            if not isinstance(instead, Outcome):
                self.report.rejected.add(Rejected(change.line, _reason(answer)))
                return
            if isinstance(change.otherwise, AddNote):
                kind, refused = "refused", _reason(answer)
            answer = instead
        self._count_outcome(kind, answer)
        if refused and not answer.replayed:
            self.report.noted.add(Rejected(change.line, refused))

    def _count_outcome(self, kind: str, outcome: Outcome) -> None:
        if outcome.replayed or not outcome.events:
            self.report.already_present += 1
        else:
            self.report.changes[kind] += 1
            self.report.events += outcome.events


def _trace(change: Change, answer: Answer) -> Change | None:
    """The note that stays for a change that caused no event; None where it did, or where it needs none."""
    if change.trace is None:
        return None
    match answer:
        case Outcome(events=0):
            kind, key, reason, refused = "noted", f"{change.key}:trace", "already so", ""
        case DomainError() if not isinstance(answer, IdempotencyKeyReusedError):
            kind, key, reason, refused = "refused", change.key, answer.code, _reason(answer)
        case _:
            return None
    note = change.trace(f"{change.kind}: {reason}")
    return replace(change, kind=kind, key=key, command=note, trace=None, refused=refused)


def _reason(error: Exception) -> str:
    match error:
        case IdempotencyKeyReusedError():
            return f"{error.code}: This id came before with other content; what was imported first stays."
        case ConversationNotFoundError():
            return f"{error.code}: There is no such conversation; what opens it must come first."
        case DomainError():
            return f"{error.code}: {error.detail}"
        case _:
            return f"it could not be written ({type(error).__name__})"
