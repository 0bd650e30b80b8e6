"""Limits of streams: how many, how they show that they live, what keeps presence, and that they let the server stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from running_service import Service, wait_until
from streams_rig import TOKEN, Listener, Sent, serving

from api import demo

LISTING, LOG = "/v1/conversations/stream", "/v1/events/stream"


@contextmanager
def listening(client: httpx.Client, path: str) -> Iterator[Listener]:
    """A listener that has begun."""
    with Listener(client, path) as listener:
        assert listener.status == 200
        assert listener.next().name == "ready"
        yield listener


@pytest.fixture(scope="module")
def small(postgres_url: str) -> Iterator[Service]:
    """A service with three streams at most, on which presence expires soon and heartbeats come fast."""
    patch = "import api.streams; api.streams.HEARTBEAT_SECONDS = 0.3"
    with serving(postgres_url, patch=patch, OPEN_STREAMS="3", PRESENCE_SECONDS="1") as running:
        yield running


@pytest.fixture(scope="module")
def admin(small: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=small.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30) as client:
        yield client


def presence(client: httpx.Client) -> str:
    items = client.get("/v1/presence").json()["items"]
    return next(str(each["status"]) for each in items if each["agent_id"] == str(demo.ADMIN))


def test_presence_expires_and_an_open_stream_keeps_it(admin: httpx.Client) -> None:
    admin.put("/v1/presence", json={"status": "online"}).raise_for_status()
    assert presence(admin) == "online"
    wait_until(lambda: presence(admin) == "offline", "the heartbeat expires", 3)
    with listening(admin, LISTING):
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            assert presence(admin) == "online"
            time.sleep(0.1)
    wait_until(lambda: presence(admin) == "offline", "the stream's end is noticed", 3)


def test_a_quiet_stream_shows_that_it_lives(admin: httpx.Client) -> None:
    with listening(admin, LISTING) as stream:
        wait_until(lambda: stream.comments >= 3, "heartbeats come", 5)


def test_more_streams_than_allowed_are_refused_and_closed_ones_make_room(admin: httpx.Client) -> None:
    with listening(admin, LOG), listening(admin, LISTING), listening(admin, LISTING):
        refused = admin.get(LISTING)
        assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "overloaded", "1")
        assert admin.get("/v1/conversations").status_code == 200
    wait_until(lambda: can_listen(admin), "closed streams make room", 5)


def can_listen(client: httpx.Client) -> bool:
    with Listener(client, LISTING) as listener:
        return listener.status == 200


def test_the_server_stops_soon_although_streams_are_open(postgres_url: str) -> None:
    with serving(postgres_url) as running:
        client = httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {TOKEN}"})
        with client, listening(client, LISTING) as one, listening(client, LOG) as other:
            running.server.send_signal(signal.SIGTERM)
            asked = time.monotonic()
            running.server.wait(timeout=8)
            assert time.monotonic() - asked < 5
            for stream in (one, other):
                assert stream.ends(2)[-1] == Sent("resync", {"reason": "stopping"})
