"""Our own import format: every type of line, what is wrong with bad ones, and that nothing comes twice."""

import json
import lzma
import re
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from contact_keyring import keys_of

from adapters.command_handler import CommandHandler
from adapters.importers import Rejected, Report, import_file, loading, ndjson_lines, report

WORKSPACE = UUID(int=7)
DOCUMENT = Path(__file__).parents[2] / "docs/IMPORT.md"
ANA = {"kind": "agent", "id": "ana"}
ATTACHMENT = {
    "name": "bill.pdf",
    "media_type": "application/pdf",
    "size_bytes": 10,
    "url": "https://files.example/bill",
    "sha256": "0" * 64,
}
PEOPLE: list[dict[str, Any]] = [
    {"type": "sector", "sector": "support", "name": "Support"},
    {"type": "sector", "sector": "sales", "name": "Sales"},
    {"type": "agent", "agent": "ana", "name": "Ana", "sectors": ["support", "sales"]},
    {"type": "agent", "agent": "bia", "name": "Bia", "role": "supervisor", "sectors": ["sales"]},
    {
        "type": "contact",
        "contact": "maria",
        "name": "Maria",
        "phones": ["+55 11 98765-4321"],
        "attributes": {"vip": True},
    },
    {
        "type": "open",
        "conversation": "c",
        "protocol": "P-1",
        "channel": "whatsapp",
        "contact": "maria",
        "sector": "support",
    },
]
EVERY_TYPE: list[tuple[dict[str, Any], list[str]]] = [
    ({"type": "message-received", "text": "olá"}, ["message-received.v1"]),
    ({"type": "handoff-to-bot", "bot": "triage", "reason": "hours"}, ["conversation-handed-off-to-bot.v1"]),
    ({"type": "message-sent", "text": "oi", "actor": {"kind": "bot", "id": "triage"}}, ["message-sent.v1"]),
    ({"type": "handoff-from-bot", "sector": "sales"}, ["conversation-handed-off-by-bot.v1"]),
    ({"type": "assume", "agent": "ana", "actor": ANA}, ["conversation-assumed.v1"]),
    ({"type": "message-sent", "kind": "document", "attachments": [ATTACHMENT], "actor": ANA}, ["message-sent.v1"]),
    ({"type": "note", "text": "later", "actor": ANA}, ["note-added.v1"]),
    ({"type": "label-add", "label": "vip"}, ["label-added.v1"]),
    ({"type": "label-add", "label": "vip"}, []),
    ({"type": "label-remove", "label": "vip"}, ["label-removed.v1"]),
    ({"type": "priority", "priority": "urgent"}, ["priority-changed.v1"]),
    ({"type": "attribute", "key": "order", "value": 17}, ["attribute-set.v1"]),
    ({"type": "attribute", "key": "order", "value": None}, ["attribute-set.v1"]),
    ({"type": "pending", "reason": "waiting_contact"}, ["conversation-marked-pending.v1"]),
    ({"type": "transfer", "sector": "sales", "agent": "bia", "reason": "hers"}, ["conversation-transferred.v1"]),
    ({"type": "finalize", "surface": "inbox", "outcome": "sold"}, ["conversation-finalized-from-inbox.v1"]),
    ({"type": "reopen", "agent": "ana", "actor": ANA}, ["conversation-reopened.v1"]),
    ({"type": "finalize", "surface": "listing", "comment": "done"}, ["conversation-finalized-from-listing.v1"]),
    ({"type": "message-received", "text": "still"}, ["conversation-reopened.v1", "message-received.v1"]),
    ({"type": "finalize-automatically", "cause": "inactivity"}, ["conversation-finalized-automatically.v1"]),
    ({"type": "contact", "contact": "maria", "name": "Maria S."}, ["contact-details-changed.v1"]),
    ({"type": "sector", "sector": "sales", "name": "Vendas"}, ["sector-renamed.v1"]),
    ({"type": "agent", "agent": "ana", "name": "Ana", "role": "admin"}, ["agent-role-changed.v1"]),
]


def line(number: int, fields: dict[str, Any]) -> dict[str, Any]:
    """A whole line: with an id, a time, and the conversation where its type needs one."""
    whole = {"id": f"l{number}", "occurred_at": f"2024-05-01T09:{number // 60:02}:{number % 60:02}Z"}
    if fields.get("type") not in {"contact", "sector", "agent"}:
        whole["conversation"] = "c"
    return whole | fields


def write(path: Path, lines: list[dict[str, Any] | bytes]) -> Path:
    path.write_bytes(b"\n".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines))
    return path


def load(conninfo: str, path: Path) -> Report:
    handler = CommandHandler(conninfo, keys_of(conninfo))
    try:
        return import_file(handler, WORKSPACE, path)
    finally:
        handler.close()


def topics(conninfo: str) -> list[tuple[str, str]]:
    """The causation id and topic of every event, in order."""
    with psycopg.connect(conninfo) as connection:
        return connection.execute("select causation_id, topic from events order by position").fetchall()


def rejected(report: Report) -> list[tuple[int, str]]:
    return [(each.line, each.reason) for each in report.rejected.kept]


def noted(report: Report) -> list[tuple[int, str]]:
    return [(each.line, each.reason) for each in report.noted.kept]


def test_each_type_becomes_its_event_and_twice_adds_nothing(database: str, tmp_path: Path) -> None:
    start = len(PEOPLE) + 1
    lines = [line(number, fields) for number, fields in enumerate(PEOPLE, 1)]
    every = [line(number, fields) for number, (fields, _) in enumerate(EVERY_TYPE, start)]
    path = write(tmp_path / "past.ndjson", [*lines, *every])
    report = load(database, path)
    assert rejected(report) == []
    happened = topics(database)
    for number, (_, expected) in enumerate(EVERY_TYPE, start):
        assert [topic for cause, topic in happened if cause == f"l{number}"] == expected
    assert {fields["type"] for fields in (*PEOPLE, *(fields for fields, _ in EVERY_TYPE))} == set(ndjson_lines.TYPES)
    assert report.events == len(happened)
    assert report.changes["sector-joined"] == 3

    again = load(database, path)
    assert (again.events, again.changes, rejected(again)) == (0, Counter(), [])
    assert again.already_present == sum(report.changes.values()) + report.already_present
    assert topics(database) == happened


def test_events_carry_the_times_actors_and_ids_of_the_source(database: str, tmp_path: Path) -> None:
    moment = {"occurred_at": "2024-05-01T09:31:00.5-03:00", "type": "assume", "agent": "ana", "actor": ANA}
    path = write(tmp_path / "past.ndjson.xz", [])
    people = [json.dumps(line(number, fields)) for number, fields in enumerate(PEOPLE, 1)]
    path.write_bytes(lzma.compress("\r\n".join(["", *people, json.dumps(line(9, moment)), ""]).encode("utf-8-sig")))
    assert rejected(load(database, path)) == []
    with psycopg.connect(database) as connection:
        row = connection.execute(
            "select occurred_at::text, actor_kind, actor_id, surface, stream_id, convert_from(data, 'utf8')::json"
            " from events where causation_id = 'l9'"
        ).fetchone()
    agent = loading.source_id(WORKSPACE, "ndjson", "agent", "ana")
    conversation = loading.source_id(WORKSPACE, "ndjson", "conversation", "c")
    assert row is not None
    assert row[0].startswith("2024-05-01 12:31:00.5")
    assert row[1:] == ("agent", str(agent), "import", conversation, {"agent_id": str(agent)})


ATTRIBUTE = b'{"id":"h","occurred_at":"2024-01-01T00:00:00Z","type":"attribute","conversation":"c","key":"a","value":'
NOTE = {"type": "note", "text": "x"}
BAD_LINES: list[tuple[dict[str, Any] | bytes, str]] = [
    (b"{", r"Invalid JSON: EOF while parsing an object at column 1"),
    (b"\xff\xfe", r"Invalid JSON: .*"),
    (b"[" * 5_000, r"Invalid JSON: recursion limit exceeded .*"),
    (b"[1, 2]", r"Input should be .*object.*"),
    (b"null", r"Input should be .*object.*"),
    ({"text": "x"}, r"type: must be one of open, message-received, .*, agent"),
    ({"type": "explode" * 1_000}, r"type: must be one of open, .*"),
    ({"type": "note"}, r"text: Field required"),
    (NOTE | {"surprise": 1}, r"unknown field: surprise"),
    (NOTE | {"actor": {"kind": "system", "name": "x"}}, r"unknown field: actor\.name"),
    (NOTE | {"id": ""}, r"id: String should have at least 1 character"),
    (NOTE | {"id": 5}, r"id: Input should be a valid string"),
    (NOTE | {"id": "x" * 201}, r"id: String should have at most 200 characters"),
    (NOTE | {"text": "a\0b"}, r"text: String should match pattern .*"),
    (NOTE | {"conversation": "\0"}, r"conversation: String should match pattern .*"),
    (NOTE | {"text": "x" * 65_537}, r"text: String should have at most 65536 characters"),
    (NOTE | {"text": "x" * 1_100_000}, r"the line is too long"),
    (NOTE | {"occurred_at": "2999-01-01T00:00:00Z"}, r"occurred_at lies in the future"),
    (NOTE | {"occurred_at": "2024-01-01T00:00:00"}, r"occurred_at: must be a time as in RFC 3339, .*"),
    (NOTE | {"occurred_at": 1_700_000_000}, r"occurred_at: must be a time as in RFC 3339, .*"),
    (NOTE | {"occurred_at": "1700000000"}, r"occurred_at: must be a time as in RFC 3339, .*"),
    (NOTE | {"occurred_at": "2024-02-30T00:00:00Z"}, r"occurred_at: Input should be a valid datetime.*"),
    (NOTE | {"occurred_at": "0001-01-01T00:00:00+14:00"}, r"occurred_at: must not lie before 1900"),
    (NOTE | {"actor": {"kind": "ghost", "id": "x"}}, r"actor\.kind: Input should be .*"),
    (
        NOTE | {"conversation": "nowhere"},
        r"conversation-not-found: There is no such conversation; what opens it must come first\.",
    ),
    ({"type": "assume", "agent": "ana", "conversation": "nowhere"}, r"conversation-not-found: .* must come first\."),
    ({"type": "attribute", "key": "a", "value": 2**53}, r"value: must be a text .*"),
    ({"type": "attribute", "key": "a", "value": {}}, r"value: must be a text .*"),
    (ATTRIBUTE + b"1e999}", r"value.*"),
    (ATTRIBUTE + b"9" * 9_000 + b"}", r"Invalid JSON: number out of range .*"),
    (
        {"type": "message-received", "attachments": [ATTACHMENT | {"size_bytes": 2**63}]},
        r"attachments\.0\.size_bytes: Input should be less than .*",
    ),
    (
        {"type": "message-received", "attachments": [ATTACHMENT | {"url": "file:///etc/passwd"}]},
        r"attachments\.0\.url: .*",
    ),
    ({"type": "contact", "contact": "p", "phones": ["call me"]}, r"phones\.0: String should match pattern .*"),
    (
        {"type": "contact", "contact": "p", "attributes": {"n": 10**30}},
        r"attributes\.n: must be a text .*",
    ),
    ({"type": "transfer"}, r".*name a sector_id, an agent_id, or both"),
    ({"type": "finalize", "surface": "bulk"}, r"surface: Input should be .*"),
    (
        {"type": "open", "conversation": "d", "protocol": "P", "channel": "web", "contact": "nobody"},
        r"contact-not-found: .*",
    ),
    (
        {"type": "open", "conversation": "c", "protocol": "Q", "channel": "web", "contact": "maria"},
        r"already-exists: .*",
    ),
    ({"type": "agent", "agent": "x", "name": "X", "sectors": ["nowhere"]}, r"sector-not-found: .*"),
]


def test_bad_lines_are_reported_with_number_and_reason_and_stop_nothing(database: str, tmp_path: Path) -> None:
    lines: list[dict[str, Any] | bytes] = [line(number, fields) for number, fields in enumerate(PEOPLE, 1)]
    numbers = []
    for bad, _ in BAD_LINES:
        lines.append(bad if isinstance(bad, bytes) else line(len(lines) + 1, bad))
        numbers.append(len(lines))
        lines.append(line(len(lines) + 1, NOTE))
    report = load(database, write(tmp_path / "bad.ndjson", lines))
    reasons = dict(rejected(report))
    for number, (bad, reason) in zip(numbers, BAD_LINES, strict=True):
        assert re.fullmatch(reason, reasons.get(number, "not rejected")), (number, bad, reasons.get(number))
    assert sorted(reasons) == numbers
    assert report.rejected_count == len(BAD_LINES)
    assert report.changes["note"] == len(BAD_LINES)
    assert all(len(reason) < 1_000 for reason in reasons.values())
    assert not any("line" in reason or "scope" in reason for reason in reasons.values() if "too long" not in reason)
    assert (report.exit_code, report.noted.count, report.hint) == (1, 0, "")


def test_an_unknown_reference_and_a_refusal_stay_as_notes_and_are_not_tried_again(
    database: str, tmp_path: Path
) -> None:
    story: list[dict[str, Any]] = [
        *PEOPLE,
        {"type": "transfer", "sector": "nowhere"},
        {"type": "finalize", "surface": "inbox"},
        {"type": "transfer", "sector": "sales"},
        {"type": "assume", "agent": "nobody"},
        {"type": "reopen"},
        {"type": "message-sent", "text": "beep", "actor": {"kind": "bot", "id": "triage"}},
    ]
    path = write(tmp_path / "past.ndjson", [line(number, fields) for number, fields in enumerate(story, 1)])
    report = load(database, path)
    assert [(number, reason.split(":")[0]) for number, reason in noted(report)] == [
        (7, "sector-not-found"),
        (9, "conversation-already-finalized"),
        (10, "conversation-already-finalized"),
        (12, "bot-not-in-charge"),
    ]
    assert (report.changes["refused"], rejected(report), report.exit_code) == (4, [], 0)
    happened = topics(database)
    assert [topic for cause, topic in happened if cause in {"l7", "l9", "l10", "l12"}] == ["note-added.v1"] * 4
    again = load(database, path)
    assert (again.events, rejected(again), noted(again), topics(database)) == (0, [], [], happened)


def test_the_same_id_with_other_content_is_reported_and_changes_nothing(database: str, tmp_path: Path) -> None:
    lines = [line(number, fields) for number, fields in enumerate([*PEOPLE, NOTE], 1)]
    load(database, write(tmp_path / "one.ndjson", list(lines)))
    happened = topics(database)
    # Other order of fields and another way to write the same time are the same content.
    same = dict(reversed(lines[-1].items())) | {"occurred_at": lines[-1]["occurred_at"].replace("Z", "+00:00")}
    assert rejected(load(database, write(tmp_path / "two.ndjson", [*lines[:-1], same]))) == []
    other = lines[-1] | {"text": "y"}
    report = load(database, write(tmp_path / "three.ndjson", [*lines[:-1], other, line(8, NOTE)]))
    assert [(number, reason.split(":")[0]) for number, reason in rejected(report)] == [(7, "idempotency-key-reused")]
    assert topics(database) == [*happened, ("l8", "note-added.v1")]


def test_what_continues_a_file_is_added_to_it(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BATCH", 4)
    lines = [line(number, fields) for number, fields in enumerate([*PEOPLE, *([NOTE] * 20)], 1)]
    load(database, write(tmp_path / "past.ndjson", lines[:13]))
    report = load(database, write(tmp_path / "past.ndjson", lines))
    assert (report.changes, report.rejected_count) == (Counter(note=len(lines) - 13), 0)
    assert [cause for cause, _ in topics(database)].count("l26") == 1


def test_many_rejections_are_counted_and_a_bounded_number_kept(database: str, tmp_path: Path) -> None:
    many = report.LISTED_KEPT + 50
    result = load(database, write(tmp_path / "bad.ndjson", [b"{"] * many))
    assert (result.rejected_count, len(result.rejected.kept)) == (many, report.LISTED_KEPT)
    lines = result.text().splitlines()
    assert lines[-22] == "1,050 lines rejected; put right and import again:"
    assert [line.split(":")[0] for line in lines[-21:-1]] == [f"  line {number}" for number in range(1, 21)]
    assert lines[-1] == "  … and 1,030 more"


def test_a_report_keeps_apart_what_left_nothing_and_what_left_a_note() -> None:
    result = Report(seconds=1.0, events=3, changes=Counter({"note": 1, "refused": 2}))
    for line in (30, 9, 9, 12):
        result.rejected.add(Rejected(line, f"bad {line}"))
    for line in (40, 8, 12):
        result.noted.add(Rejected(line, "refused"))
    assert result.text().splitlines()[1:] == [
        "          1  note",
        "0 changes were there already",
        "3 lines refused by a rule and kept as notes:",
        "  line 8: refused",
        "  line 12: refused",
        "  line 40: refused",
        "3 lines rejected; put right and import again:",
        "  line 9: bad 9",
        "  line 12: bad 12",
        "  line 30: bad 30",
    ]
    assert (result.exit_code, Report().exit_code) == (1, 0)
    assert Report().text().endswith("0 lines rejected")


def test_the_first_lines_are_kept_in_whatever_order_they_come() -> None:
    listing = report.Listing()
    for line in reversed(range(1, 2 * report.LISTED_KEPT + 1)):
        listing.add(Rejected(line, ""))
    assert [each.line for each in listing.kept] == list(range(1, report.LISTED_KEPT + 1))
    assert listing.count == 2 * report.LISTED_KEPT


HINT = "This looks like a service-desk log; did you mean --from servicenow?"


def test_a_service_desk_log_taken_for_ours_is_recognized(database: str, tmp_path: Path) -> None:
    sample = (DOCUMENT.parents[1] / "tests/data/servicenow_sample.csv").read_bytes()
    path = tmp_path / "log.csv.xz"
    path.write_bytes(lzma.compress(sample))
    result = load(database, path)
    assert (result.hint, result.text().splitlines()[-1], result.events) == (HINT, HINT, 0)

    # Canaries: another file of nonsense, and one of which something was imported, get no such advice.
    assert load(database, write(tmp_path / "bad.ndjson", [b"x" * 200_000])).hint == ""
    mixed = [*sample.splitlines(), *(line(number, fields) for number, fields in enumerate(PEOPLE, 1))]
    assert load(database, write(tmp_path / "mixed.ndjson", mixed)).hint == ""
    assert load(database, write(tmp_path / "mixed.ndjson", mixed)).hint == ""  # all there already
    assert load(database, write(tmp_path / "empty.ndjson", [])).hint == ""


def test_the_documents_example_is_imported(database: str, tmp_path: Path) -> None:
    example = re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    path = tmp_path / "example.ndjson"
    path.write_text("".join(example))
    report = load(database, path)
    assert (rejected(report), report.events) == ([], 8)
    document = DOCUMENT.read_text()
    assert all(f"`{type_}`" in document for type_ in ndjson_lines.TYPES)
