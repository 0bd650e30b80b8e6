"""Access tokens from the command line: the first ones, and those of a workspace that has none.

Invariant: a secret is printed once, alone, on standard output.
"""

import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID, uuid4

import typer

from adapters.command_handler import CommandHandler
from adapters.identity import digest, new_secret
from adapters.postgres import connect
from api import demo
from api.cli.shell import Workspace, app, database, ensure_workspace, err, execute, load_settings, out
from domain.commands import IssueToken, RevokeToken
from domain.events import Actor, ActorKind
from domain.permissions import BUILT_IN_ROLES, Permission, Scope

tokens = typer.Typer(help="Access tokens: create, list, revoke.", no_args_is_help=True)
app.add_typer(tokens, name="token")


@tokens.command()
def create(
    *,
    role: Annotated[str, typer.Option(help=f"one of {', '.join(BUILT_IN_ROLES)}, or the workspace's own")],
    name: Annotated[str, typer.Option(help="what it is for")] = "command line",
    agent: Annotated[UUID | None, typer.Option(help="the agent whose token it is; none: an integration's")] = None,
    integration: Annotated[str, typer.Option(help="the integration's name")] = "cli",
    only: Annotated[
        list[str] | None, typer.Option(help="narrow it to this permission, such as view=sector; may be repeated")
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, max=36_500, help="after how many days it expires")] = None,
    workspace: Workspace = "demo",
) -> None:
    """Make an access token and print it: the only time that it is shown.

    The workspace is made where it does not exist.
    """
    secret, grants = new_secret(), _grants(only)
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    actor = Actor(kind=ActorKind.AGENT, id=str(agent)) if agent else Actor(kind=ActorKind.INTEGRATION, id=integration)
    with database(load_settings()) as url, closing(CommandHandler(url, None)) as handler:
        ensure_workspace(handler, workspace)
        command = IssueToken(
            name=name,
            secret_sha256=digest(secret.encode()),
            actor=actor,
            role=role,
            expires_at=expires_at,
            grants=grants,
        )
        outcome = execute(handler, workspace, uuid4(), command)
    err.print(f"Token {outcome.stream_id} of {actor.kind}:{actor.id}, role {role}; keep it, it is not shown again:")
    sys.stdout.write(f"{secret}\n")


def _grants(only: list[str] | None) -> dict[Permission, Scope] | None:
    try:
        pairs = [pair.partition("=") for pair in only or ()]
        return {Permission(name): Scope(scope or Scope.ALL) for name, _, scope in pairs} or None
    except ValueError as error:
        raise typer.BadParameter(
            f"{error}; give a permission ({', '.join(Permission)}), then = and how far ({', '.join(Scope)})"
        ) from None


@tokens.command(name="list")
def list_(workspace: Workspace = "demo") -> None:
    """List the access tokens, without their secrets: id, state, role, whose, issued, expires, last used, name."""
    with database(load_settings()) as url, connect(url) as connection:
        rows = connection.execute(
            "select id, case when revoked then 'revoked' else 'valid' end, role, actor_kind || ':' || actor_id,"
            " to_char(issued_at, 'YYYY-MM-DD HH24:MI'), coalesce(to_char(expires_at, 'YYYY-MM-DD HH24:MI'), 'never'),"
            " coalesce(to_char(last_used_at, 'YYYY-MM-DD HH24:MI'), 'never'), name"
            " from tokens left join (select workspace_id, token_id as id, last_used_at from token_uses) uses"
            " using (workspace_id, id) where workspace_id = %s order by issued_at",
            (demo.workspace_id(workspace),),
        ).fetchall()
    for row in rows:
        out.print("  ".join(map(str, row)), soft_wrap=True, markup=False, highlight=False)
    if not rows:
        raise SystemExit(f"The workspace {workspace} does not exist or has no access token.")


@tokens.command()
def revoke(
    token: Annotated[UUID, typer.Argument(help="the token's id")],
    reason: Annotated[str, typer.Option(help="why")] = "",
    workspace: Workspace = "demo",
) -> None:
    """Make an access token stop working."""
    with database(load_settings()) as url, closing(CommandHandler(url, None)) as handler:
        outcome = execute(handler, workspace, token, RevokeToken(reason=reason))
    out.print("Revoked." if outcome.events else "It was revoked already.")
