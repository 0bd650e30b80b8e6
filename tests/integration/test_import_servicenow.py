"""The service-desk log as an import, against a reading of the CSV of its own: pandas, from its README alone.

Nothing of the importer is used to find out what is to be expected; the sample holds every oddity of the real log and
is read everywhere, the real log where it is there.
"""

import json
import lzma
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from contact_keyring import keys_of, rows_in_clear
from databases import new_database
from servicenow_reading import CHANGES, WORKSPACE, check_import, load, reading, recorded

from adapters.command_handler import CommandHandler, UnavailableError
from adapters.deciding import Answer, Request
from adapters.event_log import EventRow
from adapters.importers import ImportStoppedError, import_file, loading

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared/data/servicenow_incidents.csv.xz"
SAMPLE = ROOT / "tests/data/servicenow_sample.csv"


def everything(conninfo: str) -> list[tuple[object, ...]]:
    """All that a replay of the log could tell apart, but for when and by which run it was recorded."""
    rows = sorted(rows_in_clear(conninfo), key=lambda row: (row.workspace_id, row.stream_id, row.version))
    return [
        (
            *(row.stream_type, row.stream_id, row.version, row.topic, row.data, row.actor_kind, row.actor_id),
            *(row.surface, row.occurred_at, row.causation_id),
        )
        for row in rows
    ]


def is_note(row: EventRow) -> bool:
    return row.topic == "note-added.v1"


@pytest.fixture
def another_database(postgres_url: str) -> Iterator[str]:
    with new_database(postgres_url) as conninfo:
        yield conninfo


def test_the_sample_becomes_what_an_independent_reading_says(database: str) -> None:
    told: list[tuple[int, int, int]] = []
    report = load(database, SAMPLE, progress=lambda *done: told.append(done))
    check_import(database, SAMPLE, report, told)


@pytest.mark.skipif(not REAL.exists(), reason=f"the real log is not at {REAL}")
def test_the_real_log_holds_what_its_readme_counts() -> None:
    log = reading(REAL)
    assert (len(log), log["number"].nunique()) == (119_998, 20_769)
    assert log["reopen_count"].astype(int).max() == 8
    assert (log["incident_state"] == "-100").sum() == 2
    assert Counter(log.groupby("number")["status"].last()) == {"finalized": 20_768, "pending": 1}


def test_a_finalization_from_the_inbox_is_the_assignees(database: str) -> None:
    load(database, SAMPLE)
    events = recorded(database)
    kinds = {topic: set(events[events["topic"] == topic]["actor_kind"]) for topic in CHANGES}
    assert kinds["conversation-finalized-from-inbox.v1"] == {"agent"}
    assert kinds["conversation-finalized-from-listing.v1"] == {"system"}
    assert kinds["conversation-finalized-automatically.v1"] == {"system"}


def test_a_row_that_the_rules_refuse_is_noted_with_columns_and_reason(database: str) -> None:
    report = load(database, SAMPLE)
    notes = [json.loads(row.data)["personal"]["text"] for row in rows_in_clear(database) if is_note(row)]
    refused = [text for text in notes if "Refused" in text]
    assert refused
    assert all("conversation-already-finalized" in text for text in refused)
    assert all("assignment_group (" in text or "assigned_to (" in text for text in refused)

    # Each is reported with its line, apart from what was rejected, and only when it is recorded.
    told = [(each.line, each.reason) for each in report.noted.kept]
    rows = SAMPLE.read_text().splitlines()
    assert (len(told), report.rejected_count, report.exit_code) == (len(refused), 0, 0)
    assert told == sorted(told)
    assert {reason for _, reason in told} == {text.partition("Refused: ")[2].rstrip(".") for text in refused}
    assert {rows[line - 1].split(",")[0] for line, _ in told} == {text.split("/")[0] for text in refused}
    assert load(database, SAMPLE).noted.count == 0


def test_a_killed_import_continues_to_the_same_events(database: str, another_database: str, tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    header, *rows = SAMPLE.read_text().splitlines()
    copies = [row.replace("INC", f"INC{copy:03}", 1) for copy in range(30) for row in rows]
    path.write_text("\n".join([header, *copies]) + "\n")
    script = (
        "import sys, uuid; from pathlib import Path; from adapters.importers import import_file;"
        "from adapters.writer import CommandHandler;"
        "from contact_keyring import keys_of;"
        "handler = CommandHandler(sys.argv[1], keys_of(sys.argv[1]));"
        "import_file(handler, uuid.UUID(int=7), Path(sys.argv[2]), 'servicenow')"
    )
    whole = load(another_database, path)
    killed_at = []
    for share in (4, 2):
        command, paths = [sys.executable, "-c", script, database, str(path)], {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        with subprocess.Popen(command, cwd=ROOT, env=os.environ | paths) as process:
            _wait_for_events(database, whole.events // share)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        killed_at.append(len(everything(database)))
    assert 0 < killed_at[0] < killed_at[1] < whole.events

    rest = load(database, path)
    assert rest.events == whole.events - killed_at[1]
    assert rest.rejected_count == 0
    assert everything(database) == everything(another_database)


def _wait_for_events(conninfo: str, count: int) -> None:
    deadline = time.monotonic() + 30
    with psycopg.connect(conninfo, autocommit=True) as connection:
        while time.monotonic() < deadline:
            row = connection.execute("select coalesce(max(position), 0) from events").fetchone()
            if row is not None and row[0] >= count:
                return
            time.sleep(0.01)
    pytest.fail(f"the import did not get to {count} events")


def test_bad_lines_are_reported_and_stop_nothing(database: str, another_database: str, tmp_path: Path) -> None:
    header, *rows = SAMPLE.read_bytes().splitlines()
    columns = header.decode().split(",")

    def changed(**values: str) -> bytes:
        row = rows[0].decode().split(",")
        for name, value in values.items():
            row[columns.index(name)] = value
        return ",".join(row).encode()

    bad = [
        (b"only,three,columns", "3 columns instead of 36"),
        (changed(number=""), "number must have 1 to 64 characters"),
        (changed(number="?"), "number must have 1 to 64 characters"),
        (changed(number="N" * 65), "number must have 1 to 64 characters"),
        (changed(sys_mod_count="two"), "sys_mod_count is no number of up to nine digits"),
        (changed(sys_mod_count="9" * 30), "sys_mod_count is no number of up to nine digits"),
        (changed(reopen_count="-1"), "reopen_count is no number of up to nine digits"),
        (changed(sys_updated_at="31/2/2016 10:00"), "sys_updated_at is no time such as 29/2/2016 01:23"),
        (changed(sys_updated_at="?"), "sys_updated_at is no time such as 29/2/2016 01:23"),
        (changed(sys_updated_at="1/1/2999 10:00"), "sys_updated_at lies in the future"),
        (changed(opened_at="yesterday"), "opened_at is no time such as 29/2/2016 01:23"),
        (changed(caller_id="C" * 201), "caller_id is longer than 200 characters"),
        (changed(caller_id="nul\0"), "it holds a NUL, which cannot be stored"),
        (rows[0] + b"\xff", f"not UTF-8 at byte {len(rows[0]) + 1} of the line"),
        (b'"' + rows[0], "1 columns instead of 36"),
        (b"x" * (loading.LINE_LIMIT_BYTES + 5), "the line is too long"),
    ]
    lines, expected = [header], []
    for index, row in enumerate(rows):
        if index % 10 == 5 and bad:
            line, reason = bad.pop(0)
            lines.append(line)
            expected.append((len(lines), reason))
        lines.append(row)
    assert not bad
    path = tmp_path / "bad.csv.xz"
    path.write_bytes(lzma.compress(b"\r\n".join(lines)))

    report = load(database, path)
    assert [(each.line, each.reason) for each in report.rejected.kept] == expected
    assert report.rejected_count == len(expected)
    load(another_database, SAMPLE)
    assert everything(database) == everything(another_database)


def test_rows_of_a_case_may_stand_anywhere(database: str, another_database: str, tmp_path: Path) -> None:
    header, *rows = SAMPLE.read_text().splitlines()
    order = sorted(range(len(rows)), key=lambda index: (index % 7, index))
    path = tmp_path / "apart.csv"
    path.write_text("\n".join([header, *(rows[index] for index in order)]))
    report = load(database, path)
    load(another_database, SAMPLE)

    def changes(conninfo: str) -> Counter[tuple[str, str]]:
        events = recorded(conninfo)
        # Rows with the same count stand in the file's order, which is another one here.
        plain = events["causation_id"].str.split(".").str[0]
        return Counter(zip(plain, events["topic"], strict=True))

    doubled = {"INC0000130", "INC0000134", "INC0000135", "INC0000137", "INC0000164"}
    here, there = changes(database), changes(another_database)
    assert report.rejected_count == 0
    assert {key: n for key, n in here.items() if key[0].split("/")[0] not in doubled} == {
        key: n for key, n in there.items() if key[0].split("/")[0] not in doubled
    }
    assert set(recorded(database)["causation_id"]) == set(recorded(another_database)["causation_id"])


def test_another_row_under_the_same_id_is_rejected(database: str, tmp_path: Path) -> None:
    load(database, SAMPLE)
    path = tmp_path / "edited.csv"
    lines = SAMPLE.read_text().splitlines()
    lines[1] = lines[1].replace("Category", "Kategory")
    path.write_text("\n".join(lines))
    report = load(database, path)
    assert report.events == 0
    assert [(each.line, each.reason.split(":")[0]) for each in report.rejected.kept] == [(2, "idempotency-key-reused")]


def test_a_file_that_cannot_be_read_on_stops_the_import_and_says_where(database: str, tmp_path: Path) -> None:
    path = tmp_path / "cut.csv.xz"
    path.write_bytes(lzma.compress(SAMPLE.read_bytes() * 20)[:-2_000])
    with pytest.raises(ImportStoppedError, match="cannot be read beyond line"):
        load(database, path)
    with pytest.raises(ImportStoppedError, match="missing: number"):
        load(database, Path(__file__))
    with pytest.raises(ImportStoppedError, match="cannot be read"):
        load(database, tmp_path / "nowhere.csv")


class Absent:
    """A writer that cannot write ``times`` times."""

    def __init__(self, handler: CommandHandler, times: int) -> None:
        self.handler, self.times = handler, times

    def handle(self, requests: list[Request]) -> list[Answer]:
        self.times -= 1
        if self.times >= 0:
            return [UnavailableError("the database cannot be reached; nothing was changed") for _ in requests]
        return self.handler.handle(requests)


def test_an_import_outlasts_a_short_absence_of_the_database(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "RETRY_SECONDS", 0)
    handler = CommandHandler(database, keys_of(database))
    report = import_file(Absent(handler, times=3), WORKSPACE, SAMPLE, "servicenow")
    handler.close()
    assert report.changes["opened"] == reading(SAMPLE)["number"].nunique()


def test_an_import_gives_up_on_a_long_one_and_says_how_to_go_on(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "RETRY_SECONDS", 0)
    monkeypatch.setattr(loading, "PATIENCE_SECONDS", 0.05)
    handler = CommandHandler(database, keys_of(database))
    with pytest.raises(ImportStoppedError, match=r"stopped at line 2: .* Run the import again to continue\."):
        import_file(Absent(handler, times=1_000_000), WORKSPACE, SAMPLE, "servicenow")
    handler.close()


def test_what_was_changed_here_meanwhile_leaves_a_trace_of_the_row(database: str, tmp_path: Path) -> None:
    """A row that meets a conversation that somebody finalized here since is noted with the refusal."""
    header, *rows = SAMPLE.read_text().splitlines()
    expected = reading(SAMPLE)
    case = expected[expected["transferred"] & (expected["status"] != "finalized")].iloc[0]
    mine = [row for row in rows if row.startswith(case["number"] + ",")]
    kept = int((expected[expected["number"] == case["number"]]["count"] < case["count"]).sum())
    path = tmp_path / "case.csv"
    path.write_text("\n".join([header, *mine[:kept]]))
    load(database, path)
    _finalize_all(database)
    path.write_text("\n".join([header, *mine]))
    report = load(database, path)
    events = recorded(database)
    assert set(expected[expected["number"] == case["number"]]["id"]) <= set(events["causation_id"].dropna())
    assert any("conversation-already-finalized" in noted.reason for noted in report.noted.kept)
    assert (report.rejected_count, report.exit_code) == (0, 0)
    notes = [row.data.decode() for row in rows_in_clear(database) if row.causation_id == case["id"]]
    assert any("Refused: transferred: conversation-already-finalized" in note for note in notes)
    again = load(database, path)
    assert (again.events, again.rejected_count, again.noted.count) == (0, 0, 0)


def _finalize_all(conninfo: str) -> None:
    from domain.commands import FinalizeAutomatically  # noqa: PLC0415
    from domain.envelope import Stream, StreamType  # noqa: PLC0415
    from domain.events import FinalizationCause, Surface  # noqa: PLC0415
    from domain.permissions import BUILT_IN_ROLES, Caller  # noqa: PLC0415

    caller = Caller(WORKSPACE, loading.SYSTEM, BUILT_IN_ROLES["admin"])
    handler = CommandHandler(conninfo, keys_of(conninfo))
    for stream in set(recorded(conninfo)["stream_id"]):
        request = Request(
            stream=Stream(WORKSPACE, StreamType.CONVERSATION, UUID(stream)),
            command=FinalizeAutomatically(cause=FinalizationCause.INACTIVITY),
            caller=caller,
            surface=Surface.AUTOMATION,
            request_id=UUID(int=1),
            correlation_id=UUID(int=1),
        )
        assert not isinstance(handler.handle([request])[0], Exception)
    handler.close()
