"""Commands around the verifiable log: take checkpoints, export bundles, and, anywhere, verify them or be a witness.

Invariant: `verify` and `witness` need nothing of the service but what they are given; what does not verify ends with
code 1 and one sentence that says what is wrong.
"""

import base64
import binascii
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from uuid import UUID

import httpx
import psycopg
import typer

from adapters import bundle as bundles
from adapters.checkpoints import (
    WITNESS,
    Checkpoint,
    KeyUnusableError,
    NoteError,
    SigningKey,
    VerifierKey,
    open_checkpoint,
    origin_for,
)
from adapters.postgres import connect
from adapters.projector import Projector
from adapters.witness import RefusedError, Witness
from api import demo
from api.cli.shell import Workspace, app, complete, database, err, load_settings, out, progress_bar
from api.signing import signing_key
from projections.tree import Head, Tree

Key = Annotated[str, typer.Option(help="the log's public key, as `conversas checkpoint --public-key` prints it")]


@contextmanager
def _sentences() -> Iterator[None]:
    """What goes wrong is told in a sentence, which cannot be made to look like another."""
    try:
        yield
    except (bundles.AlteredError, RefusedError) as error:
        raise SystemExit(f"ALTERED: {_printable(str(error))}") from None
    except (NoteError, KeyUnusableError, bundles.NotThereError) as error:
        raise SystemExit(_printable(str(error))) from None
    except httpx.HTTPError as error:
        reason, _, _ = str(error).partition("\n")
        raise SystemExit(f"The service cannot be asked: {_printable(reason)}") from None


def _printable(text: str) -> str:
    """``text`` so that what it quotes of a file or an answer cannot begin a line or steer a terminal."""
    return "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in text)


@contextmanager
def _taken(workspace: str) -> Iterator[tuple[psycopg.Connection[Any], tuple[str, Head], VerifierKey]]:
    """A connection to the log, a checkpoint of all that it has of a workspace, and the key that signed it."""
    chosen = load_settings()
    with _sentences(), database(chosen) as url:
        key = signing_key(chosen)
        with closing(Projector(url, (Tree(),))) as projector:
            complete(projector, Tree, "completing the tree")
        workspace_id, prefix = demo.workspace_id(workspace), chosen.checkpoint_origin
        with connect(url) as connection:
            taken = bundles.take_checkpoint(connection, workspace_id, prefix, key)
            if taken[1].size == 0:
                raise bundles.NotThereError(f"the log has nothing of a workspace {workspace}")
            yield connection, taken, key.verifier(origin_for(prefix, workspace_id))


@app.command()
def checkpoint(
    *,
    workspace: Workspace = "demo",
    public_key: Annotated[bool, typer.Option("--public-key", help="print the public key instead")] = False,
) -> None:
    """Print a signed checkpoint of a workspace's log. Keep it: later bundles and checkpoints must go on from it."""
    with _taken(workspace) as (_, (note, _), public):
        sys.stdout.write(f"{public.text()}\n" if public_key else note)


@app.command()
def bundle(
    file: Annotated[Path, typer.Argument(help="where to write it", dir_okay=False)],
    *,
    workspace: Workspace = "demo",
    conversation: Annotated[
        UUID | None, typer.Option(help="only this conversation (or contact, agent …); all else is shown as hashes")
    ] = None,
) -> None:
    """Export the history of a workspace, or of one conversation, in a file that proves that nothing is left out.

    What is written is verified at once: a log that was tampered with shows itself here already. What names a person
    is in it as it is in the log: as ciphertext.
    """
    with _taken(workspace) as (connection, taken, public):
        with _private(file) as to, progress_bar("writing") as update:
            try:
                bundles.write(connection, to, taken, demo.workspace_id(workspace), conversation, update)
            except BaseException:
                file.unlink()  # a part of it is of no use
                raise
        try:
            with file.open("rb") as written, progress_bar("verifying") as update:
                found = bundles.verify(written, public, progress=update)
        except bundles.AlteredError:
            file.unlink()  # and not to be taken for one
            raise
    _tell(found)


def _private(path: Path) -> BinaryIO:
    """A new file that only this user can read."""
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    except FileExistsError:
        raise SystemExit(f"{path} is there already; remove it, or give another name") from None
    except OSError as error:
        raise SystemExit(f"{path} cannot be written: {error.strerror}") from None


@app.command()
def verify(
    file: Annotated[
        Path, typer.Argument(help="a bundle", exists=True, dir_okay=False, readable=True, metavar="BUNDLE")
    ],
    *,
    key: Key,
    since: Annotated[
        Path | None, typer.Option(help="an earlier checkpoint, which the log must go on from", exists=True)
    ] = None,
    conversation: Annotated[UUID | None, typer.Option(help="the conversation that it must be of")] = None,
) -> None:
    """Check a bundle offline: that its events are exactly those of the log, none changed and none left out."""
    wanted = None if conversation is None else str(conversation)
    with _sentences(), file.open("rb") as opened, progress_bar("verifying") as update:
        log = VerifierKey.parse(key)
        earlier = None if since is None else _earlier(since, log)
        found = bundles.verify(opened, log, since=earlier, stream_id=wanted, progress=update)
    _tell(found)
    if since is None:
        err.print(
            "Without an earlier checkpoint (--since) this does not show whether the log was rewritten as a whole, and"
            " signed anew, before this bundle was made.",
            highlight=False,
        )


def _earlier(path: Path, log: VerifierKey) -> str:
    try:
        note = path.read_bytes().decode()
        open_checkpoint(note, log)
    except (NoteError, UnicodeDecodeError) as error:
        reason = error if isinstance(error, NoteError) else "this is no signed note"
        raise NoteError(f"{path}, given as the earlier checkpoint, cannot be trusted: {reason}") from None
    return note


def _tell(found: bundles.Verified) -> None:
    of = "the whole workspace" if found.stream_id is None else found.stream_id
    checkpoint = found.checkpoint
    lines = [
        "VERIFIED: nothing was changed and nothing left out.",
        f"  log      {checkpoint.origin}, {checkpoint.size:,} events",
        f"  root     {base64.b64encode(checkpoint.root).decode()}",
        f"  of       {of}: {found.events:,} {'event' if found.events == 1 else 'events'}",
        f"  recorded {found.first_recorded_at} to {found.last_recorded_at}",
    ]
    for line in lines:
        out.print(line, soft_wrap=True, markup=False, highlight=False)


@app.command()
def witness(
    source: Annotated[str, typer.Argument(help="the service's address, such as http://127.0.0.1:8000, or a bundle")],
    *,
    key: Key,
    directory: Annotated[Path, typer.Option(help="where this witness keeps its key and what it has seen")],
    name: Annotated[str, typer.Option(help="what this witness is called: a domain of yours")],
    token: Annotated[
        str | None, typer.Option(envvar="CONVERSAS_WITNESS_TOKEN", help="an access token with verify-history")
    ] = None,
) -> None:
    """Co-sign the log's present checkpoint, if it goes on from all that this witness has signed before.

    Prints the checkpoint with both signatures. Ends with code 1 where the log was rewound or rewritten.
    """
    with _sentences(), ExitStack() as held:
        log = VerifierKey.parse(key)
        signing = SigningKey.read(directory / "witness-key.pem", make=True)
        our_key = VerifierKey.parse(signing.verifier(name, WITNESS).text())  # refuses a name that notes cannot have
        ours = Witness(directory, signing, our_key.name)
        held.enter_context(ours.alone())
        known = ours.remembered(log)
        since = None if known is None else open_checkpoint(known, log)
        if source.startswith(("http://", "https://")):
            note, proof = _fetch(source, token, log, since)
            signed = ours.cosign(note, log, proof, int(time.time()))
        else:
            path = Path(source)
            if not path.is_file():
                raise SystemExit(f"There is no file {source}; an address begins with http:// or https://")
            with path.open("rb") as opened, progress_bar("verifying") as update:
                signed = ours.cosign_bundle(opened, log, int(time.time()), update)
    err.print(f"Our public key: {our_key.text()}", highlight=False, soft_wrap=True)
    sys.stdout.write(signed)


def _fetch(url: str, token: str | None, log: VerifierKey, since: Checkpoint | None) -> tuple[str, list[bytes]]:
    """The service's present checkpoint, and its proof that it goes on from ``since``."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        note = str(_ask(client, "/v1/checkpoint").get("checkpoint"))
        new = open_checkpoint(note, log)
        if since is None or since.size > new.size:
            return note, []
        answer = _ask(client, "/v1/proofs/consistency", since=since.size, size=new.size)
    try:
        return note, [base64.b64decode(each, validate=True) for each in answer["path"]]
    except (binascii.Error, KeyError, TypeError, ValueError):
        raise RefusedError("the service's proof is no proof") from None


def _ask(client: httpx.Client, path: str, **parameters: int) -> dict[str, Any]:
    answer = client.get(path, params=parameters)
    answer.raise_for_status()
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise NoteError(f"what {path} answers is no JSON object")
    return found
