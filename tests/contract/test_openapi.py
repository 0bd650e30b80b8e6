"""The OpenAPI document is true: its examples run, and a real service never answers outside it.

Invariant: the service is a process of its own on a fresh demo workspace; whatever schemathesis makes up is sent to it.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import schemathesis
from campaign import CAMPAIGN
from hypothesis import HealthCheck, settings
from running_service import serving
from schemathesis.pytest.lazy import get_all_tests
from schemathesis.specs.openapi import checks as openapi_checks

from api.app import create_app
from api.settings import Settings

ROOT = Path(__file__).parents[2]
TOKEN = "cvs_contract-tests-admin"
AUTHORIZATION = {"Authorization": f"Bearer {TOKEN}"}
DOCUMENT: dict[str, Any] = create_app(Settings(), "postgresql://nowhere").openapi()


@pytest.fixture(scope="module")
def url(postgres_url: str) -> Iterator[str]:
    """API and projector as processes of their own, on a fresh database with the demo workspace."""
    with serving(postgres_url, TOKEN) as running:
        yield running.url


SEEN: dict[tuple[str, str], set[int]] = defaultdict(set)
"""The statuses that the tests of this module were answered with, by method and path of the document."""


def template_of(path: str) -> str | None:
    """The path of the document that ``path`` is one of."""
    for template in DOCUMENT["paths"]:
        if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template)), path):
            return str(template)
    return None


def note(response: httpx.Response) -> None:
    template = template_of(response.request.url.path)
    if template is not None:
        SEEN[response.request.method.lower(), template].add(response.status_code)


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    """The demo workspace's admin."""
    with httpx.Client(base_url=url, headers=AUTHORIZATION, timeout=30, event_hooks={"response": [note]}) as found:
        yield found


STREAMS = ("/v1/events/stream", "/v1/conversations/stream", "/v1/conversations/{id}/stream")
EXPORTS = ("/v1/conversations/export", "/v1/history/export")
OTHER_TYPES = {path: ["text/csv", "application/x-ndjson"] for path in EXPORTS}
OTHER_TYPES |= {path: ["text/event-stream"] for path in STREAMS}
"""What is not answered with JSON."""


def operations() -> list[tuple[str, str]]:
    """Methods and paths in the document's order; what ends a thing comes last, because the others need it."""
    found = [(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods]
    return sorted(found, key=lambda operation: operation[0] == "delete" and "/labels/" not in operation[1])


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        found: dict[str, Any] = DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
        return found
    return schema


def examples_of(method: str, path: str) -> tuple[str, Any]:
    """The path filled in with the examples of its parameters, and the example of the body."""
    operation = DOCUMENT["paths"][path][method]
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path" and path != "/v1/tokens/{id}":  # whose id only the answer that issues one knows
            path = path.replace(f"{{{parameter['name']}}}", parameter["schema"]["examples"][0])
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return path, body.get("example")


def ask(client: httpx.Client, method: str, url: str, body: Any = None) -> httpx.Response:
    """The answer to a request; of one that does not end by itself, its beginning."""
    if url.endswith("/stream"):
        with client.stream(method, url) as begun:
            return begun
    return client.request(method, url, json=body) if body is not None else client.request(method, url)


# The document itself


def test_the_document_served_is_the_one_checked_here(client: httpx.Client) -> None:
    assert client.get("/openapi.json").json() == json.loads(json.dumps(DOCUMENT))
    assert client.get("/docs").status_code == 200


@pytest.mark.parametrize(("method", "path"), operations())
def test_every_operation_says_what_it_does_and_what_can_go_wrong(method: str, path: str) -> None:
    operation = DOCUMENT["paths"][path][method]
    assert operation["summary"]
    assert operation["description"]
    assert (operation.get("security") == [{"token": []}]) is path.startswith("/v1/")
    if not path.startswith("/v1/"):
        return
    expected = {"401", "403", "404", "422", "503"}
    if method != "get":
        expected |= {"409", "412", "413"}
        assert (
            "example" in operation["requestBody"]["content"]["application/json"] if "requestBody" in operation else True
        )
    assert expected <= set(operation["responses"])
    for status, response in operation["responses"].items():
        problem = int(status) >= 400
        usual = ["application/problem+json" if problem else "application/json"]
        assert list(response["content"]) == (usual if problem else OTHER_TYPES.get(path, usual))
        content = next(iter(response["content"].values()))
        assert not problem or content["schema"] == {"$ref": "#/components/schemas/Problem"}


def test_names_of_operations_are_unique() -> None:
    names = [DOCUMENT["paths"][path][method]["operationId"] for method, path in operations()]
    assert len(names) == len(set(names))


# Its examples


def test_every_example_runs_on_the_demo_workspace(client: httpx.Client) -> None:
    issued = ""
    for method, path in operations():
        url, body = examples_of(method, path)
        if path == "/v1/tokens/{id}":
            url = url.replace("{id}", issued)
        answer = ask(client, method, url, body)
        documented = DOCUMENT["paths"][path][method]["responses"]
        assert str(answer.status_code) in documented, (method, url, answer.status_code, answer.text)
        assert answer.is_success or answer.status_code == 409, (method, url, answer.status_code, answer.text)
        if (method, path) == ("post", "/v1/tokens"):
            issued = answer.json()["id"]
    refused = {operation for operation, statuses in SEEN.items() if 409 in statuses}
    assert refused == set()  # in the document's order, the demo's state refuses none


def test_every_example_runs_again_or_is_refused_by_a_rule(client: httpx.Client) -> None:
    """After all examples, two sectors and an agent fewer: the state may refuse now, with a documented 409."""
    for method, path in operations():
        url, body = examples_of(method, path)
        if path == "/v1/tokens/{id}":
            continue
        answer = ask(client, method, url, body)
        assert answer.is_success or answer.status_code == 409, (method, url, answer.status_code, answer.text)


# Whatever else is sent

SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
CHECKS = [
    schemathesis.checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.ignored_auth,
    openapi_checks.missing_required_header,
]
# Both ways round: what the document rules out is refused, what it allows is accepted (or refused by a rule).
EXACT_CHECKS = [openapi_checks.negative_data_rejection, openapi_checks.positive_data_acceptance]
INEXACT = {
    "/v1/conversations": "that `filter` is JSON, and which operator and value go with a field, is told in words",
    "/v1/conversations/search": "the same",
    "/v1/conversations/{id}": "which versions there are, and that one goes without a moment, is told in words",
    "/v1/conversations/counts": "the same",
    "/v1/conversations/export": "the same",
    "/v1/conversations/stream": "the same",
    "/v1/metrics": "the same",
    "/v1/history": "which time zones there are is told in words",
    "/v1/history/export": "the same",
    "/v1/conversations/{id}/history": "the same",
    "/v1/contacts/{id}/timeline": "the same",
    "/v1/tokens": "that a time is between 1970 and 9999 is told in words",
    "/v1/metrics/search": "the same",
    "/v1/bulk": "which operator and value go with a field is a rule that the grammar has, not the document",
    "/v1/views": "which operator and value go with a field is a rule that the grammar has, not the document",
    "/v1/views/{id}": "the same",
    "/v1/attributes/{target}/{key}": "whether options belong to the type is a rule that the document tells in words",
    "/v1/conversations/{id}/transfer": "which fields go together is a rule that the document tells in words",
    "/v1/conversations/{id}/finalize": "the same",
    "/v1/conversations/{id}/messages": "a message_id that came before is refused; false is taken for a size of 0",
    "/v1/conversations/{id}/attributes": "digits beyond a text's limit are taken for a number",
    "/v1/contacts": "the same, and the form of an attribute's key is no part of the document",
    "/v1/contacts/{id}": "the same",
}


ALWAYS = [
    ("post", "/v1/conversations"),
    ("get", "/v1/conversations"),
    ("get", "/v1/conversations/{id}/messages"),
    ("post", "/v1/conversations/{id}/transfer"),
    ("delete", "/v1/conversations/{id}/labels/{label}"),
]
"""One of each kind; all of them take minutes and come with `make faults`. Streams do not end by themselves."""
MADE_UP = settings(
    max_examples=15 if CAMPAIGN else 8,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("method", "path"), [each for each in operations() if each[1] not in STREAMS] if CAMPAIGN else ALWAYS
)
def test_no_answer_is_outside_the_document(method: str, path: str, url: str) -> None:
    """The cases are made up here: as schemathesis' own tests, each worker would, and xdist runs one for all of them."""
    found = get_all_tests(
        schema=SCHEMA.include(method=method, path=path), test_func=is_inside, settings=MADE_UP, given_kwargs={}
    )
    [(_, law)] = [each.ok() for each in found]
    law(url=url)


def is_inside(case: Any, url: str) -> None:
    let_through(case)
    path = case.operation.path
    checks = CHECKS if path in INEXACT else CHECKS + EXACT_CHECKS
    response = case.call_and_validate(base_url=url, headers=AUTHORIZATION, checks=checks)
    SEEN[case.operation.method.lower(), path].add(response.status_code)


def let_through(case: Any) -> None:
    """Take out what is right by the document and stops nearly every made-up request early; all has tests elsewhere.

    A position that the log has not reached (503 after three seconds), a cursor that is not ours, an idempotency key
    that came before, a version that is not the present one.
    """
    query, headers = case.query or {}, case.headers or {}
    if str(query.get("at_least")).isdigit() and int(query["at_least"]) > 1:
        query["at_least"] = 1
    if len(str(query.get("cursor", ""))) <= 500:
        query.pop("cursor", None)
    if re.fullmatch("[!-~]{1,200}", headers.get("Idempotency-Key", "")):
        headers["Idempotency-Key"] = uuid4().hex
    if re.fullmatch(r'(W/)?"[0-9]{1,18}"|[0-9]{1,18}|\*', headers.get("If-Match", "")):
        del headers["If-Match"]


def test_every_status_seen_is_documented() -> None:
    assert SEEN, "run the whole module"
    undocumented = {
        (operation, status)
        for operation, statuses in SEEN.items()
        for status in statuses
        if status != 405 and str(status) not in DOCUMENT["paths"][operation[1]][operation[0]]["responses"]
    }
    assert undocumented == set()


def test_after_all_this_the_service_works(client: httpx.Client) -> None:
    ready = client.get("/readyz").json()
    assert (ready["ready"], ready["reason"]) == (True, None)
    for method, path in operations():
        if method == "get":
            url, _ = examples_of(method, path)
            assert ask(client, method, url).status_code == 200, url
