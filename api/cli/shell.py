"""What all commands share: the application, settings, the database, a progress bar, carrying out a command.

Invariant: what is for people to read goes to standard error, where standard output is for programs.
"""

import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Annotated
from uuid import UUID, uuid4

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adapters import postgres
from adapters.command_handler import CommandHandler
from adapters.contact_keys import ContactKeys
from adapters.deciding import Outcome, Request
from adapters.erasures import reconcile
from adapters.master_keys import NoMasterKeys
from adapters.projector import Projector, create_missing
from api import demo, settings
from api.keys import keys_url, prepare_keys
from api.settings import PREFIX, Settings
from domain.commands import Command, CreateWorkspace
from domain.envelope import Stream
from domain.errors import AlreadyExistsError
from domain.events import Actor, ActorKind, Surface
from domain.permissions import BUILT_IN_ROLES, Caller
from projections.read_model import ReadModel

app = typer.Typer(
    help="Conversas: every conversation of a company's support channels, and how it got there.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)


def a_slug(value: str) -> str:
    """``value``, if it can be a workspace's slug."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", value):
        raise typer.BadParameter("lower-case letters, digits, '.', '_' and '-', at most 64 in all")
    return value


Workspace = Annotated[str, typer.Option(help="the workspace's slug", callback=a_slug)]


def load_settings() -> Settings:
    """The settings in force; logging goes to standard error as they say."""
    chosen = settings.load()
    logging.basicConfig(
        level=chosen.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # the publisher says what matters of it
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request, with its address
    return chosen


@contextmanager
def database(chosen: Settings, *, new: bool = False) -> Iterator[str]:
    """The database's URL, migrated; embedded where none is set, and with ``new`` made where there is none.

    Raises `SystemExit`: who looks for data in the wrong place must not be told that there is none.
    """
    if chosen.database_url is not None:
        yield _ready(chosen, chosen.database_url)
        return
    directory = (chosen.data_directory / "postgres").absolute()
    if not directory.exists():
        if not new:
            raise SystemExit(
                f"There is no database in {directory}: go to where 'make run' was started, or name yours in"
                f" {PREFIX}DATABASE_URL ('conversas migrate' makes a new one)."
            )
        err.print(f"There is no database in {directory}; making a new one.", soft_wrap=True, highlight=False)
    with postgres.embedded(directory) as url:
        yield _ready(chosen, url)


def _ready(chosen: Settings, url: str) -> str:
    try:
        postgres.migrate(url)
    except postgres.TooOldError as error:
        raise SystemExit(
            f"Nothing was changed: {error}. Move the database to such a server (pg_dump and restore, or pg_upgrade), or"
            f" name another one in {PREFIX}DATABASE_URL; without it one is embedded."
        ) from None
    create_missing(url)
    prepare_keys(chosen, url)
    with closing(ContactKeys(keys_url(chosen, url), NoMasterKeys())) as keys:
        if again := reconcile(url, keys):
            err.print(f"The log was restored: {again:,} contacts that had been erased are erased again.")
    return url


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; the function it gives takes how much is done, and of how much."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=err) as progress:
        task = progress.add_task(what, total=None, rate="")

        def update(done: int, total: int) -> None:
            speed = progress.tasks[0].speed
            progress.update(task, completed=done, total=max(done, total), rate=f"{speed:,.0f}/s" if speed else "")

        yield update
        if progress.tasks[0].total is None:  # there was nothing to do
            progress.remove_task(task)


def complete(projector: Projector, model: type[ReadModel], what: str) -> None:
    """Bring the read models up to the log's end; where ``model`` cannot get there, the program ends."""
    with progress_bar(what) as update:
        halted = projector.catch_up(update)
    if model.name in halted:
        raise SystemExit(f"The read model '{model.name}' is halted before the log's end; the message above says why.")


def execute(handler: CommandHandler, workspace: str, id_: UUID, command: Command) -> Outcome:
    """Carry out ``command`` as the system.

    Raises `AlreadyExistsError`; any other refusal ends the program with its reason.
    """
    workspace_id = demo.workspace_id(workspace)
    request_id = uuid4()
    caller = Caller(workspace_id, Actor(kind=ActorKind.SYSTEM, id="command-line"), BUILT_IN_ROLES["admin"])
    stream = Stream(workspace_id, command.STREAM, id_)
    [answer] = handler.handle([Request(stream, command, caller, Surface.API, request_id, request_id)])
    if isinstance(answer, AlreadyExistsError):
        raise answer
    if isinstance(answer, Exception):
        raise SystemExit(str(answer))
    return answer


def ensure_workspace(handler: CommandHandler, slug: str) -> None:
    """Make the workspace where it does not exist, and say so."""
    with suppress(AlreadyExistsError):
        if execute(handler, slug, demo.workspace_id(slug), CreateWorkspace(slug=slug, name=slug)).events:
            err.print(f"The workspace {slug} did not exist; it does now.", highlight=False)
