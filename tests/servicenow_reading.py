"""A reading of the service-desk log of our own, with pandas and from its README alone, to judge imports by."""

from collections import Counter
from pathlib import Path
from uuid import UUID

import pandas as pd
import psycopg
from contact_keyring import keys_of

from adapters.command_handler import CommandHandler
from adapters.importers import Report, import_file

WORKSPACE = UUID(int=7)
FINAL = ["Resolved", "Closed"]
TIME = "%d/%m/%Y %H:%M"

CHANGES = {
    "conversation-transferred.v1": "transferred",
    "conversation-reopened.v1": "reopened",
    "conversation-finalized-from-inbox.v1": "inbox",
    "conversation-finalized-from-listing.v1": "listing",
    "conversation-finalized-automatically.v1": "automatic",
}


def reading(path: Path) -> pd.DataFrame:
    """The log by its README: a row per change with its id, what it became, and how the conversation stood after it."""
    log = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=["?"])
    log["count"] = log["sys_mod_count"].astype(int)
    log = log.sort_values(["number", "count"], kind="stable", ignore_index=True)
    case = log["number"]
    repeated = log.groupby(["number", "count"]).cumcount() + 1
    log["id"] = case + "/" + log["count"].astype(str) + ("." + repeated.astype(str)).where(repeated > 1, "")

    # -100 is no state: the one before goes on.
    state = log["incident_state"].mask(log["incident_state"] == "-100").groupby(case).ffill()
    before = state.groupby(case).shift()
    first = ~case.duplicated()
    final, was_final = state.isin(FINAL), before.isin(FINAL)
    stays_final = final & was_final

    reopenings = log["reopen_count"].astype(int)
    grew = reopenings.groupby(case).diff() > 0
    log["reopened"] = was_final & (grew | ~final)

    # "?" is "not known": the group last known stands. While finalized nothing is transferred.
    group = log["assignment_group"].mask(stays_final & ~first & ~log["reopened"]).groupby(case).ffill()
    group_before = group.groupby(case).shift()
    moved = ~first & group.notna() & (group != group_before)
    person = log["assigned_to"]
    person_before = person.groupby(case).shift()
    handed = person.notna() & person_before.notna() & (person != person_before)
    log["transferred"] = moved | (handed & (~stays_final | log["reopened"]))

    finalized = final & (~was_final | log["reopened"])
    log["inbox"] = finalized & (state == "Resolved") & person.notna()
    log["listing"] = finalized & (state == "Resolved") & person.isna()
    log["automatic"] = finalized & (state == "Closed")

    in_progress = (state == "Active") & person.notna()
    log["status"] = "pending"
    log.loc[in_progress, "status"] = "in_progress"
    log.loc[final, "status"] = "finalized"
    log["sector"] = group
    log["agent"] = person.where(in_progress)
    return log


def recorded(conninfo: str) -> pd.DataFrame:
    """The conversations' events, by stream and version."""
    query = """
        select stream_id::text, version, topic, convert_from(data, 'utf8')::json as data, causation_id, occurred_at,
               actor_kind, surface
        from events where stream_type = 'conversation' order by stream_id, version"""
    with psycopg.connect(conninfo) as connection:
        cursor = connection.execute(query)
        return pd.DataFrame(cursor.fetchall(), columns=[column.name for column in cursor.description or ()])


def names(conninfo: str) -> dict[str | None, str]:
    query = """
        select stream_id::text, convert_from(data, 'utf8')::json->>'name' from events
        where topic in ('sector-created.v1', 'agent-registered.v1')"""
    with psycopg.connect(conninfo) as connection:
        return dict(connection.execute(query).fetchall())


def stood(events: pd.DataFrame) -> dict[str, tuple[str, str | None, str | None]]:
    """Status, sector and agent after each row, folded here from what the events say."""
    after: dict[str, tuple[str, str | None, str | None]] = {}
    status, sector, agent = "", None, None
    for topic, data, row in zip(events["topic"], events["data"], events["causation_id"], strict=True):
        match topic.removesuffix(".v1"):
            case "conversation-opened":
                status, sector, agent = "pending", data["sector_id"], data["agent_id"]
            case "conversation-transferred":
                sector, agent = data["target"]["sector_id"], data["target"]["agent_id"]
                status = "in_progress" if agent else "pending"
            case "conversation-assumed":
                status, agent = "in_progress", data["agent_id"]
            case "conversation-marked-pending":
                status, sector, agent = "pending", data["sector_id"], None
            case "conversation-reopened":
                status, sector, agent = "pending", data["sector_id"], data["agent_id"]
            case name if name.startswith("conversation-finalized"):
                status = "finalized"
        after[row] = (status, sector, agent)
    return after


def load(conninfo: str, path: Path, **options: object) -> Report:
    handler = CommandHandler(conninfo, keys_of(conninfo))
    try:
        return import_file(handler, WORKSPACE, path, "servicenow", **options)  # type: ignore[arg-type]
    finally:
        handler.close()


def check_import(database: str, path: Path, report: Report, told: list[tuple[int, int, int]]) -> None:
    """What was imported into ``database`` from ``path`` is what `reading` says, and importing it again adds nothing."""
    expected = reading(path)
    events = recorded(database)
    print(f"\n{path.name}: {len(expected)} rows, {report.events} events in {report.seconds:.1f} s, ", end="")  # noqa: T201
    print(f"{report.events / report.seconds:,.0f} events/s, {dict(report.changes)}")  # noqa: T201

    assert (report.rejected_count, report.rejected.kept, report.already_present) == (0, [], 0)
    assert told[-1] == (path.stat().st_size, path.stat().st_size, report.events)
    with psycopg.connect(database) as connection:
        assert connection.execute("select count(*) from events").fetchone() == (report.events,)

    # Conversations, and no row without a trace.
    opened = events[events["topic"] == "conversation-opened.v1"]
    assert len(opened) == expected["number"].nunique()
    assert sorted(data["protocol"] for data in opened["data"]) == sorted(expected["number"].unique())
    assert set(events["causation_id"]) == set(expected["id"])
    assert (events["surface"] == "import").all()

    # Each change, row by row: not only are there as many, they come from the same rows.
    counts = {}
    for topic, kind in CHANGES.items():
        assert Counter(events[events["topic"] == topic]["causation_id"]) == Counter(expected[expected[kind]]["id"])
        counts[kind] = int(expected[kind].sum())

    # How each conversation stood after each row.
    known = {None: None} | names(database)
    after = {row: (status, known[sector], known[agent]) for row, (status, sector, agent) in stood(events).items()}
    open_ = expected[expected["status"] != "finalized"]
    for row in expected.itertuples():
        assert after[row.id][0] == row.status, row
    for row in open_.itertuples():
        if isinstance(row.sector, str):
            assert after[row.id][1] == row.sector, row
        assert after[row.id][2] == (row.agent if isinstance(row.agent, str) else None), row
    finally_ = Counter(expected.groupby("number")["status"].last())
    print({"conversations": len(opened), **counts, **finally_})  # noqa: T201

    # Times are the rows', the opening's is the case's.
    times = pd.to_datetime(expected.set_index("id")["sys_updated_at"], format=TIME, utc=True)
    changed = events[events["topic"] != "conversation-opened.v1"]
    assert (
        pd.to_datetime(changed["occurred_at"], utc=True).to_numpy() == times[changed["causation_id"]].to_numpy()
    ).all()
    openings = pd.to_datetime(expected.set_index("id")["opened_at"], format=TIME, utc=True)
    assert (
        pd.to_datetime(opened["occurred_at"], utc=True).to_numpy() == openings[opened["causation_id"]].to_numpy()
    ).all()

    # Again: nothing.
    again = load(database, path)
    assert (again.events, again.changes, again.rejected_count) == (0, Counter(), 0)
    assert again.already_present == sum(report.changes.values())
    with psycopg.connect(database) as connection:
        assert connection.execute("select count(*) from events").fetchone() == (report.events,)
