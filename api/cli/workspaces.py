"""Workspaces and their first admins, from the command line: there is no route for what comes before anybody may ask.

Invariant: a secret is printed once, alone, on standard output.
"""

import sys
from contextlib import closing
from typing import Annotated
from uuid import uuid4

import typer

from adapters.command_handler import CommandHandler
from adapters.identity import digest, new_secret
from adapters.postgres import connect
from api import demo
from api.cli.shell import Workspace, a_slug, app, database, ensure_workspace, err, execute, load_settings, out
from domain.commands import CreateWorkspace, IssueToken, RegisterAgent
from domain.errors import AlreadyExistsError
from domain.events import Actor, ActorKind

workspaces = typer.Typer(help="Workspaces, one per company: create, list.", no_args_is_help=True)
app.add_typer(workspaces, name="workspace")
admins = typer.Typer(help="Admins of a workspace: create the first one, list.", no_args_is_help=True)
app.add_typer(admins, name="admin")


def a_name(value: str) -> str:
    """``value``, if it can be a name."""
    if not 0 < len(value.strip()) <= 200 or not value.isprintable():
        raise typer.BadParameter("1 to 200 characters that can be printed")
    return value.strip()


PersonName = Annotated[str, typer.Option(help="the person's name", callback=a_name)]


@workspaces.command()
def create(
    slug: Annotated[str, typer.Argument(help="its short name, as in 'acme'", callback=a_slug)],
    name: Annotated[str | None, typer.Option(help="the company's name; else the slug")] = None,
) -> None:
    """Make a workspace. Where it is there already under the same name, nothing happens."""
    with database(load_settings(), new=True) as url, closing(CommandHandler(url, None)) as handler:
        try:
            command = CreateWorkspace(slug=slug, name=a_name(name) if name is not None else slug)
            outcome = execute(handler, slug, demo.workspace_id(slug), command)
        except AlreadyExistsError:
            raise SystemExit(f"There is a workspace {slug} already, under another name.") from None
    out.print(f"The workspace {slug} {'is made' if outcome.events else 'was there already'}.", highlight=False)
    if outcome.events:
        err.print(f"Its first admin: conversas admin create --workspace {slug} --name NAME", highlight=False)


@workspaces.command(name="list")
def list_workspaces() -> None:
    """List the workspaces: slug, name, how many agents are active."""
    _print_rows(
        "select w.slug, w.name, count(a.id) from workspaces w left join agents a on a.workspace_id = w.id and a.active"
        " group by w.slug, w.name order by w.slug",
        (),
        "There is no workspace yet: conversas workspace create --help",
    )


@admins.command(name="create")
def create_admin(name: PersonName, workspace: Workspace = "demo") -> None:
    """Make an admin and print their access token: the only time that it is shown.

    The workspace is made where it does not exist.
    """
    agent_id, secret = uuid4(), new_secret()
    actor = Actor(kind=ActorKind.AGENT, id=str(agent_id))
    issue = IssueToken(name="first token", secret_sha256=digest(secret.encode()), actor=actor, role="admin")
    with database(load_settings()) as url, closing(CommandHandler(url, None)) as handler:
        ensure_workspace(handler, workspace)
        execute(handler, workspace, agent_id, RegisterAgent(name=name, role="admin"))
        token = execute(handler, workspace, uuid4(), issue)
    err.print(f"{name} (agent {agent_id}) is an admin of {workspace}.", soft_wrap=True, highlight=False, markup=False)
    err.print(f"Token {token.stream_id}; keep it, it is not shown again:", soft_wrap=True, highlight=False)
    sys.stdout.write(f"{secret}\n")


@admins.command(name="list")
def list_admins(workspace: Workspace = "demo") -> None:
    """List the active agents whose role is admin: id, name."""
    _print_rows(
        "select id, name from agents where workspace_id = %s and role = 'admin' and active order by name, id",
        (demo.workspace_id(workspace),),
        f"The workspace {workspace} does not exist or has no admin: conversas admin create --help",
    )


def _print_rows(query: str, values: tuple[object, ...], nothing: str) -> None:
    with database(load_settings()) as url, connect(url) as connection:
        rows = connection.execute(query.encode(), values).fetchall()
    for row in rows:
        out.print("  ".join(map(str, row)), soft_wrap=True, markup=False, highlight=False)
    if not rows:
        raise SystemExit(nothing)
