"""The `eventsourcing` library's `Application` on our store, beside our writer; and the library's traps, absent here.

Each trap's test has a canary: the same test on a variant that is broken the library's way.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from select import select
from time import monotonic, sleep
from typing import Any, Self
from uuid import UUID, uuid4

import psycopg
import pytest
from contact_keyring import keys_of
from eventsourcing.application import AggregateNotFoundError, Application
from eventsourcing.persistence import (
    DataError,
    IntegrityError,
    MapperDeserialisationError,
    OperationalError,
    StoredEvent,
    Tracking,
)
from eventsourcing.projection import ApplicationSubscription, Projection, ProjectionRunner
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from adapters import codec, sealing
from adapters.command_handler import CommandHandler
from adapters.contact_keys import KeyMissingError
from adapters.deciding import Outcome, Request
from adapters.event_log import EventLog
from adapters.postgres import APPEND_LOCK, WRITER_LIMITS
from adapters.recorder import Database, PositionRecorder, Recorder, StreamEvent, projector
from domain.commands import AddLabel, AddNote, ChangePriority, Command, OpenConversation, RegisterContact
from domain.conversation import Conversation
from domain.envelope import Metadata, Stream, StreamType
from domain.events import (
    Actor,
    ActorKind,
    ContactDetails,
    LabelAdded,
    NoteAdded,
    NotePersonal,
    Priority,
    PriorityChanged,
    Surface,
)
from domain.permissions import Caller, Permission, Scope

WORKSPACE, OTHER = UUID(int=1), UUID(int=2)
CONTACT, CONVERSATION = UUID(int=3), UUID(int=4)
ALICE = Actor(kind=ActorKind.AGENT, id="alice")
OPEN = OpenConversation(protocol="2026-1", channel="whatsapp", contact_id=CONTACT)
REGISTER = RegisterContact(contact_id=CONTACT, details=ContactDetails(name="Maria"))

Handle = Callable[..., Outcome]


@pytest.fixture
def handle(database: str) -> Iterator[Handle]:
    """Handle a command as our service does."""
    with closing(CommandHandler(database, keys_of(database))) as handler:
        yield handling(handler)


def handling(handler: CommandHandler) -> Handle:
    def do(command: Command, stream_id: UUID = CONVERSATION, workspace_id: UUID = WORKSPACE) -> Outcome:
        (answer,) = handler.handle(
            [
                Request(
                    stream=Stream(workspace_id, command.STREAM, stream_id),
                    command=command,
                    caller=Caller(
                        workspace_id, Actor(kind=ActorKind.SYSTEM, id="test"), dict.fromkeys(Permission, Scope.ALL)
                    ),
                    surface=Surface.API,
                    request_id=uuid4(),
                    correlation_id=uuid4(),
                )
            ]
        )
        if isinstance(answer, Exception):
            raise answer
        return answer

    return do


@pytest.fixture
def environment(database: str) -> dict[str, str]:
    return {
        "PERSISTENCE_MODULE": "adapters.recorder",
        "CONVERSAS_DATABASE_URL": database,
        "CONVERSAS_WORKSPACE_ID": str(WORKSPACE),
    }


@pytest.fixture
def application(environment: dict[str, str]) -> Iterator[Application[UUID]]:
    with Application[UUID](env=environment) as application:
        yield application


@pytest.fixture
def store(database: str) -> Iterator[Database]:
    with closing(Database(database)) as store:
        yield store


def label(version: int, name: str, before: tuple[str, ...] = ()) -> StreamEvent:
    event = LabelAdded(label=name, before=before, after=(*before, name))
    return StreamEvent(CONVERSATION, version, event)


def foreign(version: int, stream_id: UUID = CONVERSATION) -> StoredEvent:
    return StoredEvent(stream_id, version, "foreign", b"{}")


def everything(recorder: Recorder) -> list[tuple[UUID | str, int]]:
    return [(event.originator_id, event.originator_version) for event in recorder.select_notifications(None, 100)]


def noted(application: Application[UUID]) -> None:
    """Have the library record a note."""
    said = NoteAdded(message_id=uuid4(), author=ALICE, contact_id=CONTACT, personal=NotePersonal(text="em segredo"))
    application.events.put([StreamEvent(CONVERSATION, 2, said)])


def is_in_the_log(database: str, text: str) -> bool:
    with EventLog(database) as reader:
        return any(text.encode() in row.data for row in reader.read_rows(0, 100))


def test_what_says_something_of_a_contact_is_not_recorded_without_keys(
    database: str, handle: Handle, application: Application[UUID]
) -> None:
    handle(REGISTER, CONTACT)
    handle(OPEN)
    with pytest.raises(DataError, match="no key to seal it with"):
        noted(application)
    note = AddNote(message_id=uuid4(), author=ALICE, text="em segredo")
    with (
        closing(CommandHandler(database, None)) as without,
        pytest.raises(KeyMissingError, match="not stored in clear"),
    ):
        handling(without)(note)
    assert not is_in_the_log(database, "em segredo")
    handle(note)
    assert not is_in_the_log(database, "em segredo")
    assert handle(AddLabel(label="vip")).version == 3


def test_canary_without_the_rule_it_would_be_found_in_the_log(
    database: str, handle: Handle, application: Application[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle(REGISTER, CONTACT)
    handle(OPEN)
    monkeypatch.setattr(sealing, "says_something", lambda _topic, _data: False)
    noted(application)
    assert is_in_the_log(database, "em segredo")


# What our service writes, as the library reads it


def test_the_repository_folds_what_the_writer_wrote(handle: Handle, application: Application[UUID]) -> None:
    handle(REGISTER, CONTACT)
    handle(OPEN)
    handle(ChangePriority(priority=Priority.HIGH))
    handle(AddLabel(label="vip"))

    def get(version: int | None = None) -> Conversation:
        return application.repository.get(CONVERSATION, version=version, projector_func=projector())

    now, at_first = get(), get(version=1)
    assert (now.protocol, now.priority, now.labels) == ("2026-1", Priority.HIGH, ("vip",))
    assert (at_first.priority, at_first.labels) == (Priority.NORMAL, ())
    contact = application.repository.get(CONTACT, projector_func=projector(StreamType.CONTACT))
    assert contact.details.name is None, "what says something of a contact is sealed, and the library has no keys"
    with pytest.raises(AggregateNotFoundError):
        application.repository.get(uuid4(), projector_func=projector())


def test_the_notification_log_is_the_log_byte_for_byte(
    database: str, handle: Handle, application: Application[UUID]
) -> None:
    handle(REGISTER, CONTACT)
    handle(OPEN)
    section = application.notification_log["1,10"]
    with EventLog(database) as reader:
        rows = reader.read_rows(0, 10)
    expected = [(row.position, row.stream_id, row.version, row.topic, row.data) for row in rows]
    assert [(n.id, n.originator_id, n.originator_version, n.topic, n.state) for n in section.items] == expected
    assert section.id == "1,2"


def test_an_application_sees_its_own_workspace_only(handle: Handle, application: Application[UUID]) -> None:
    handle(REGISTER, CONTACT, OTHER)
    handle(REGISTER, CONTACT)
    handle(OPEN, workspace_id=OTHER)
    assert [notification.id for notification in application.recorder.select_notifications(None, 10)] == [2]
    assert application.recorder.max_notification_id() == 2
    with pytest.raises(AggregateNotFoundError):
        application.repository.get(CONVERSATION, projector_func=projector())


def test_what_the_library_appends_our_writer_goes_on_from(handle: Handle, application: Application[UUID]) -> None:
    handle(REGISTER, CONTACT)
    handle(OPEN)  # the writer has the stream's state in its cache from here on
    now = datetime(2026, 1, 1, tzinfo=UTC)
    metadata = Metadata(ALICE, Surface.INBOX, now, uuid4(), uuid4())
    (recording,) = application.save(label(2, "vip"), metadata=metadata)
    assert recording.notification.id == 3
    assert handle(AddLabel(label="vip")).events == 0
    assert handle(AddLabel(label="late")).version == 3
    with EventLog(application.env["CONVERSAS_DATABASE_URL"]) as reader:
        appended = reader.read(2, 1)[0]
    assert (appended.metadata, appended.event) == (metadata, label(2, "vip").event)


@pytest.mark.parametrize("version", [1, 2, 4])
def test_a_version_that_does_not_follow_is_a_conflict(
    version: int, handle: Handle, application: Application[UUID]
) -> None:
    handle(REGISTER, CONTACT)
    handle(OPEN)
    handle(ChangePriority(priority=Priority.LOW))
    with pytest.raises(IntegrityError, match="does not fit"):
        application.save(label(version, "vip"))
    assert application.recorder.max_notification_id() == 3


def test_a_stream_keeps_its_type(handle: Handle, application: Application[UUID]) -> None:
    handle(REGISTER, CONTACT)
    change = PriorityChanged(before=Priority.LOW, after=Priority.HIGH)
    with pytest.raises(IntegrityError, match="contact"):
        application.save(StreamEvent(CONTACT, 2, change))


def test_events_that_are_not_ours_are_neither_written_nor_misread(application: Application[UUID]) -> None:
    with pytest.raises(TypeError):
        application.mapper.to_stored_event(foreign(1))
    with pytest.raises(MapperDeserialisationError, match="foreign"):
        application.mapper.to_domain_event(foreign(1))
    with pytest.raises(MapperDeserialisationError):
        application.mapper.to_domain_event(StoredEvent(CONVERSATION, 1, LabelAdded.TOPIC, b"{}"))
    event = label(1, "vip")
    stored = application.mapper.to_stored_event(event)
    assert (stored.topic, stored.state) == ("label-added.v1", codec.encode(event.event))
    assert application.mapper.to_domain_event(stored) == event


# Following


def test_a_subscription_follows_the_writer(handle: Handle, application: Application[UUID]) -> None:
    handle(REGISTER, CONTACT)
    with ApplicationSubscription(application, gt=0) as subscription:
        assert next(subscription)[1] == Tracking("Application", 1)
        waiting = threading.Timer(0.2, handle, [OPEN])
        waiting.start()
        event, tracking = next(subscription)
        waiting.join()
    assert (event.event.protocol, tracking.notification_id) == ("2026-1", 2)


def test_a_subscription_needs_no_notify(database: str, store: Database) -> None:
    recorder = Recorder(store, WORKSPACE)
    with recorder.subscribe() as subscription:

        def append_silently() -> None:
            with psycopg.connect(database) as connection:
                connection.execute(
                    "insert into events select 1, %s, 'conversation', %s, 1, 'foreign', '', 'system', 'test', 'api',"
                    " now(), now(), %s, %s, null, 1",
                    (WORKSPACE, CONVERSATION, CONVERSATION, CONVERSATION),
                )

        silent = threading.Timer(0.2, append_silently)
        silent.start()
        assert next(subscription).id == 1
        silent.join()


def test_a_subscription_passes_over_what_does_not_match_once(store: Database) -> None:
    recorder, other = Recorder(store, WORKSPACE), Recorder(store, OTHER)
    other.insert_events([foreign(version) for version in range(1, 2_001)])
    recorder.insert_events([foreign(1)])
    with recorder.subscribe() as subscription:
        assert next(subscription).id == 2_001
        other.insert_events([foreign(2_001)])
        threading.Timer(0.5, subscription.stop).start()
        assert list(subscription) == []
        assert subscription._position == 2_002


def test_a_subscription_outlives_its_connection(database: str, store: Database) -> None:
    recorder = Recorder(store, WORKSPACE)
    recorder.insert_events([foreign(1)])
    with recorder.subscribe() as subscription:
        assert next(subscription).id == 1
        assert subscriptions(database, "pg_terminate_backend(pid)") == [True]
        recorder.insert_events([foreign(2)])
        assert next(subscription).id == 2


def test_a_waiting_subscription_stops_at_once_and_leaves_no_connection(database: str, store: Database) -> None:
    subscription = Recorder(store, WORKSPACE).subscribe()
    waiting = threading.Thread(target=lambda: list(subscription))
    waiting.start()
    sleep(0.5)
    assert len(subscriptions(database)) == 1
    started = monotonic()
    subscription.stop()
    waiting.join(5)
    assert monotonic() - started < 1
    sleep(0.1)
    assert subscriptions(database) == []


def subscriptions(database: str, column: str = "pid") -> list[Any]:
    with psycopg.connect(database, autocommit=True) as connection:
        rows = connection.execute(
            f"select {column} from pg_stat_activity"
            " where application_name = 'conversas-subscription' and datname = current_database()"
        )
        return [value for (value,) in rows]


class Labels(PositionRecorder):
    """A read model of the library's kind on our positions: how often each label was put on."""

    def __init__(self, database: Database, *, purpose: str = "library") -> None:
        super().__init__(database, purpose=purpose)
        with database.connection() as connection:
            connection.execute("create table if not exists labels (label text primary key, count bigint not null)")

    def add(self, name: str, tracking: Tracking) -> None:
        def work(connection: psycopg.Connection) -> None:
            connection.execute(
                "insert into labels as l values (%s, 1) on conflict (label) do update set count = l.count + 1", (name,)
            )
            self.track(connection, tracking)

        self.database.transact(work)

    def counts(self) -> dict[str, int]:
        with self.database.connection() as connection:
            return dict(connection.execute("select label, count from labels").fetchall())


class LabelCounts(Projection[Labels]):
    topics = (LabelAdded.TOPIC,)

    def process_event(self, domain_event: StreamEvent, tracking: Tracking) -> None:
        assert isinstance(domain_event.event, LabelAdded)
        self.view.add(domain_event.event.label, tracking)


def test_a_projection_of_the_library_runs_on_our_log_and_goes_on_where_it_was(
    handle: Handle, environment: dict[str, str], store: Database
) -> None:
    handle(REGISTER, CONTACT)
    handle(OPEN)

    def run(name: str) -> dict[str, int]:
        with ProjectionRunner(
            application_class=Application[UUID], projection_class=LabelCounts, view_class=Labels, env=environment
        ) as runner:
            position = handle(AddLabel(label=name)).position
            runner.wait(position, timeout=10)
            return runner.projection.view.counts()

    assert run("vip") == {"vip": 1}
    handle(AddLabel(label="while-away"))
    assert run("late") == {"vip": 1, "while-away": 1, "late": 1}
    with store.connection() as connection:
        rows = connection.execute("select name, position from projection_positions").fetchall()
    assert rows == [("LabelCounts/Application", 5)]


# Trap: readers pass over what is appended below them


class Slow(Recorder):
    """Waits before it commits."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, WORKSPACE)
        self.inserted, self.release = threading.Event(), threading.Event()

    def insert(self, *args: Any, **kwargs: Any) -> list[int]:
        positions = super().insert(*args, **kwargs)
        self.inserted.set()
        self.release.wait(4)
        return positions


class SlowWithoutLock(Slow):
    """Takes positions from a sequence and no lock, as the library's path through database functions does."""

    def _lock(self, connection: psycopg.Connection) -> tuple[int, datetime]:
        row = connection.execute("select nextval('canary') - 1, now()").fetchone()
        assert row is not None
        return row


@pytest.mark.parametrize(
    ("recorder_class", "seen"), [(Slow, [1, 2]), pytest.param(SlowWithoutLock, [2], id="canary: without the lock")]
)
def test_a_reader_misses_nothing_that_is_committed_late(
    recorder_class: type[Slow], seen: list[int], store: Database
) -> None:
    with store.connection() as connection:
        connection.execute("create sequence canary")
    early, late = recorder_class(store), recorder_class(store)
    late.release.set()
    writers = [
        threading.Thread(target=recorder.insert_events, args=([foreign(1, uuid4())],)) for recorder in (early, late)
    ]
    writers[0].start()
    assert early.inserted.wait(4)
    writers[1].start()
    writers[1].join(0.5)
    notifications = list(early.select_notifications(None, 10))
    early.release.set()
    for writer in writers:
        writer.join()
    position = notifications[-1].id if notifications else 0
    notifications += early.select_notifications(position, 10, inclusive_of_start=False)
    assert [notification.id for notification in notifications] == seen


# Trap: a lost reply to COMMIT is taken for a conflict


class CuttingProxy:
    """Stands between a client and PostgreSQL; when armed it cuts the next connection that commits."""

    def __init__(self, database: str) -> None:
        server = conninfo_to_dict(database)
        self._server = str(Path(str(server["host"])) / f".s.PGSQL.{server.get('port') or 5432}")
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.conninfo = make_conninfo(database, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")
        self.cut: str | None = None
        """When: ``before`` the server gets the COMMIT, ``during``, ``after`` it has answered; ``and refuse`` others."""
        self._threads = [threading.Thread(target=self._listen)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._refuse()
        for thread in self._threads:
            thread.join()

    def _refuse(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._relay, args=(client,)))
                self._threads[-1].start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            server.connect(self._server)
            cut = None
            while True:
                for source in select([client, server], [], [])[0]:
                    data = source.recv(65_536)
                    if source is client and b"COMMIT" in data:
                        cut, self.cut = self.cut, None
                    if not data or cut == "before" or (source is server and cut):
                        if cut == "after and refuse":
                            self._refuse()
                        return
                    (server if source is client else client).sendall(data)
                    if cut == "during":
                        return


class Guessing(Database):
    """Takes a commit that was not answered for one that did not happen, as the library does."""

    def _committed(self, transaction_id: str, deadline: float) -> bool:
        del transaction_id, deadline
        return False


@pytest.fixture
def proxy(database: str) -> Iterator[CuttingProxy]:
    with CuttingProxy(database) as proxy:
        yield proxy


@pytest.mark.parametrize("cut", ["before", "during", "after"])
def test_events_are_appended_once_when_the_connection_breaks_at_the_commit(
    cut: str, proxy: CuttingProxy, store: Database
) -> None:
    with closing(Database(proxy.conninfo)) as behind_proxy:
        recorder = Recorder(behind_proxy, WORKSPACE)
        assert recorder.insert_events([foreign(1)]) == [1]
        proxy.cut = cut
        assert recorder.insert_events([foreign(2), foreign(3)]) == [2, 3]
        assert proxy.cut is None, "the proxy cut nothing"
    assert everything(Recorder(store, WORKSPACE)) == [(CONVERSATION, 1), (CONVERSATION, 2), (CONVERSATION, 3)]


@pytest.mark.parametrize("cut", ["before", "during", "after"])
def test_a_position_is_moved_once_when_the_connection_breaks_at_the_commit(cut: str, proxy: CuttingProxy) -> None:
    with closing(Database(proxy.conninfo)) as behind_proxy:
        positions = PositionRecorder(behind_proxy)
        proxy.cut = cut
        positions.insert_tracking(Tracking("upstream", 7))
        assert proxy.cut is None, "the proxy cut nothing"
        assert positions.max_tracking_id("upstream") == 7


def test_canary_who_guesses_at_a_lost_commit_reports_a_false_conflict(proxy: CuttingProxy) -> None:
    with closing(Guessing(proxy.conninfo)) as behind_proxy:
        proxy.cut = "after"
        with pytest.raises(IntegrityError):
            Recorder(behind_proxy, WORKSPACE).insert_events([foreign(1)])
        proxy.cut = "after"
        with pytest.raises(IntegrityError):
            PositionRecorder(behind_proxy).insert_tracking(Tracking("upstream", 7))


def test_an_outcome_that_cannot_be_learned_is_called_unknown(proxy: CuttingProxy, store: Database) -> None:
    with closing(Database(proxy.conninfo, connections=1, patience_seconds=0.5)) as behind_proxy:
        proxy.cut = "after and refuse"
        with pytest.raises(OperationalError, match="unknown"):
            Recorder(behind_proxy, WORKSPACE).insert_events([foreign(1)])
    assert everything(Recorder(store, WORKSPACE)) == [(CONVERSATION, 1)]


def test_a_backend_that_is_terminated_in_a_transaction_costs_nothing(store: Database) -> None:
    recorder, killed = Recorder(store, WORKSPACE), []

    def insert_and_be_killed_once(connection: psycopg.Connection) -> list[int]:
        positions = recorder.insert(connection, [foreign(1)])
        if not killed:
            killed.append(True)
            connection.execute("select pg_terminate_backend(pg_backend_pid())")
        return positions

    assert store.transact(insert_and_be_killed_once) == [1]
    assert everything(recorder) == [(CONVERSATION, 1)]


# Trap: waiting for a lock for ever


@pytest.fixture
def lock_holder(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database) as connection:
        connection.execute("select pg_advisory_xact_lock(%s)", (APPEND_LOCK,))
        yield connection


def test_who_cannot_have_the_lock_is_told_so(database: str, lock_holder: psycopg.Connection) -> None:
    with closing(Database(database, settings=WRITER_LIMITS | {"lock_timeout": "300ms"})) as impatient:
        recorder = Recorder(impatient, WORKSPACE)
        started = monotonic()
        with pytest.raises(OperationalError, match="lock timeout"):
            recorder.insert_events([foreign(1)])
        assert monotonic() - started < 2
        lock_holder.rollback()
        assert recorder.insert_events([foreign(1)]) == [1]


def test_every_connection_has_limits(store: Database) -> None:
    with store.connection() as connection:
        for setting in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
            row = connection.execute("select setting::int from pg_settings where name = %s", (setting,)).fetchone()
            assert row is not None
            assert 0 < row[0] <= 15_000, setting


def test_canary_without_a_limit_it_waits_for_as_long_as_the_lock_is_held(
    database: str, lock_holder: psycopg.Connection
) -> None:
    with closing(Database(database, settings=WRITER_LIMITS | {"lock_timeout": "0"})) as patient:
        waiting = threading.Thread(target=Recorder(patient, WORKSPACE).insert_events, args=([foreign(1)],))
        waiting.start()
        waiting.join(1.5)
        assert waiting.is_alive()
        lock_holder.rollback()
        waiting.join()
