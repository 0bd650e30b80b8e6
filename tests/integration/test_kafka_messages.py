"""A message of every type, published to and consumed from a real Kafka, fits the AsyncAPI document.

Judged twice: by jsonschema-rs, headers and keys as well, and by libraries of AsyncAPI's own ecosystem, which run on
Node.js and are fetched once under the hashes of `tests/contract/asyncapi/package-lock.json`.
"""

import hashlib
import json
import os
import shutil
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import jsonschema_rs
import pytest
from databases import new_database
from feed import SPACE, consumed, history, id_of, keep_all, make_settings, publish, text_headers

from adapters.schemas import CONVERSATION_EVENTS, STATE_TYPE
from api import asyncapi
from api.settings import SCHEMA_SUFFIX, Settings, schema_base
from domain.envelope import RecordedEvent, Stream, StreamType
from domain.events import EVENTS, ContactErased

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "tests" / "contract"
CHECKS = CONTRACT / "asyncapi"
GOLDEN = json.loads((CONTRACT / "golden_events.json").read_text())
API = Settings(public_url="https://conversas.example.com")
DOCUMENT = asyncapi.asyncapi(API)
Message = tuple[str, dict[str, str], str, Any]
"""Channel, headers, key and payload."""


def every_event() -> list[RecordedEvent]:
    """A conversation to which everything happens, and the erasure of its contact, after one that nobody erases."""
    first = history(1)[0]
    events = [EVENTS[cls.TOPIC].model_validate_json(GOLDEN[cls.TOPIC]) for cls in CONVERSATION_EVENTS]
    recorded = [
        replace(first, position=number, version=number, event=event, stream=replace(first.stream, id=id_of("all")))
        for number, event in enumerate(events, 1)
    ]
    contact = next(event.after for event in events if event.TOPIC == "contact-reassigned.v1")
    erasure = replace(
        first,
        position=len(events) + 1,
        version=2,
        event=ContactErased(),
        stream=Stream(SPACE, StreamType.CONTACT, contact),
    )
    return [*recorded, erasure]


@pytest.fixture(scope="module")
def messages(kafka_bootstrap: str, postgres_url: str) -> list[Message]:
    """All that is on the topics after every event was published."""
    settings = make_settings(kafka_bootstrap, schema_base=schema_base(API), schema_suffix=SCHEMA_SUFFIX)
    keep_all(settings)
    with new_database(postgres_url) as database:
        publish(every_event(), database, settings)
    found = []
    for channel, topic in (("events", settings.events_topic), ("latest", settings.latest_topic)):
        for record in consumed(settings.bootstrap_servers, topic):
            payload = None if record.value is None else json.loads(record.value)
            found.append((channel, text_headers(record), record.key.decode(), payload))
    return found


def fits(schema: dict[str, Any], value: Any) -> bool:
    return jsonschema_rs.validator_for(schema | {"components": DOCUMENT["components"]}, validate_formats=True).is_valid(
        value
    )


def judged(message: Message) -> bool:
    """Whether key, headers and payload fit what the document says of this channel's message of this type."""
    channel, headers, key, payload = message
    name = headers["ce_type"]
    if name not in DOCUMENT["channels"][channel]["messages"]:
        return False
    described = DOCUMENT["components"]["messages"][name]
    binding = described["bindings"]["kafka"]
    return fits(binding["key"], key) and fits(described["headers"], headers) and fits(described["payload"], payload)


def test_a_message_of_every_type_was_consumed(messages: list[Message]) -> None:
    types = {(channel, headers["ce_type"]) for channel, headers, _, _ in messages}
    states = {("latest", STATE_TYPE), ("latest", ContactErased.TOPIC)}
    assert types == {("events", cls.TOPIC) for cls in CONVERSATION_EVENTS} | states


def test_every_message_fits_the_document(messages: list[Message]) -> None:
    for message in messages:
        assert judged(message), message


def test_canary_what_does_not_fit_is_told_from_what_does(messages: list[Message]) -> None:
    for channel, headers, key, payload in messages:
        assert not judged((channel, headers | {"ce_dataschema": "urn:other"}, key, payload))
        assert not judged((channel, headers | {"ce_more": "x"}, key, payload))
        assert not judged((channel, {n: v for n, v in headers.items() if n != "ce_position"}, key, payload))
        assert not judged((channel, headers, "no id", payload))
        assert not judged((channel, headers, key.split("/")[1] if "/" in key else f"{SPACE}/{key}", payload))
        assert not judged((channel, headers, key, {**(payload or {}), "personal": "x"}))


OLDEST_NODE = 18


def without(what: str) -> NoReturn:
    """Where the project is judged nothing is left out."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


@pytest.fixture(scope="session")
def node_checks() -> Path:
    """A directory with the check and its libraries. A second opinion: `judged` is the first, everywhere."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        without(f"npm is missing: install Node.js {OLDEST_NODE} or newer")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().lstrip("v").split(".")[0]) < OLDEST_NODE:
        without(f"Node.js is {version.strip()}: install {OLDEST_NODE} or newer")
    lock = (CHECKS / "package-lock.json").read_bytes()
    directory = ROOT / ".data" / "asyncapi" / hashlib.sha256(lock).hexdigest()[:12]
    if not directory.exists():
        partial = directory.with_name(f"partial-{uuid.uuid4()}")
        shutil.copytree(CHECKS, partial)
        fetching = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        fetched = subprocess.run(fetching, cwd=partial, capture_output=True, text=True, check=False)
        if fetched.returncode != 0:
            shutil.rmtree(partial)
            without(f"npm cannot fetch the libraries of the check: {fetched.stderr[-200:]}")
        partial.rename(directory)
    shutil.copy(CHECKS / "check.js", directory)
    return directory


def check(directory: Path, document: dict[str, Any], messages: list[Message]) -> tuple[list[Any], list[str]]:
    """What the ecosystem's libraries have against the document, and the names of messages that they refuse."""
    told = [
        {"channel": channel, "name": headers["ce_type"], "payload": payload}
        for channel, headers, _, payload in messages
    ]
    done = subprocess.run(
        ["node", "check.js"],
        cwd=directory,
        input=json.dumps({"document": document, "messages": told}),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    answer = json.loads(done.stdout)
    newer = "asyncapi-latest-version"
    return [each for each in answer["diagnostics"] if each["code"] != newer], [
        each["name"] for each in answer["refused"]
    ]


def test_the_ecosystems_own_libraries_find_nothing_wrong(messages: list[Message], node_checks: Path) -> None:
    assert check(node_checks, DOCUMENT, messages) == ([], [])


def test_canary_the_ecosystems_own_libraries_see_what_is_wrong(messages: list[Message], node_checks: Path) -> None:
    wrong = [(channel, headers, key, {**(payload or {}), "more": 1}) for channel, headers, key, payload in messages]
    _, refused = check(node_checks, DOCUMENT, wrong)
    assert sorted(refused) == sorted(headers["ce_type"] for _, headers, _, _ in wrong)
    broken = DOCUMENT | {"operations": {"x": {"action": "shout", "channel": {"$ref": "#/channels/nowhere"}}}}
    with pytest.raises(subprocess.CalledProcessError):
        check(node_checks, broken, [])
