"""The `eventsourcing` library's own test suites, unmodified, on our recorders and a real PostgreSQL.

Invariant: a suite that is not here is named in `docs/adr/0002-library-suites.md`, with the reason.
"""

import os
from collections.abc import Iterator
from typing import cast
from uuid import UUID

import psycopg
import pytest
from eventsourcing.persistence import Tracking
from eventsourcing.utils import Environment, get_topic

from adapters.recorder import (
    Database,
    EventProcessRecorder,
    Factory,
    PositionRecorder,
    Recorder,
    SnapshotRecorder,
)

if os.environ.get("CI") != "true":
    pytest.importorskip("Crypto", reason="the library's suites need pycryptodome: pip install pycryptodome")
    pytest.importorskip("msgspec", reason="the library's suites need msgspec: pip install msgspec")

from eventsourcing.tests import application, persistence, projection  # as modules: imported classes would be collected

WORKSPACE = UUID(int=1)
LIBRARY_MAPPER = {"MAPPER_TOPIC": "eventsourcing.persistence:Mapper"}
"""The suites record aggregates of their own, which `EventMapper` rightly refuses."""


class OnOurStore:
    """A fresh database for each case of a suite."""

    @pytest.fixture(autouse=True)
    def _store(self, database: str) -> Iterator[None]:
        self.database = Database(database)
        yield
        self.database.close()


class TestSnapshotRecorder(OnOurStore, persistence.AggregateRecorderTestCase):
    def create_recorder(self) -> SnapshotRecorder:
        recorder = SnapshotRecorder(self.database, WORKSPACE)
        recorder.create_table()
        return recorder


class TestRecorder(OnOurStore, persistence.ApplicationRecorderTestCase[Recorder]):
    def create_recorder(self) -> Recorder:
        return Recorder(self.database, WORKSPACE)

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestNonInterleaving(OnOurStore, persistence.NonInterleavingNotificationIDsBaseCase):
    def create_recorder(self) -> Recorder:
        return Recorder(self.database, WORKSPACE)


class TestPositionRecorder(OnOurStore, persistence.TrackingRecorderTestCase):
    def create_recorder(self) -> PositionRecorder:
        return PositionRecorder(self.database)


class TestEventProcessRecorder(OnOurStore, persistence.ProcessRecorderTestCase):
    def create_recorder(self) -> EventProcessRecorder:
        return EventProcessRecorder(self.database, WORKSPACE)


class TestEventProcessRecorderAsRecorder(OnOurStore, persistence.ApplicationRecorderTestCase[EventProcessRecorder]):
    def create_recorder(self) -> EventProcessRecorder:
        return EventProcessRecorder(self.database, WORKSPACE)

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestEventProcessRecorderAsPositions(OnOurStore, persistence.TrackingRecorderTestCase):
    def create_recorder(self) -> EventProcessRecorder:
        return EventProcessRecorder(self.database, WORKSPACE)


class PositionRecorderSubclass(PositionRecorder):
    """What the factory's suite asks for."""


class TestFactory(persistence.InfrastructureFactoryTestCase[Factory]):
    @pytest.fixture(autouse=True)
    def _environment(self, database: str) -> None:
        settings = {
            "PERSISTENCE_MODULE": "adapters.recorder",
            "CONVERSAS_DATABASE_URL": database,
            "CONVERSAS_WORKSPACE_ID": str(WORKSPACE),
        }
        self.env = Environment("TestCase", settings | LIBRARY_MAPPER)

    def expected_factory_class(self) -> type[Factory]:
        return Factory

    def expected_aggregate_recorder_class(self) -> type[SnapshotRecorder]:
        return SnapshotRecorder

    def expected_application_recorder_class(self) -> type[Recorder]:
        return Recorder

    def expected_tracking_recorder_class(self) -> type[PositionRecorder]:
        return PositionRecorder

    def tracking_recorder_subclass(self) -> type[PositionRecorder]:
        return PositionRecorderSubclass

    def expected_process_recorder_class(self) -> type[EventProcessRecorder]:
        return EventProcessRecorder


class InOurEnvironment:
    """What is constructed without an environment of its own finds our store in the process's."""

    @pytest.fixture(autouse=True)
    def _environment(self, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PERSISTENCE_MODULE", "adapters.recorder")
        monkeypatch.setenv("CONVERSAS_DATABASE_URL", database)
        monkeypatch.setenv("CONVERSAS_WORKSPACE_ID", str(WORKSPACE))
        # The library gives each application tables of its own; here a workspace of its own does that.
        monkeypatch.setenv("COUNTERS_CONVERSAS_WORKSPACE_ID", str(UUID(int=2)))
        monkeypatch.setenv("MAPPER_TOPIC", LIBRARY_MAPPER["MAPPER_TOPIC"])


class TestExampleApplication(InOurEnvironment, application.ExampleApplicationTestCase):
    expected_factory_topic = get_topic(Factory)


@pytest.mark.filterwarnings("default:'log' is deprecated:DeprecationWarning")  # a case asks for the warning
class TestApplication(InOurEnvironment, application.ApplicationTestCase):
    pass


class TestEventSourcedProjection(InOurEnvironment, projection.EventSourcedProjectionTestCase):
    pass


class EventCounters(PositionRecorder, projection.EventCountersView):
    """The view of the library's projection suites: two counters in a table, changed together with the position."""

    def __init__(self, database: Database, *, purpose: str = "library") -> None:
        super().__init__(database, purpose=purpose)
        with database.connection() as connection:
            connection.execute("create table if not exists counters (name text primary key, count bigint not null)")

    def _count(self, name: str) -> int:
        with self.database.connection() as connection:
            row = connection.execute("select count from counters where name = %s", (name,)).fetchone()
        return row[0] if row else 0

    def _increment(self, name: str, tracking: Tracking) -> None:
        def increment(connection: psycopg.Connection) -> None:
            connection.execute(
                "insert into counters as c values (%s, 1) on conflict (name) do update set count = c.count + 1", (name,)
            )
            self.track(connection, tracking)

        self.database.transact(increment)

    def get_created_event_counter(self) -> int:
        return self._count("created")

    def get_subsequent_event_counter(self) -> int:
        return self._count("subsequent")

    def incr_created_event_counter(self, tracking: Tracking) -> None:
        self._increment("created", tracking)

    def incr_subsequent_event_counter(self, tracking: Tracking) -> None:
        self._increment("subsequent", tracking)


class TestEventCountersView(OnOurStore, projection.EventCountersViewTestCase):
    def construct_event_counters_view(self) -> EventCounters:
        return EventCounters(self.database)


class TestEventCountersProjection(InOurEnvironment, projection.AggregateEventCountersProjectionTestCase):
    view_class = cast("type[projection.EventCountersView]", EventCounters)
