"""The state of each conversation after its last event, for the compacted topic that new consumers start from.

The state is the listing's fold without what could name or describe a person. It depends on nothing but the
conversation's own events: a publisher that starts anew folds them from the log again and comes to the same bytes.

Invariant: a state of version N is the fold of exactly the events 1 to N; what is erased gets a tombstone.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Protocol, cast
from uuid import UUID

import orjson

from adapters.cloud_events import Message, MessageMaker
from adapters.schemas import ConversationState
from domain.conversation import ConversationEvent
from domain.envelope import RecordedEvent, StreamType
from domain.events import ContactErased, ConversationOpened, Priority
from projections.listing import ListingRow, fold, opened

Key = tuple[UUID, UUID]
"""Workspace and conversation."""


COLUMNS = tuple(ConversationState.model_fields)
PRIORITIES = [priority.value for priority in Priority]
_values = attrgetter(*COLUMNS)


class Histories(Protocol):
    """The part of the log that is needed here."""

    def read_streams(self, wanted: Mapping[Key, int]) -> Iterable[RecordedEvent]:
        """The events of each of these streams up to the version beside it, in order per stream."""
        ...

    def conversations_of(self, workspace_id: UUID, contact_id: UUID, through: int) -> Sequence[Key]:
        """The conversations that are with a contact, as of a position of the log."""
        ...


class LatestStates:
    """Folds what is about to be published into the states to publish with it; keeps some of them in memory."""

    def __init__(self, histories: Histories, maker: MessageMaker, limit: int) -> None:
        self._histories = histories
        self._maker = maker
        self._limit = limit
        self._rows: OrderedDict[Key, ListingRow] = OrderedDict()

    def messages(
        self,
        events: Sequence[RecordedEvent],
        erasures: Sequence[RecordedEvent] = (),
        is_due: Callable[[RecordedEvent, int], bool] = lambda _, _partition: True,
    ) -> list[Message]:
        """A state for each conversation among ``events``, after the last of them.

        And a tombstone for each in a partition that is due whose contact one of ``erasures`` erased: before its state
        if it has gone on since, so that whoever follows forgets what they knew in any case.
        """
        last: dict[Key, RecordedEvent] = {}
        wanted: dict[Key, int] = {}
        for recorded in events:
            key = (recorded.stream.workspace_id, recorded.stream.id)
            wanted.setdefault(key, recorded.version - 1)
            last[key] = recorded
        self._load(wanted)
        for recorded in events:
            self._fold(recorded)
        before: list[Message] = []
        after: list[Message] = []
        for erasure in erasures:
            stream = erasure.stream
            for key in self._histories.conversations_of(stream.workspace_id, stream.id, erasure.position):
                message = self._maker.tombstone(erasure, key[1])
                has_gone_on = key in last and last[key].position > erasure.position
                if is_due(erasure, message[1]):
                    (before if has_gone_on else after).append(message)
        states = [self._maker.state(event, self._value(key)) for key, event in last.items()]
        while len(self._rows) > self._limit:
            self._rows.popitem(last=False)
        return before + states + after

    def _load(self, wanted: Mapping[Key, int]) -> None:
        """Have the state of each conversation at the version beside it."""
        missing = {}
        for key, version in wanted.items():
            row = self._rows.get(key)
            if version and (row is None or row.version != version):
                self._rows.pop(key, None)
                missing[key] = version
        for recorded in self._histories.read_streams(missing) if missing else ():
            self._fold(recorded)

    def _fold(self, recorded: RecordedEvent) -> None:
        key, event = (recorded.stream.workspace_id, recorded.stream.id), cast("ConversationEvent", recorded.event)
        if isinstance(event, ConversationOpened):
            self._rows[key] = opened(recorded, event)
        row = self._rows[key]
        if row.version + 1 != recorded.version:
            message = f"version {recorded.version} of conversation {row.id} does not follow on {row.version}"
            raise ValueError(message)
        fold(row, recorded, event)
        self._rows.move_to_end(key)

    def _value(self, key: Key) -> bytes:
        state = dict(zip(COLUMNS, _values(self._rows[key]), strict=True))
        state["priority"] = PRIORITIES[state["priority"]]
        return orjson.dumps(state, option=orjson.OPT_UTC_Z)


def is_erasure(recorded: RecordedEvent) -> bool:
    """Whether consumers are to forget something because of it."""
    return recorded.stream.type is StreamType.CONTACT and isinstance(recorded.event, ContactErased)
