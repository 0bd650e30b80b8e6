"""The topic of states: as the log folds, in the transaction of the events, the same again after any death."""

import json
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from contact_keyring import keys_of
from feed import (
    OTHER_SPACE,
    PARTITIONS,
    SECRET,
    SPACE,
    ListLog,
    assert_exactly_once,
    consumed,
    history,
    id_of,
    in_two_workspaces,
    keep_all,
    live,
    make_settings,
    publish,
    text_headers,
)

from adapters.cloud_events import Message, MessageMaker
from adapters.command_handler import CommandHandler
from adapters.deciding import Request
from adapters.event_log import EventLog
from adapters.kafka_latest import LatestStates
from adapters.kafka_publisher import Publisher, PublisherFailedError, PublisherSettings
from adapters.postgres import Role
from adapters.schemas import ConversationState
from domain.commands import AddLabel, ChangePriority, Command, OpenConversation, ReassignContact, RegisterContact
from domain.conversation import Conversation
from domain.decider import DECIDERS
from domain.envelope import RecordedEvent, Stream, StreamType
from domain.events import Actor, ActorKind, ContactDetails, ContactErased, Priority, Surface
from domain.permissions import BUILT_IN_ROLES, Caller

pytestmark = pytest.mark.kafka

HALF = 200


@pytest.fixture
def settings(kafka_bootstrap: str) -> PublisherSettings:
    found = make_settings(kafka_bootstrap)
    keep_all(found)
    return found


def compacted(settings: PublisherSettings) -> dict[str, Any]:
    """What compaction would leave: the last value under each key."""
    records = consumed(settings.bootstrap_servers, settings.latest_topic)
    return {record.key.decode(): record.value for record in records}


def key_of(recorded: RecordedEvent) -> str:
    return f"{recorded.stream.workspace_id}/{recorded.stream.id}"


def folded(events: Sequence[RecordedEvent]) -> dict[str, Conversation]:
    """What the domain says of each conversation."""
    states: dict[str, Any] = {}
    for each in events:
        if each.stream.type is StreamType.CONVERSATION:
            key = key_of(each)
            states[key] = DECIDERS[StreamType.CONVERSATION].evolve(states.get(key), each.event)
    return states


def assert_states(settings: PublisherSettings, events: Sequence[RecordedEvent]) -> None:
    """Each conversation's last state is what its events fold to, up to the last of them."""
    expected = folded(events)
    found = {key: ConversationState.model_validate_json(value) for key, value in compacted(settings).items()}
    assert found.keys() == expected.keys()
    for key, state in found.items():
        conversation = expected[key]
        last = [each for each in events if key_of(each) == key][-1]
        assert f"{state.workspace_id}/{state.id}" == key
        assert (state.version, state.position) == (last.version, last.position)
        assert (state.status, state.priority) == (conversation.status, conversation.priority)
        assert (state.agent_id, state.contact_id) == (conversation.owner.agent_id, conversation.contact_id)
        assert tuple(state.labels) == conversation.labels
        assert state.messages_received == sum(
            each.event.TOPIC == "message-received.v1" for each in events if key_of(each) == key
        )


def test_each_conversation_has_the_state_that_its_events_fold_to(database: str, settings: PublisherSettings) -> None:
    events = history(450, conversations=30)
    with live(Publisher(ListLog(events[:HALF]), database, settings)) as publisher:
        publisher.publish_available()
        assert_states(settings, events[:HALF])
        publisher._log.events = events
        publisher.publish_available()
    assert_states(settings, events)
    assert_exactly_once(settings.bootstrap_servers, settings, events)


def test_a_state_is_a_cloud_event_beside_its_event(database: str, settings: PublisherSettings) -> None:
    publish(history(1), database, settings)
    (event,) = consumed(settings.bootstrap_servers, settings.events_topic)
    (state,) = consumed(settings.bootstrap_servers, settings.latest_topic)
    assert (state.partition, state.timestamp) == (event.partition, event.timestamp)
    headers = text_headers(state)
    same = ("ce_specversion", "ce_source", "ce_subject", "ce_time", "ce_sequence", "ce_position")
    assert {name: headers[name] for name in same} == {name: text_headers(event)[name] for name in same}
    assert headers["ce_type"] == "conversation-state.v1"
    assert headers["ce_id"] == f"{text_headers(event)['ce_id']}:state"
    assert state.key.decode() == headers["ce_partitionkey"] == f"{SPACE}/{event.key.decode()}"


def test_no_state_holds_personal_data(database: str, settings: PublisherSettings) -> None:
    publish(history(40), database, settings)
    for record in consumed(settings.bootstrap_servers, settings.latest_topic):
        assert SECRET.encode() not in b"".join((record.key, record.value, *(value for _, value in record.headers)))


class ByIdAlone(MessageMaker):
    """Canary: the keys of states name no workspace."""

    def state(self, last: RecordedEvent, value: bytes) -> Message:
        key, *rest = super().state(last, value)
        return (key.split(b"/")[1], *rest)

    def tombstone(self, erasure: RecordedEvent, conversation_id: uuid.UUID) -> Message:
        key, *rest = super().tombstone(erasure, conversation_id)
        return (key.split(b"/")[1], *rest)


@pytest.mark.parametrize("kind", [MessageMaker, ByIdAlone], ids=["told apart", "canary"])
def test_conversations_of_two_workspaces_under_one_id_leave_each_other_alone(
    kind: type[MessageMaker], database: str, settings: PublisherSettings
) -> None:
    """The same file imported into both gives this: ids are chosen by the source."""
    events = in_two_workspaces(history(60), versions=3)
    first = [key_of(each) for each in events if each.version == 1 and each.stream.type is StreamType.CONVERSATION]
    with live(Publisher(ListLog(events), database, settings)) as publisher:
        publisher._latest._maker = kind(settings.partitions, "")
        publisher.publish_available()
        if kind is ByIdAlone:
            assert len(compacted(settings)) * 2 == len(first)
            return
        assert_states(settings, events)
        events = erased(events, id_of("contact"), OTHER_SPACE)
        publisher._log = ListLog(events)
        publisher.publish_available()
    assert {key for key, value in compacted(settings).items() if value is None} == {
        key for key in first if key.startswith(str(OTHER_SPACE))
    }
    assert_exactly_once(settings.bootstrap_servers, settings, events)


class Forgetful(LatestStates):
    """Canary: makes up for a state that it lost by what is in the batch alone."""

    def _fold(self, recorded: RecordedEvent) -> None:
        row = self._rows.get((recorded.stream.workspace_id, recorded.stream.id))
        if row is not None:
            row.version = recorded.version - 1
        super()._fold(recorded)

    def _load(self, wanted: Any) -> None:
        first = {key: 1 for key, version in wanted.items() if version and key not in self._rows}
        for recorded in self._histories.read_streams(first):
            super()._fold(recorded)


@pytest.mark.parametrize("kind", [LatestStates, Forgetful], ids=["folds anew", "canary"])
def test_a_new_publisher_comes_to_the_same_states(
    kind: type[LatestStates], database: str, settings: PublisherSettings
) -> None:
    """After a death in the middle the states of the next process, which remembers nothing, are those of one process."""
    events = history(300, conversations=15)
    publish(events[:HALF], database, settings)
    second = Publisher(ListLog(events), database, settings)
    second._latest = kind(second._log, second._maker, 10)
    with live(second):
        second.publish_available()
    if kind is LatestStates:
        assert_states(settings, events)
    else:
        with pytest.raises(AssertionError):
            assert_states(settings, events)


def test_a_state_is_not_published_without_its_event(database: str, settings: PublisherSettings) -> None:
    class Fails(Publisher):
        def _require_delivered(self, futures: Sequence[Any]) -> None:
            super()._require_delivered(futures)
            if self._origin is not None:
                raise ValueError

    events = history(60)
    publish(events[:30], database, settings)
    with live(Fails(ListLog(events), database, settings)) as publisher, pytest.raises(PublisherFailedError):
        publisher.publish_available()
    assert publish(events[:30], database, settings) == 0, "and what was left open is ended"
    assert_states(settings, events[:30])
    publish(events, database, settings)
    assert_states(settings, events)


def states_of(events: Sequence[RecordedEvent], limit: int, batch: int) -> tuple[list[Message], int]:
    log = ListLog(list(events))
    latest = LatestStates(log, MessageMaker(PARTITIONS, ""), limit)
    found: list[Message] = []
    for start in range(0, len(events), batch):
        part = [each for each in events[start : start + batch] if each.stream.type is StreamType.CONVERSATION]
        found += latest.messages(part)
    return found, log.loads


def test_what_is_not_in_memory_any_more_is_folded_again_to_the_same_bytes() -> None:
    events = history(500, conversations=40)
    remembered, loads = states_of(events, limit=1_000, batch=10)
    assert loads == 0
    forgotten, loads = states_of(events, limit=3, batch=10)
    assert loads > 100
    assert forgotten == remembered


# Erasure


def erased(events: list[RecordedEvent], contact: uuid.UUID, space: uuid.UUID = SPACE) -> list[RecordedEvent]:
    """``events``, and then the contact's erasure."""
    stream = Stream(space, StreamType.CONTACT, contact)
    return [*events, replace(events[-1], position=len(events) + 1, stream=stream, version=2, event=ContactErased())]


def test_an_erased_contacts_conversations_get_tombstones(database: str, settings: PublisherSettings) -> None:
    events = erased(history(20), id_of("contact"))
    publish(events, database, settings)
    assert set(compacted(settings)) == set(folded(events))
    assert set(compacted(settings).values()) == {None}
    tombstone = consumed(settings.bootstrap_servers, settings.latest_topic)[-1]
    headers = text_headers(tombstone)
    assert (headers["ce_type"], headers["ce_position"]) == ("contact-erased.v1", "21")
    assert f"{SPACE}/{headers['ce_subject']}" == headers["ce_partitionkey"] == tombstone.key.decode()
    # In the same transaction and after the state: whoever follows forgets last.
    assert_exactly_once(settings.bootstrap_servers, settings, events)


def test_the_erasure_of_another_contact_leaves_states_alone(database: str, settings: PublisherSettings) -> None:
    events = erased(history(20), id_of("somebody else"))
    publish(events, database, settings)
    assert None not in compacted(settings).values()


def test_a_conversation_that_goes_on_after_the_erasure_has_a_state_again_and_its_tombstone_before_it(
    database: str, settings: PublisherSettings
) -> None:
    before = erased(history(20, conversations=2), id_of("contact"))
    goes_on = before[18]
    versions = sum(each.stream.id == goes_on.stream.id for each in before)
    later = replace(goes_on, position=22, version=versions + 1)
    publish([*before, later], database, settings)
    records = consumed(settings.bootstrap_servers, settings.latest_topic)
    of_it = [record for record in records if record.key == key_of(goes_on).encode()]
    assert [record.value is None for record in of_it] == [True, False]
    assert json.loads(of_it[-1].value)["position"] == 22


# The real log


def test_the_real_log_gives_histories_and_the_conversations_of_a_contact(database: str) -> None:
    space, request_id = uuid.uuid4(), uuid.uuid4()
    first, second = uuid.uuid4(), uuid.uuid4()
    one, two = uuid.uuid4(), uuid.uuid4()
    caller = Caller(space, Actor(kind=ActorKind.SYSTEM, id="t"), BUILT_IN_ROLES["admin"])

    def do(handler: CommandHandler, id_: uuid.UUID, command: Command) -> None:
        request = Request(Stream(space, command.STREAM, id_), command, caller, Surface.API, request_id, request_id)
        [answer] = handler.handle([request])
        assert not isinstance(answer, Exception), answer

    with closing(CommandHandler(database, keys_of(database))) as handler:
        for contact in (first, second):
            do(handler, contact, RegisterContact(contact_id=contact, details=ContactDetails()))
        do(handler, one, OpenConversation(protocol="1", channel="whatsapp", contact_id=first))
        do(handler, two, OpenConversation(protocol="2", channel="whatsapp", contact_id=first))
        for label in ("a", "b", "c"):
            do(handler, one, AddLabel(label=label))
        do(handler, two, ReassignContact(contact_id=second))
        do(handler, one, ChangePriority(priority=Priority.URGENT))
    with EventLog(database, role=Role.PUBLISHER) as log:
        assert [each.version for each in log.read_streams({(space, one): 3})] == [1, 2, 3]
        assert len(list(log.read_streams({(space, one): 99, (space, two): 1}))) == 6
        assert list(log.read_streams({(uuid.uuid4(), one): 9})) == []
        head = log.head()
        assert log.conversations_of(space, first, head) == [(space, one)]
        assert log.conversations_of(space, second, head) == [(space, two)]
        assert sorted(log.conversations_of(space, first, 4)) == sorted([(space, one), (space, two)])
        assert log.conversations_of(uuid.uuid4(), first, head) == []
        maker = MessageMaker(PARTITIONS, "")
        last = log.read(head - 1, 1)
        (message,) = LatestStates(log, maker, 10).messages(last)
    state = ConversationState.model_validate_json(message[2] or b"")
    assert (state.version, state.labels, state.priority) == (5, ["a", "b", "c"], Priority.URGENT)
    assert state.opened_at <= state.last_activity_at <= datetime.now(UTC)
