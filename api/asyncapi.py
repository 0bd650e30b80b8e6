"""What consumers of the topics code against: the AsyncAPI document, the JSON Schemas, and a page to read them.

Invariant: made from the models that write the messages; says nothing of a workspace, and needs no token.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from adapters.schemas import CONVERSATION_EVENTS, STATE_TYPE, document, schemas
from api.settings import SCHEMA_SUFFIX, Settings, schema_base
from domain.events import ContactErased, Surface

UUID_PATTERN = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
TOMBSTONE = ContactErased.TOPIC
KAFKA_BINDING = "0.5.0"
_MOMENT = {"type": "string", "format": "date-time"}
_NUMBER = {"type": "string", "pattern": "^[1-9][0-9]*$"}
_ID = {"type": "string", "format": "uuid"}
_STATE_KEY = {"type": "string", "pattern": f"^{UUID_PATTERN}/{UUID_PATTERN}$", "description": "workspace/conversation"}

DESCRIPTION = """\
Every change of every conversation, as CloudEvents 1.0 in the binary mode of the Kafka protocol binding. The key of an
event is the conversation's id, so all changes of a conversation are in one partition, in order. Workspaces may have
conversations of the same id: a conversation is known by `ce_source` and `ce_subject`. The key of a state,
`workspace/conversation`, names both, since compaction keeps the last record of a key; states are in the partition of
their conversation's events. Read with `isolation.level=read_committed`. Values carry no personal data: read texts and
names from the API, with a token that may.

A broker that dies in the middle of a commit may make a record appear again. `ce_sequence` is the version in the
conversation, without gaps: skip what is not above the last one that you have.
"""


def asyncapi(settings: Settings) -> dict[str, Any]:
    """The AsyncAPI 3 document."""
    base, prefix, partitions = schema_base(settings), settings.kafka_topic_prefix, settings.kafka_partitions
    published = {cls.TOPIC: cls for cls in CONVERSATION_EVENTS}
    made = schemas()
    messages = {name: _message(name, made[name], base) for name in (*published, STATE_TYPE)}
    messages[TOMBSTONE] = _tombstone()
    definitions: dict[str, Any] = {}
    for name in (*published, STATE_TYPE):
        schema = _in_components(made[name])
        definitions |= schema.pop("$defs", {})
        definitions[name] = schema
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Conversas", "version": "1", "description": DESCRIPTION},
        "defaultContentType": "application/json",
        "channels": {
            "events": _channel(
                f"{prefix}.events.v1",
                "Every event of every conversation, in order per conversation.",
                published,
                {"partitions": partitions, "topicConfiguration": {"cleanup.policy": ["delete"], "retention.ms": -1}},
            ),
            "latest": _channel(
                f"{prefix}.latest.v1",
                "Compacted: the state of each conversation after its last event, to start from. A tombstone says that "
                "its contact was erased: forget what you know of the conversation.",
                (STATE_TYPE, TOMBSTONE),
                {"partitions": partitions, "topicConfiguration": {"cleanup.policy": ["compact"]}},
            ),
        },
        "operations": {
            f"publish{channel.capitalize()}": {
                "action": "send",
                "channel": {"$ref": f"#/channels/{channel}"},
                "summary": summary,
                "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in names],
            }
            for channel, names, summary in (
                ("events", (*published,), "Conversas publishes each event once it is in the log."),
                ("latest", (STATE_TYPE, TOMBSTONE), "Conversas publishes it in the same transaction as the events."),
            )
        },
        "components": {"messages": messages, "schemas": definitions},
    }


def _channel(address: str, description: str, messages: Any, binding: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "address": address,
        "description": description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {"kafka": {**binding, "bindingVersion": KAFKA_BINDING}},
    }


def _message(name: str, schema: Mapping[str, Any], base: str) -> dict[str, Any]:
    of_event = name != STATE_TYPE
    return {
        "name": name,
        "title": schema["title"],
        "summary": schema["description"].split("\n")[0],
        "contentType": "application/json",
        "headers": _headers(name, f"{base}{name}{SCHEMA_SUFFIX}", of_event=of_event),
        "payload": {"$ref": f"#/components/schemas/{name}"},
        "bindings": {"kafka": {"key": _ID if of_event else _STATE_KEY, "bindingVersion": KAFKA_BINDING}},
    }


def _tombstone() -> dict[str, Any]:
    return {
        "name": TOMBSTONE,
        "title": "Tombstone",
        "summary": "The conversation's contact was erased; the record has no value.",
        "headers": _headers(TOMBSTONE, None, of_event=False),
        "payload": {"type": "null"},
        "bindings": {"kafka": {"key": _STATE_KEY, "bindingVersion": KAFKA_BINDING}},
    }


def _headers(type_: str, schema: str | None, *, of_event: bool) -> dict[str, Any]:
    """Those of CloudEvents, and our extensions."""
    always: dict[str, Any] = {
        "ce_specversion": {"type": "string", "const": "1.0"},
        "ce_id": {"type": "string", "description": "unique with ce_source; of an event, conversation:version"},
        "ce_type": {"type": "string", "const": type_},
        "ce_source": {"type": "string", "pattern": f"^/workspaces/{UUID_PATTERN}$"},
        "ce_subject": _ID | {"description": "the conversation"},
        "ce_time": _MOMENT | {"description": "when it was recorded"},
        "ce_partitionkey": (_ID if of_event else _STATE_KEY) | {"description": "the record's key"},
        "ce_position": _NUMBER | {"description": "in the log: one order over all conversations"},
    }
    if schema is not None:
        always |= {
            "ce_dataschema": {"type": "string", "format": "uri", "const": schema},
            "ce_sequence": _NUMBER | {"description": "version in the conversation, from 1, without gaps"},
            "content-type": {"type": "string", "const": "application/json"},
        }
    if of_event:
        always |= {
            "ce_actor": {"type": "string", "pattern": "^(agent|bot|contact|system|integration):", "description": "who"},
            "ce_surface": {"type": "string", "enum": [surface.value for surface in Surface], "description": "where"},
            "ce_occurredat": _MOMENT | {"description": "when it happened; before ce_time for what was imported"},
            "ce_requestid": _ID,
            "ce_correlationid": _ID,
        }
    sometimes = {"ce_causationid": {"type": "string"}} if of_event else {}
    return {
        "type": "object",
        "properties": always | sometimes,
        "required": list(always),
        "additionalProperties": False,
    }


def _in_components(node: Any) -> Any:
    """``node`` with its references to definitions of its own turned to the document's components."""
    if isinstance(node, list):
        return [_in_components(value) for value in node]
    if not isinstance(node, dict):
        return node
    return {
        key: value.replace("#/$defs/", "#/components/schemas/") if key == "$ref" else _in_components(value)
        for key, value in node.items()
    }


def install(settings: Settings) -> APIRouter:
    """The routes, with the document made once."""
    routes = APIRouter(include_in_schema=False)
    made = asyncapi(settings)
    html = page(made)

    @routes.get("/asyncapi.json")
    async def asyncapi_json() -> Response:
        return JSONResponse(made)

    @routes.get("/asyncapi")
    async def asyncapi_page() -> Response:
        return HTMLResponse(html, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY})

    @routes.get("/schemas/{name}.json")
    async def schema(name: str) -> Response:
        found = document(name, f"{schema_base(settings)}{name}{SCHEMA_SUFFIX}")
        if found is None:
            raise HTTPException(404, "There is no schema of this name; /asyncapi lists them.")
        return JSONResponse(found, media_type="application/schema+json")

    return routes


# The page

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24;
  background: #fff }
h2 { margin-top: 3rem; border-bottom: 1px solid #d0d7de } h3 { margin-top: 2rem; font-family: ui-monospace, monospace }
table { border-collapse: collapse; width: 100%; font-size: .9rem } caption { text-align: left; font-weight: 600 }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #d0d7de }
td:first-child { font-family: ui-monospace, monospace; white-space: nowrap } pre { white-space: pre-wrap }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117 } a { color: #58a6ff } }
"""
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(made: Mapping[str, Any]) -> str:
    """The document for people: no script, nothing from another host."""
    return "".join(_page(made))


def _page(made: Mapping[str, Any]) -> Iterator[str]:
    components = made["components"]
    yield '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    yield f"<title>Conversas: the feed</title><style>{STYLE}</style><h1>Conversas: the feed</h1>"
    yield f"<pre>{escape(made['info']['description'])}</pre>"
    yield '<p>For programs: <a href="/asyncapi.json">/asyncapi.json</a> (AsyncAPI 3).</p>'
    for channel in made["channels"].values():
        yield f"<h2><code>{escape(channel['address'])}</code></h2><p>{escape(channel['description'])}</p>"
        for name in channel["messages"]:
            message = components["messages"][name]
            yield f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{escape(message["summary"])}</p>'
            if "$ref" in message["payload"]:
                yield f'<p><a href="/schemas/{escape(name)}.json">JSON Schema</a></p>'
                yield from _table("value", components["schemas"][name], components["schemas"])
            yield "<details><summary>headers</summary>"
            yield from _table("headers", message["headers"], {})
            yield "</details>"


def _table(title: str, schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[str]:
    yield f"<table><caption>{title}</caption><tr><th>field<th>type<th>meaning"
    for name, field in schema["properties"].items():
        meaning = field.get("description") or ""
        yield f"<tr><td>{escape(name)}<td>{escape(_type(field, definitions))}<td>{escape(meaning)}"
    yield "</table>"


def _type(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """In words, as short as it can be said."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        found = definitions[name]
        if "properties" in found:
            inner = ", ".join(f"{key}: {_type(value, definitions)}" for key, value in found["properties"].items())
            return f"{{{inner}}}"
        return _type(found, definitions)
    if "anyOf" in field:
        return " or ".join(_type(each, definitions) for each in field["anyOf"])
    if "const" in field:
        return f'"{field["const"]}"'
    if "enum" in field:
        return " | ".join(str(word) for word in field["enum"])
    if field.get("type") == "array":
        return f"list of {_type(field['items'], definitions)}"
    return str(field.get("format") or field.get("type") or "any")
