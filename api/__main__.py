"""The command line: `conversas`. Each command puts its adapters together, runs, and says what it did."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID, uuid4, uuid5

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from adapters import postgres
from adapters.command_handler import CommandHandler, Outcome, Request
from adapters.event_log import EventLog
from adapters.identity import digest, new_secret
from adapters.postgres import connect
from adapters.projector import READ_MODELS, Projector, create_missing
from adapters.rebuild import rebuild as rebuild_read_model
from adapters.replay import Summary, history_of, summarize, tell
from api import demo, settings
from api.settings import Settings
from api.supervisor import stop_on_signals, supervise, watch_supervisor
from domain.commands import Command, CreateWorkspace, IssueToken, RevokeToken
from domain.envelope import Stream
from domain.errors import AlreadyExistsError
from domain.events import Actor, ActorKind, Surface
from domain.permissions import BUILT_IN_ROLES, Caller

app = typer.Typer(
    help="Conversas: every conversation of a company's support channels, and how it got there.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
token_app = typer.Typer(help="Access tokens: create, list, revoke.", no_args_is_help=True)
app.add_typer(token_app, name="token")
out = Console()


def main() -> None:
    """Run the command line."""
    app()


@contextmanager
def database(chosen: Settings) -> Iterator[str]:
    """The database's URL, migrated; embedded where none is set."""
    if chosen.database_url is not None:
        yield _ready(chosen.database_url)
        return
    with postgres.embedded(chosen.data_directory / "postgres") as url:
        yield _ready(url)


def _ready(url: str) -> str:
    postgres.migrate(url)
    create_missing(url)
    return url


def _load() -> Settings:
    chosen = settings.load()
    logging.basicConfig(
        level=chosen.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("kafka").setLevel(logging.WARNING)
    return chosen


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; the function it gives takes how much is done, and of how much."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}/s"))
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(what, total=None, rate="")

        def update(done: int, total: int) -> None:
            speed = progress.tasks[0].speed
            progress.update(task, completed=done, total=max(done, total), rate=f"{speed:,.0f}" if speed else "")

        yield update


# Serving


@app.command()
def run() -> None:
    """Run all in one: API, projector and (where Kafka is set) publisher, on demo data, until Ctrl-C."""
    chosen = _load()
    stop = stop_on_signals()
    with database(chosen) as url:
        token = _bootstrap_token(chosen)
        handler = CommandHandler(url)
        new = demo.load(handler, token)
        handler.close()
        projector = Projector(url)
        projector.catch_up()
        projector.close()
        _welcome(chosen, token, new)
        names = ["serve", "project"] + (["publish"] if chosen.kafka_bootstrap_servers else [])
        supervise(names, {**os.environ, f"{settings.PREFIX}DATABASE_URL": url}, stop)
    out.print("Stopped.")


def _bootstrap_token(chosen: Settings) -> str:
    """The token that is set, or one that is made up once and kept where only this user can read it."""
    if chosen.bootstrap_token is not None:
        return chosen.bootstrap_token.get_secret_value()
    path = chosen.data_directory / "bootstrap-token"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(new_secret())
    return path.read_text().strip()


def _welcome(chosen: Settings, token: str, new: int) -> None:
    base = f"http://{chosen.host}:{chosen.port}"
    lines = [
        f"Conversas is starting on {base}; Ctrl-C stops it.",
        f"  API to try     {base}/docs",
        f"  Is it ready?   {base}/readyz",
        f"  Access token   {token}",
        f"  Demo data      {f'{new} events loaded' if new else 'there already'}",
        f"  First look     curl -H 'Authorization: Bearer {token}' {base}/v1/conversations",
    ]
    if chosen.kafka_bootstrap_servers is None:
        lines.append(
            "  Kafka          off; start a broker with 'make kafka' and set"
            f" {settings.PREFIX}KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9092 to publish"
        )
    else:
        lines.append(f"  Kafka          publishing to {chosen.kafka_bootstrap_servers}")
    for line in lines:
        out.print(line, soft_wrap=True, markup=False, highlight=False)


@app.command()
def serve() -> None:
    """Serve the API alone."""
    import uvicorn  # noqa: PLC0415  # only this command needs the web server

    from api.app import create_app  # noqa: PLC0415  # the same

    chosen = _load()
    watch_supervisor()
    with database(chosen) as url:
        uvicorn.run(
            create_app(chosen, url),
            host=chosen.host,
            port=chosen.port,
            loop="uvloop",
            http="httptools",
            access_log=False,
            log_level=chosen.log_level,
            timeout_graceful_shutdown=10,
        )


@app.command()
def project() -> None:
    """Project the log into the read models, until stopped."""
    chosen = _load()
    stop = stop_on_signals()
    with database(chosen) as url:
        projector = Projector(url)
        projector.run(stop)
        projector.close()


@app.command()
def publish() -> None:
    """Publish the log to Kafka, until stopped."""
    from adapters import kafka_publisher  # noqa: PLC0415  # only this needs Kafka

    chosen = _load()
    if chosen.kafka_bootstrap_servers is None:
        raise SystemExit(f"Nothing to publish to: set {settings.PREFIX}KAFKA_BOOTSTRAP_SERVERS (see: make kafka)")
    stop = stop_on_signals()
    with database(chosen) as url, EventLog(url, application="conversas-publisher") as log:
        publisher = kafka_publisher.Publisher(
            log,
            url,
            kafka_publisher.PublisherSettings(
                bootstrap_servers=chosen.kafka_bootstrap_servers,
                partitions=chosen.kafka_partitions,
                replication_factor=chosen.kafka_replication_factor,
            ),
            wait=log.wait,
        )
        try:
            publisher.run(stop)
        except (kafka_publisher.StartRefusedError, kafka_publisher.PublisherFailedError) as error:
            raise SystemExit(f"Not publishing: {error}") from error


@app.command()
def kafka(port: Annotated[int, typer.Option(help="port on 127.0.0.1")] = 9092) -> None:
    """Run a local Apache Kafka to try things with (needs Java 17 and Maven), until Ctrl-C."""
    from adapters.kafka_broker import KafkaBroker, KafkaUnavailableError  # noqa: PLC0415  # only this needs Kafka

    chosen = _load()
    stop = stop_on_signals()
    directory = chosen.data_directory / "kafka"
    try:
        with KafkaBroker(directory / "data", port=port, cache=directory / "libs") as broker:
            where = f"{settings.PREFIX}KAFKA_BOOTSTRAP_SERVERS={broker.bootstrap_servers}"
            out.print(f"Apache Kafka is running; publish to it with {where}. Ctrl-C stops it.", soft_wrap=True)
            while broker.pid is not None and not stop.wait(1.0):
                pass
    except KafkaUnavailableError as error:
        raise SystemExit(str(error)) from None


# Looking after it


@app.command()
def migrate() -> None:
    """Bring the database to this version's schema. Every other command does so too."""
    with database(_load()):
        out.print("The schema is up to date.")


@app.command(name="settings")
def show_settings() -> None:
    """List all settings: variable, value in force, meaning."""
    table = Table(Column("variable", no_wrap=True), "value", "meaning")
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
    with database(_load()) as url:
        for name in names or known:
            with progress_bar(f"rebuilding {name}") as update:
                position = rebuild_read_model(url, known[name], update)
            out.print(f"{name}: rebuilt up to position {position} and swapped in.")


@app.command()
def replay(
    conversation: Annotated[UUID | None, typer.Argument(help="a conversation (or other stream); none: the log")] = None,
    *,
    version: Annotated[int | None, typer.Option(help="stop after this version of the stream")] = None,
    position: Annotated[int | None, typer.Option(help="stop after this position of the log")] = None,
    as_of: Annotated[
        datetime | None, typer.Option(help="stop before what was recorded after this moment (UTC)")
    ] = None,
    workspace: Annotated[str, typer.Option(help="the workspace's slug")] = "demo",
) -> None:
    """Fold the log, or one conversation, up to a moment, and print the state."""
    with database(_load()) as url, EventLog(url, application="conversas-replay") as log:
        if conversation is not None:
            key = (demo.workspace_id(workspace), conversation)
            events = history_of(log, key, version=version, position=position, as_of=_in_utc(as_of))
            out.print_json(json.dumps(tell(events)))
            return
        if version is not None:
            raise SystemExit("--version goes with a conversation; for the log use --position or --as-of")
        with progress_bar("replaying") as update:
            summary = summarize(log, update, position=position, as_of=_in_utc(as_of))
        _show(summary)


def _in_utc(moment: datetime | None) -> datetime | None:
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)


def _show(summary: Summary) -> None:
    out.print(f"{summary.events} events up to position {summary.position}")
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
    workspace: Annotated[str, typer.Option(help="the workspace's slug; made where it does not exist")] = "demo",
) -> None:
    """Import past changes; importing again adds nothing, and a killed import goes on when run again."""
    from adapters.importers import ImportStoppedError, import_file  # noqa: PLC0415  # only this needs the importers

    with database(_load()) as url:
        handler = CommandHandler(url)
        _ensure_workspace(handler, workspace)
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


# Access tokens


@token_app.command("create")
def create_token(
    name: Annotated[str, typer.Option(help="what it is for")] = "command line",
    role: Annotated[str, typer.Option(help=f"one of {', '.join(BUILT_IN_ROLES)}, or the workspace's own")] = "admin",
    agent: Annotated[UUID | None, typer.Option(help="the agent whose token it is; none: an integration's")] = None,
    integration: Annotated[str, typer.Option(help="the integration's name")] = "cli",
    workspace: Annotated[str, typer.Option(help="the workspace's slug; made where it does not exist")] = "demo",
) -> None:
    """Make an access token and print it: the only time that it is shown."""
    secret = new_secret()
    actor = Actor(kind=ActorKind.AGENT, id=str(agent)) if agent else Actor(kind=ActorKind.INTEGRATION, id=integration)
    with database(_load()) as url:
        handler = CommandHandler(url)
        _ensure_workspace(handler, workspace)
        command = IssueToken(name=name, secret_sha256=digest(secret.encode()), actor=actor, role=role)
        outcome = _execute(handler, workspace, uuid4(), command)
        handler.close()
    Console(stderr=True).print(f"token {outcome.stream_id} for {actor.kind}:{actor.id}, role {role}:", highlight=False)
    sys.stdout.write(f"{secret}\n")


@token_app.command("list")
def list_tokens(workspace: Annotated[str, typer.Option(help="the workspace's slug")] = "demo") -> None:
    """List the access tokens of a workspace, without their secrets."""
    table = Table("id", "name", "actor", "role", "issued at", "expires at", "revoked")
    with database(_load()) as url, connect(url) as connection:
        for row in connection.execute(
            "select id, name, actor_kind || ':' || actor_id, role, issued_at, expires_at, revoked from tokens"
            " where workspace_id = %s order by issued_at",
            (demo.workspace_id(workspace),),
        ):
            table.add_row(*("" if value is None else str(value) for value in row))
    out.print(table)


@token_app.command("revoke")
def revoke_token(
    token: Annotated[UUID, typer.Argument(help="the token's id")],
    reason: Annotated[str, typer.Option(help="why")] = "",
    workspace: Annotated[str, typer.Option(help="the workspace's slug")] = "demo",
) -> None:
    """Make an access token stop working."""
    with database(_load()) as url:
        handler = CommandHandler(url)
        outcome = _execute(handler, workspace, token, RevokeToken(reason=reason))
        handler.close()
    out.print("Revoked." if outcome.events else "It was revoked already.")


def _ensure_workspace(handler: CommandHandler, slug: str) -> None:
    with suppress(AlreadyThereError):
        _execute(handler, slug, demo.workspace_id(slug), CreateWorkspace(slug=slug, name=slug))


class AlreadyThereError(SystemExit):
    """What a command line wanted to make exists already."""


def _execute(handler: CommandHandler, workspace: str, id_: UUID, command: Command) -> Outcome:
    """Carry out ``command`` as the system; ends the program with the reason where it is refused."""
    workspace_id = demo.workspace_id(workspace)
    request_id = uuid5(id_, str(uuid4()))
    caller = Caller(workspace_id, Actor(kind=ActorKind.SYSTEM, id="command-line"), BUILT_IN_ROLES["admin"])
    stream = Stream(workspace_id, command.STREAM, id_)
    [answer] = handler.handle([Request(stream, command, caller, Surface.API, request_id, request_id)])
    if isinstance(answer, AlreadyExistsError):
        raise AlreadyThereError(str(answer))
    if isinstance(answer, Exception):
        raise SystemExit(str(answer))
    return answer


if __name__ == "__main__":
    main()
