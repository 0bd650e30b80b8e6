"""Commands that look after the data: the schema, the settings, rebuilding, replaying, importing.

Invariant: long work shows a progress bar and may be killed and run again.
"""

import json
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID

import typer
from rich.table import Column, Table

from adapters.checking import check as check_read_model
from adapters.checking import gaps
from adapters.command_handler import CommandHandler
from adapters.contact_keys import ContactKeys
from adapters.event_log import EventLog
from adapters.projector import READ_MODELS, stale
from adapters.rebuild import rebuild as rebuild_read_model
from adapters.replay import Summary, history_of, summarize, tell
from api import demo, settings
from api.cli.shell import Workspace, app, database, ensure_workspace, load_settings, out, progress_bar
from api.keys import contact_keys_of
from domain.envelope import RecordedEvent
from projections.read_model import ReadModel


@app.command()
def migrate() -> None:
    """Bring the database to this version's schema. Every other command does so too."""
    with database(load_settings(), new=True) as url:
        out.print("The schema is up to date.")
        for model in stale(url):
            out.print(f"The read model {model.name} is another version's; now run: conversas rebuild {model.name}")


@app.command(name="settings")
def show_settings() -> None:
    """List all settings: variable, value in force, meaning."""
    table = Table(Column("variable", no_wrap=True), Column("value", overflow="fold"), "meaning")
    for row in settings.rows(settings.load()):
        table.add_row(*row)
    out.print(table)


@app.command()
def rebuild(
    names: Annotated[list[str] | None, typer.Argument(help="read models; none: all", show_default=False)] = None,
) -> None:
    """Rebuild read models from the log, beside the live ones, and swap."""
    known = {model.name: model for model in READ_MODELS}
    wrong = sorted(set(names or ()) - set(known))
    if wrong:
        raise SystemExit(f"There is no read model {', '.join(wrong)}; there are {', '.join(known)}.")
    chosen = load_settings()
    with database(chosen) as url, closing(contact_keys_of(chosen, url)) as keys:
        rebuild_each(url, [known[name] for name in names or known], keys)


def rebuild_each(url: str, models: Iterable[ReadModel], keys: ContactKeys) -> None:
    """Rebuild one after the other, with a progress bar for each."""
    for model in models:
        with progress_bar(f"rebuilding {model.name}") as update:
            position = rebuild_read_model(url, model, update, keys=keys)
        out.print(f"{model.name}: rebuilt up to position {position} and swapped in.")


@app.command()
def replay(
    conversation: Annotated[
        UUID | None, typer.Argument(help="a conversation (or contact, agent …); none: the whole log")
    ] = None,
    *,
    version: Annotated[int | None, typer.Option(min=1, help="stop after this version of the stream")] = None,
    position: Annotated[int | None, typer.Option(min=1, help="stop after this position of the log")] = None,
    as_of: Annotated[
        datetime | None, typer.Option(help="stop before what was recorded after this moment (UTC)")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="compare log and live read models instead; ends with 1 where they differ")
    ] = False,
    workspace: Workspace = "demo",
) -> None:
    """Fold one conversation of a workspace, or the whole log with all workspaces, up to a moment, and print the state.

    Moments are those of recording: what was imported counts from its import on.
    """
    chosen = load_settings()
    with (
        database(chosen) as url,
        closing(contact_keys_of(chosen, url)) as keys,
        EventLog(url, application="conversas-replay", keys=keys) as log,
    ):
        if check:
            if conversation or version or position or as_of:
                raise SystemExit("--check goes alone: it compares the whole log with what the read models hold.")
            _check(url, log)
            return
        if conversation is not None:
            key = (demo.workspace_id(workspace), conversation)
            events = history_of(log, key, version=version, position=position, as_of=_in_utc(as_of))
            if not events:
                raise SystemExit(_why_nothing(history_of(log, key, version=1), workspace))
            if version is not None and events[-1].version < version:
                raise SystemExit(f"It has no version {version} up to there: the last one is {events[-1].version}.")
            out.print_json(json.dumps(tell(events)))
            return
        if version is not None:
            raise SystemExit("--version goes with a conversation; for the log use --position or --as-of.")
        with progress_bar("replaying") as update:
            summary = summarize(log, update, position=position, as_of=_in_utc(as_of))
        _show(summary)


def _check(url: str, log: EventLog) -> None:
    """Fold each read model anew beside the live one, and tell where they differ."""
    found = list(gaps(log))
    for model in () if found else READ_MODELS:  # what is not whole folds to nothing
        with progress_bar(f"checking {model.name}") as update:
            checked = check_read_model(url, log, model, update)
        found += checked.differences
        verdict = "DIFFERS" if checked.differences else f"the same, {checked.rows:,} rows"
        out.print(f"{model.name}: {verdict}, at position {checked.position}.")
    for difference in found:
        out.print(f"{difference.place} {difference.what}", markup=False, highlight=False)
    if found:
        raise typer.Exit(1)


def _why_nothing(first: list[RecordedEvent], workspace: str) -> str:
    if not first:
        return f"There is no such stream in the workspace {workspace}."
    return f"It begins only at position {first[0].position}, recorded at {first[0].recorded_at.isoformat()}."


def _in_utc(moment: datetime | None) -> datetime | None:
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)


def _show(summary: Summary) -> None:
    out.print(f"{summary.events} events up to position {summary.position}, in all workspaces")
    for title, counts in (
        ("streams", summary.streams),
        ("conversations", summary.statuses),
        ("events", summary.topics),
    ):
        table = Table(title, "count")
        for name, count in sorted(counts.items()):
            table.add_row(name, f"{count:,}")
        out.print(table)


@app.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(help="plain or .xz", exists=True, dir_okay=False, readable=True)],
    source: Annotated[Literal["ndjson", "servicenow"], typer.Option("--from", help="the file's format")] = "ndjson",
    workspace: Workspace = "demo",
) -> None:
    """Import past changes; importing again adds nothing, and a killed import goes on when run again.

    The workspace is made where it does not exist. Ends with code 1 where a line was rejected.
    """
    from adapters.importers import ImportStoppedError, import_file  # noqa: PLC0415  # only this needs the importers

    chosen = load_settings()
    with database(chosen, new=True) as url, closing(contact_keys_of(chosen, url)) as keys:
        handler = CommandHandler(url, keys)
        ensure_workspace(handler, workspace)
        try:
            with progress_bar("importing (bytes)") as update:
                report = import_file(
                    handler,
                    demo.workspace_id(workspace),
                    file,
                    source,
                    lambda done, total, _events: update(done, total),
                )
        except ImportStoppedError as error:
            raise SystemExit(f"Stopped: {error}") from None
        handler.close()
    out.print(report.text(), markup=False, highlight=False)
    raise typer.Exit(report.exit_code)
