"""Commands around personal data: erase a contact, purge what that leaves on disk, and the keys that all of it hangs on.

Invariant: what is erased stays erased; a command that was killed is finished by running it again.
"""

import sys
from contextlib import closing
from typing import Annotated
from uuid import UUID

import typer

from adapters.command_handler import CommandHandler
from adapters.erasures import NotTurnedOverError
from adapters.erasures import purge as purge_disks
from adapters.master_keys import new_master_key
from adapters.projector import Projector
from api.cli.shell import a_slug, app, complete, database, execute, load_settings, out, progress_bar
from api.keys import contact_keys_of, keys_url
from domain.commands import EraseContact
from projections.listing import Listing

keys_app = typer.Typer(
    help="Keys of contacts and the master key that wraps them: new, rotate, list.", no_args_is_help=True
)
app.add_typer(keys_app, name="keys")


@app.command()
def erase(
    workspace: Annotated[str, typer.Argument(help="the workspace's slug", callback=a_slug)],
    contact: Annotated[UUID, typer.Argument(help="the contact's id")],
) -> None:
    """Forget a contact, everywhere and for good. It cannot be undone.

    Their key is destroyed, and with it all that was said of them in the log, its backups and bundles. Returns once the
    read models have forgotten them too; 'conversas purge' then leaves nothing on disk.
    """
    chosen = load_settings()
    with database(chosen) as url, closing(contact_keys_of(chosen, url)) as keys:
        with closing(CommandHandler(url, keys)) as handler:
            outcome = execute(handler, workspace, contact, EraseContact())
        with closing(Projector(url, keys=keys)) as projector:
            complete(projector, Listing, "forgetting")
    out.print("Erased." if outcome.events else "Was erased already.")


@app.command()
def purge() -> None:
    """Leave nothing on disk of what was erased: rewrite tables and statistics, turn over the write-ahead log.

    Without it, traces stay in the data directory until the server happens to write over them. Tables are locked while
    they are rewritten. Ends with code 1 where the server keeps old write-ahead log all the same.
    """
    chosen = load_settings()
    with database(chosen) as url, closing(contact_keys_of(chosen, url)) as keys:
        with closing(Projector(url, keys=keys)) as projector:
            complete(projector, Listing, "catching up")
        try:
            with progress_bar("purging") as update:
                purge_disks(url, keys_url(chosen, url), update)
        except NotTurnedOverError as error:
            raise SystemExit(f"Tables are purged; but {error}.") from None
    out.print("Purged.")


@keys_app.command()
def new() -> None:
    """Print a new master key: the first line of CONVERSAS_MASTER_KEY_FILE, the others below it until all is rotated."""
    sys.stdout.write(f"{new_master_key()}\n")


@keys_app.command()
def rotate() -> None:
    """Wrap every contact's key anew with the first master key; then the others are not needed any more.

    May be stopped and run again, and beside everything else.
    """
    chosen = load_settings()
    with (
        database(chosen) as url,
        closing(contact_keys_of(chosen, url)) as keys,
        progress_bar("wrapping anew") as update,
    ):
        count = keys.rotate(update)
    out.print(f"{count:,} keys are wrapped anew; all are with the master key {keys.master.current()} now.")


@keys_app.command(name="list")
def list_() -> None:
    """List the ledger of erasures: workspace, contact, when the key was destroyed. Keep a copy with your backups."""
    chosen = load_settings()
    with database(chosen) as url, closing(contact_keys_of(chosen, url)) as keys:
        for (workspace_id, contact_id), at in sorted(keys.ledger().items(), key=lambda entry: entry[1]):
            sys.stdout.write(f"{workspace_id}  {contact_id}  {at.isoformat()}\n")
