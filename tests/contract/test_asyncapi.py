"""What consumers code against stays as it is: the schema of a shipped event never changes, and the document is valid.

Invariant: an entry of `golden_schemas.json` is never edited or removed; a new version of an event adds one. Kept is
what decides on a message, without titles, descriptions and examples.
"""

import asyncio
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from fastapi import FastAPI

from adapters.schemas import CONVERSATION_EVENTS, STATE_TYPE, document, schemas
from api import asyncapi
from api.settings import Settings
from domain.envelope import StreamType
from domain.events import EVENTS, UNPUBLISHED

FILE = Path(__file__).with_name("golden_schemas.json")
GOLDEN_EVENTS = json.loads((Path(__file__).with_name("golden_events.json")).read_text())
GOLDEN = json.loads(FILE.read_text())
SETTINGS = Settings(public_url="https://conversas.example.com/")
SAID_ONLY = {"title", "description", "examples", "default"}


def deciding(node: Any, *, names: bool = False) -> Any:
    """``node`` without what is there for people; below ``names`` keys are names of fields."""
    if isinstance(node, list):
        return [deciding(each) for each in node]
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if names or key not in SAID_ONLY}
    return {key: deciding(value, names=key in {"properties", "$defs"} and not names) for key, value in kept.items()}


def in_one_order(node: Any) -> str:
    return json.dumps(node, sort_keys=True, indent=1)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_schema_of_what_was_shipped_has_not_changed(name: str) -> None:
    found = schemas()
    assert name in found, f"'{name}' was removed or renamed, but consumers are built against it"
    assert in_one_order(deciding(found[name])) == in_one_order(GOLDEN[name]), (
        f"The schema of '{name}' is another now. Consumers are built against it: leave it, and add a new version."
    )


@pytest.mark.parametrize("name", schemas())
def test_every_schema_that_ships_is_kept(name: str) -> None:
    assert name in GOLDEN, f"Add the schema of '{name}' to {FILE.name} before it ships: {deciding(schemas()[name])}"


CHANGES = {
    "a field more": lambda schema: schema["properties"].update(more={"type": "string"}),
    "a field less": lambda schema: schema["properties"].pop("reason"),
    "another type": lambda schema: schema["properties"]["reason"].update(type="integer"),
    "a word more": lambda schema: schema["$defs"]["Presence"]["enum"].append("busy"),
    "no longer always there": lambda schema: schema["required"].remove("reason"),
    "a longer text": lambda schema: schema["properties"]["reason"].update(maxLength=501),
}


@pytest.mark.parametrize("change", CHANGES)
def test_canary_a_changed_schema_is_seen(change: str) -> None:
    changed = schemas()["conversation-transferred.v1"]
    CHANGES[change](changed)
    assert deciding(changed) != GOLDEN["conversation-transferred.v1"]


def test_other_words_about_a_field_are_no_change() -> None:
    same = schemas()["conversation-transferred.v1"]
    same["description"] = same["properties"]["reason"]["title"] = "said better"
    assert deciding(same) == GOLDEN["conversation-transferred.v1"]


@pytest.mark.parametrize("topic", GOLDEN_EVENTS)
def test_the_stored_sample_of_an_event_fits_its_schema_as_published(topic: str) -> None:
    event = EVENTS[topic].model_validate_json(GOLDEN_EVENTS[topic])
    published = json.loads(event.model_dump_json(exclude=UNPUBLISHED))
    validator = jsonschema_rs.validator_for(document(topic, "urn:x"), validate_formats=True)
    validator.validate(published)
    assert not validator.is_valid(published | {"personal": {}})
    for name in published:
        assert not validator.is_valid({key: value for key, value in published.items() if key != name}), name


def test_no_schema_names_what_stays_in_the_log() -> None:
    names = re.findall(r'"(personal|secret_sha256)"', json.dumps(schemas()))
    assert names == []


def test_the_document_names_every_event_of_conversations_and_no_other() -> None:
    made = asyncapi.asyncapi(SETTINGS)
    topics = {cls.TOPIC for cls in CONVERSATION_EVENTS}
    assert set(made["channels"]["events"]["messages"]) == topics
    assert set(made["channels"]["latest"]["messages"]) == {STATE_TYPE, "contact-erased.v1"}
    assert set(made["components"]["messages"]) == topics | {STATE_TYPE, "contact-erased.v1"}
    assert StreamType.CONVERSATION == "conversation"


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        return {node["$ref"]} if "$ref" in node else set().union(*(references(each) for each in node.values()))
    return set().union(*(references(each) for each in node)) if isinstance(node, list) else set()


def test_every_reference_of_the_document_leads_somewhere() -> None:
    made = asyncapi.asyncapi(SETTINGS)
    found = references(made)
    assert len(found) > 30
    for reference in found:
        node = made
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_topics_and_partitions_are_those_that_are_set() -> None:
    made = asyncapi.asyncapi(Settings(kafka_topic_prefix="support", kafka_partitions=6))
    assert [channel["address"] for channel in made["channels"].values()] == ["support.events.v1", "support.latest.v1"]
    assert [channel["bindings"]["kafka"]["partitions"] for channel in made["channels"].values()] == [6, 6]


# As it is served


class Client:
    """Asks the application, in this process."""

    def __init__(self) -> None:
        application = FastAPI()
        application.include_router(asyncapi.install(SETTINGS))
        self._transport = httpx.ASGITransport(application)

    def get(self, path: str) -> httpx.Response:
        return asyncio.run(self._get(path))

    async def _get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=self._transport, base_url="http://here") as client:
            return await client.get(path)


@pytest.fixture(scope="module")
def client() -> Client:
    return Client()


def dataschemas() -> dict[str, str]:
    messages = asyncapi.asyncapi(SETTINGS)["components"]["messages"]
    with_value = {name: message for name, message in messages.items() if "$ref" in message["payload"]}
    return {name: each["headers"]["properties"]["ce_dataschema"]["const"] for name, each in with_value.items()}


@pytest.mark.parametrize(("name", "address"), dataschemas().items())
def test_what_a_message_names_as_its_schema_is_served_there(name: str, address: str, client: Client) -> None:
    assert address == f"https://conversas.example.com/schemas/{name}.json"
    answer = client.get(httpx.URL(address).path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/schema+json"
    served = answer.json()
    assert served["$id"] == address
    jsonschema_rs.meta.validate(served)


@pytest.mark.parametrize("path", ["/schemas/nothing.v1.json", "/schemas/note-added.v1", "/schemas/..%2Fx.json"])
def test_there_is_no_other_schema(path: str, client: Client) -> None:
    assert client.get(path).status_code == 404


class Page(HTMLParser):
    """What a page loads, runs and links to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: set[str] = set()
        self.handlers: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses |= {value or "" for name, value in attrs if name in {"href", "src", "action"}}
        self.handlers |= {name for name, _ in attrs if name.startswith("on") or name == "style"}


def test_the_page_shows_every_message_and_needs_no_script_and_no_other_host(client: Client) -> None:
    answer = client.get("/asyncapi")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = Page()
    page.feed(answer.text)
    assert not page.tags & {"script", "link", "img", "iframe", "form", "object"}
    assert page.handlers == set()
    assert all(address.startswith("/") and not address.startswith("//") for address in page.addresses)
    for address in page.addresses:
        assert client.get(address).status_code == 200
    for name in asyncapi.asyncapi(SETTINGS)["components"]["messages"]:
        assert f'<h3 id="{name}">' in answer.text


def test_the_pages_style_is_the_one_that_its_policy_allows(client: Client) -> None:
    answer = client.get("/asyncapi")
    assert f"<style>{asyncapi.STYLE}</style>" in answer.text
    assert answer.text.count("<style") == 1
