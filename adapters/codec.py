"""Events to bytes and back: the form in which they are stored for ever.

What is sealed (`adapters/sealing.py`) is decoded as if it said nothing; `opened` comes before, for who has the keys.

Invariant: `decode(event.TOPIC, encode(event)) == event`, for every version of every event ever shipped.
"""

import hashlib
import inspect
import sys
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from adapters import sealing
from domain import events
from domain.decider import DECIDERS, State
from domain.envelope import StreamType
from domain.events import EVENTS, Event


class UnknownTopicError(Exception):
    """The log holds an event that this version of the program does not know: it is older than the log."""


def encode(event: Event) -> bytes:
    """The event as JSON, fields in the order in which its class declares them."""
    return event.__pydantic_serializer__.to_json(event)


def decode(topic: str, data: bytes) -> Event:
    """The event stored under ``topic``; what is sealed of it says nothing."""
    try:
        cls = EVENTS[topic]
    except KeyError:
        msg = f"no event is known by the topic {topic!r}; run a version of Conversas that knows it"
        raise UnknownTopicError(msg) from None
    if sealing.is_sealed(data):
        data = sealing.blank(topic, data)
    event: Event = cls.__pydantic_validator__.validate_json(data)
    return event


@cache
def _state_adapter(stream_type: StreamType) -> TypeAdapter[Any]:
    return TypeAdapter(DECIDERS[stream_type].state)


@cache
def state_shape(stream_type: StreamType) -> str:
    """A digest of the code that folds it; a snapshot of another shape may not be what that code would fold."""
    sources = (inspect.getsource(module) for module in (sys.modules[DECIDERS[stream_type].evolve.__module__], events))
    return hashlib.sha256("".join(sources).encode()).hexdigest()[:16]


@cache
def state_shapes() -> list[str]:
    """The shapes that are of use to this program."""
    return sorted({state_shape(stream_type) for stream_type in StreamType})


def encode_state(stream_type: StreamType, state: State) -> bytes:
    """A folded state as JSON."""
    return _state_adapter(stream_type).dump_json(state)


def decode_state(stream_type: StreamType, data: bytes) -> State:
    """A folded state from JSON."""
    return _state_adapter(stream_type).validate_json(data)
