"""Bulk actions: one command on many conversations, carried out in turns by whichever process is free.

A turn is one transaction that holds the job's row: it takes the next conversations in order, puts their commands
before the writer, waits for the answers and records them. A process that is killed lets go of the row, and another
goes on; what was committed and not yet recorded is recognised by its idempotency key.

Invariant: each conversation of a job is changed at most once, with the rights that its caller has at that moment.
"""

import asyncio
import hashlib
import logging
from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Self
from uuid import UUID

import orjson
import psycopg
from prometheus_client import Counter
from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from adapters.command_handler import UnavailableError
from adapters.deciding import Outcome, Request
from adapters.identity import Identity
from adapters.writer import QueueFullError, Writer
from domain.commands import (
    AddLabel,
    Assume,
    ChangePriority,
    ConversationCommand,
    Finalize,
    MarkPending,
    RemoveLabel,
    Reopen,
    Transfer,
)
from domain.envelope import Stream, StreamType
from domain.errors import DomainError, TooManyBulkJobsError
from domain.events import Surface
from domain.permissions import Caller, Permission, Scope
from projections.filter_sql import where
from projections.filters import Filter

log = logging.getLogger(__name__)

COMMANDS: Mapping[str, type[ConversationCommand]] = {
    "finalize": Finalize,
    "transfer": Transfer,
    "assume": Assume,
    "reopen": Reopen,
    "add-label": AddLabel,
    "remove-label": RemoveLabel,
    "change-priority": ChangePriority,
    "mark-pending": MarkPending,
}
"""What can be done to many at once, by the action's name."""

MOST_OPEN_JOBS = 100
"""Jobs of one workspace that may wait or run at a time."""
CONVERSATIONS = Counter("conversas_bulk_conversations", "Conversations that bulk actions went through", ["outcome"])

_POLL_SECONDS = 1.0
_RETRY_SECONDS = 0.5
_FULL_SECONDS = 0.1
_FULL_TRIES = 20
_CLEAN_SECONDS = 3_600.0
_COLUMNS = (
    *("id", "number", "action", "command", "dry_run", "actor_kind", "actor_id", "state", "reason", "total"),
    *("changed", "already", "refused", "failed", "position", "created_at", "started_at", "finished_at"),
)
_JOB = f"""
select {", ".join(_COLUMNS)}, extract(epoch from coalesce(finished_at, clock_timestamp()) - started_at) as seconds
from bulk_jobs
where workspace_id = %s and ((actor_kind, actor_id) = (%s, %s) or %s)"""
_OVER = "'done', 'cancelled', 'stopped'"


# What is asked for over HTTP, in a transaction that sees the caller's workspace only


@dataclass(frozen=True, slots=True)
class Wanted:
    """A job to start."""

    id: UUID
    action: str
    command: ConversationCommand
    on: Sequence[UUID] | Filter
    """These conversations, or all within the caller's scope that match."""
    dry_run: bool
    request_id: UUID
    fingerprint: bytes


async def start(connection: AsyncConnection[Any], caller: Caller, wanted: Wanted) -> bool:
    """Put the job down with all its conversations, unless it was put down before; False: its id is another job's.

    Raises `TooManyBulkJobsError` where too many are not over yet.
    """
    there = await _same(connection, caller, wanted)
    if there is not None:
        return there
    cursor = await connection.execute(
        f"select count(*) from bulk_jobs where workspace_id = %s and state not in ({_OVER})", (caller.workspace_id,)
    )
    [open_jobs] = await cursor.fetchone() or (0,)
    if open_jobs >= MOST_OPEN_JOBS:
        raise TooManyBulkJobsError
    await connection.execute("set local statement_timeout = '60s'")
    chosen, values = _chosen(caller, wanted.on)
    await connection.execute(
        f"""
        with chosen as materialized ({chosen}), job as (
            insert into bulk_jobs (workspace_id, id, action, command, dry_run, actor_kind, actor_id, token_id,
                request_id, fingerprint, total)
            select %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, (select count(*) from chosen)
            on conflict do nothing returning workspace_id, id)
        insert into bulk_items (workspace_id, job_id, number, conversation_id)
        select job.workspace_id, job.id, chosen.number, chosen.id from chosen, job""",
        (
            *(*values, caller.workspace_id, wanted.id, wanted.action, wanted.command.model_dump_json()),
            *(wanted.dry_run, caller.actor.kind.value, caller.actor.id, caller.token_id),
            *(wanted.request_id, wanted.fingerprint),
        ),
    )
    return bool(await _same(connection, caller, wanted))  # somebody may have been faster


async def _same(connection: AsyncConnection[Any], caller: Caller, wanted: Wanted) -> bool | None:
    """Whether the job with the wanted one's id is the one that is wanted; None: there is none."""
    cursor = await connection.execute(
        "select fingerprint = %s from bulk_jobs where workspace_id = %s and id = %s",
        (wanted.fingerprint, caller.workspace_id, wanted.id),
    )
    row = await cursor.fetchone()
    return None if row is None else bool(row[0])


def _chosen(caller: Caller, on: Sequence[UUID] | Filter) -> tuple[str, list[Any]]:
    """The statement for the conversations of a job, numbered. Of ids that are given, each counts: also unknown ones."""
    if isinstance(on, Sequence):
        given = list(dict.fromkeys(on))
        return "select number, id from unnest(%s::uuid[]) with ordinality as given (id, number)", [given]
    condition, values = where(caller, on)
    return f"select row_number() over (order by id) as number, id from listing where {condition}", values


def jobs(caller: Caller, id_: UUID | None = None) -> tuple[str, list[Any]]:
    """The statement for the jobs that ``caller`` may see: their own, all with `manage-directory` for all."""
    manages = caller.scope(Permission.MANAGE_DIRECTORY) is Scope.ALL
    values = [caller.workspace_id, caller.actor.kind.value, caller.actor.id, manages]
    return (_JOB, values) if id_ is None else (f"{_JOB} and id = %s", [*values, id_])


async def cancel(connection: AsyncConnection[Any], caller: Caller, id_: UUID) -> None:
    """End the job where it stands; once this is committed, it changes nothing more. One that is over stays as it is."""
    await connection.execute(
        f"update bulk_jobs set state = 'cancelled', finished_at = clock_timestamp(), command = command - 'comment'"
        f" where workspace_id = %s and id = %s and state not in ({_OVER})",
        (caller.workspace_id, id_),
    )


# Carrying it out, in any process


@dataclass(frozen=True, slots=True)
class Job:
    """What a turn must know of a job."""

    workspace_id: UUID
    id: UUID
    action: str
    command: dict[str, Any]
    dry_run: bool
    token_id: UUID | None
    request_id: UUID
    total: int
    done: int


class BulkRunner:
    """Takes turns at the jobs of all workspaces, one at a time, longest waiting first.

    At most ``chunk`` commands wait for the writer at any moment, so that those of people pass between them.
    """

    def __init__(
        self, pool: AsyncConnectionPool[Any], writer: Writer, identity: Identity, *, chunk: int, keep_days: int
    ) -> None:
        self._pool = pool
        self._writer = writer
        self._identity = identity
        self._chunk = chunk
        self._keep_days = keep_days
        self._awake = asyncio.Event()
        self._closing = False
        self._clean_at = 0.0

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True  # after the present turn
        self.wake()
        await self._running

    def wake(self) -> None:
        """Look for work at once."""
        self._awake.set()

    async def _run(self) -> None:
        while not self._closing:
            self._awake.clear()
            try:
                worked = await self.turn()
                await self._clean()
            except (UnavailableError, psycopg.OperationalError) as away:
                log.warning("bulk actions wait: %s", away)
                await asyncio.sleep(_RETRY_SECONDS)
            except Exception:
                log.exception("bulk actions wait")
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                if not worked:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._awake.wait(), _POLL_SECONDS)

    async def turn(self) -> bool:
        """Do the next conversations of one job; whether there was any to do.

        Raises `UnavailableError` or a `psycopg.OperationalError` where it cannot go on now; the turn is then repeated.
        """
        async with self._pool.connection() as connection, connection.transaction():
            job = await _claim(connection)
            if job is None:
                return False
            try:
                async with connection.transaction():
                    await self._serve(connection, job)
            except (UnavailableError, psycopg.OperationalError):
                raise
            except Exception:
                log.exception("bulk action %s stopped", job.id)
                await _stop(connection, job, "internal-error")
        return True

    async def _serve(self, connection: AsyncConnection[Any], job: Job) -> None:
        try:
            caller = await self._identity.holder(job.workspace_id, job.token_id) if job.token_id else None
        except UnavailableError:  # its rights are just being changed; nobody else need wait for that
            await _postpone(connection, job)
            return
        if caller is None:
            await _stop(connection, job, "token-not-valid")
            return
        cursor = await connection.execute(
            "select number, conversation_id from bulk_items"
            " where workspace_id = %s and job_id = %s and number > %s and number <= %s order by number",
            (job.workspace_id, job.id, job.done, job.done + self._chunk),
        )
        items = await cursor.fetchall()
        command = COMMANDS[job.action].model_validate(job.command)
        requests = [request(job, command, caller, conversation_id) for _, conversation_id in items]
        answers = await asyncio.gather(*map(self._execute, requests), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, UnavailableError):
                raise answer  # and what the others did is recognised in the next turn
        results = [_result(number, answer) for (number, _), answer in zip(items, answers, strict=True)]
        await self._record(connection, job, results)

    async def _execute(self, asked: Request) -> Outcome:
        """Put it before the writer; where people's commands fill the queue, they come first."""
        for _ in range(_FULL_TRIES):
            with suppress(QueueFullError):
                return await self._writer.execute(asked)
            await asyncio.sleep(_FULL_SECONDS)
        return await self._writer.execute(asked)

    async def _record(self, connection: AsyncConnection[Any], job: Job, results: Sequence[dict[str, Any]]) -> None:
        """Write down what became of each; the job is done with its last one."""
        tally = Tally(result["outcome"] for result in results)
        done = job.done + len(results) >= job.total
        await connection.execute(
            "update bulk_items i set outcome = r.outcome, code = r.code, version = r.version, position = r.position"
            " from json_to_recordset(%s) as r (number int, outcome text, code text, version bigint, position bigint)"
            " where i.workspace_id = %s and i.job_id = %s and i.number = r.number",
            (orjson.dumps(results).decode(), job.workspace_id, job.id),
        )
        await connection.execute(
            "update bulk_jobs set state = %s, changed = changed + %s, already = already + %s, refused = refused + %s,"
            " failed = failed + %s, position = greatest(position, %s), next_at = clock_timestamp(),"
            " started_at = coalesce(started_at, transaction_timestamp()),"
            " finished_at = case when %s then clock_timestamp() end,"
            " command = case when %s then command - 'comment' else command end where workspace_id = %s and id = %s",
            (
                *("done" if done else "running", tally["changed"], tally["already"], tally["refused"], tally["failed"]),
                *(max((result["position"] or 0 for result in results), default=0), done, done),
                *(job.workspace_id, job.id),
            ),
        )
        for outcome, count in tally.items():
            CONVERSATIONS.labels(outcome).inc(count)

    async def _clean(self) -> None:
        """Delete, now and then, the jobs that ended long ago."""
        if monotonic() < self._clean_at:
            return
        self._clean_at = monotonic() + _CLEAN_SECONDS
        async with self._pool.connection() as connection:
            await connection.execute(
                "delete from bulk_jobs where finished_at < clock_timestamp() - make_interval(days => %s)",
                (self._keep_days,),
            )


async def _claim(connection: AsyncConnection[Any]) -> Job | None:
    """The job that waits longest and that no other process is at; ours until the transaction ends."""
    async with connection.cursor(row_factory=class_row(Job)) as cursor:
        await cursor.execute(
            "select workspace_id, id, action, command, dry_run, token_id, request_id, total,"
            " changed + already + refused + failed as done from bulk_jobs where state in ('waiting', 'running')"
            " and next_at <= clock_timestamp() order by next_at, id for update skip locked limit 1"
        )
        return await cursor.fetchone()


async def _postpone(connection: AsyncConnection[Any], job: Job) -> None:
    await connection.execute(
        "update bulk_jobs set next_at = clock_timestamp() + make_interval(secs => %s)"
        " where workspace_id = %s and id = %s",
        (_RETRY_SECONDS, job.workspace_id, job.id),
    )


async def _stop(connection: AsyncConnection[Any], job: Job, code: str) -> None:
    await connection.execute(
        "update bulk_jobs set state = 'stopped', reason = %s, finished_at = clock_timestamp(),"
        " command = command - 'comment' where workspace_id = %s and id = %s",
        (code, job.workspace_id, job.id),
    )


def request(job: Job, command: ConversationCommand, caller: Caller, conversation_id: UUID) -> Request:
    """What the writer is asked for one conversation: the same at every attempt, which the key tells it."""
    return Request(
        stream=Stream(job.workspace_id, StreamType.CONVERSATION, conversation_id),
        command=command,
        caller=caller,
        surface=Surface.BULK,
        request_id=job.request_id,
        correlation_id=job.id,
        keys=() if job.dry_run else (f"bulk:{job.id}:{conversation_id}",),
        fingerprint=hashlib.sha256(job.id.bytes).digest(),
        dry_run=job.dry_run,
    )


def _result(number: int, answer: Outcome | BaseException) -> dict[str, Any]:
    """What became of one conversation, as a row."""
    match answer:
        case Outcome():
            outcome = "changed" if answer.events else "already"
            row = {"outcome": outcome, "code": None, "version": answer.version, "position": answer.position}
        case DomainError():
            row = {"outcome": "refused", "code": answer.code, "version": None, "position": None}
        case _:
            row = {"outcome": "failed", "code": "internal-error", "version": None, "position": None}
    return {"number": number} | row
