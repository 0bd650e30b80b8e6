"""The verifiable log over HTTP: a signed checkpoint, and proofs that an event is in it and that nothing was rewritten.

Invariant: only hashes are told, nothing of what they are of.
"""

import base64
import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from adapters.checkpoints import Checkpoint, KeyUnusableError, SigningKey, origin_for
from adapters.command_handler import UnavailableError
from api.access import QUERY_PROBLEMS, needs
from api.queries import AtLeast, Position, as_json, fetch, wait_for
from api.settings import Settings
from api.signing import signing_key
from domain.errors import ProofNotFoundError
from domain.merkle import Span, consistency_spans, inclusion_spans
from domain.permissions import Caller, Permission, Scope
from projections.tree import (
    FIND_QUERY,
    LAST_QUERY,
    LEAVES_QUERY,
    TILES_QUERY,
    Tile,
    coordinates,
    hashes_of,
    head_of,
    index_in,
    leaf_place,
    tiles_of,
)

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1", tags=["proofs"])
Verifier = Annotated[Caller, needs(Permission.VERIFY_HISTORY, Scope.ALL)]
Hash = Annotated[str, Field(description="SHA-256 in base64")]


class CheckpointView(BaseModel):
    """The head of the workspace's log, signed."""

    checkpoint: Annotated[str, Field(description="a C2SP tlog-checkpoint: keep it; later ones must go on from it")]
    origin: str
    size: Annotated[int, Field(description="how many events the workspace's log has")]
    root: Hash
    key: Annotated[str, Field(description="the public key; have it confirmed on another way before you trust it")]


class InclusionProof(BaseModel):
    """That an event is in the log of ``size`` events: RFC 9162, 2.1.3."""

    position: int
    index: Annotated[int, Field(description="which leaf it is, from 0")]
    size: int
    leaf: Hash
    root: Hash
    path: list[Hash]


class ConsistencyProof(BaseModel):
    """That the log of ``size`` events begins with the whole log of ``since`` events: RFC 9162, 2.1.4."""

    since: int
    size: int
    since_root: Hash
    root: Hash
    path: list[Hash]


class InclusionParameters(BaseModel):
    """Which proof."""

    model_config = ConfigDict(extra="forbid")

    position: Annotated[Position | None, Field(description="the event's; without it, that of the last one")] = None
    size: Annotated[
        Position | None, Field(description="of the checkpoint that you have; without it, the present one")
    ] = None
    at_least: Position | None = None


class ConsistencyParameters(BaseModel):
    """Which proof."""

    model_config = ConfigDict(extra="forbid")

    since: Annotated[Position, Field(description="size of the earlier checkpoint")] = 0
    size: Annotated[Position | None, Field(description="of the later one; without it, the present one")] = None
    at_least: Position | None = None


def signer_of(settings: Settings) -> Callable[[UUID], tuple[str, SigningKey]]:
    """Gives, for a workspace, its log's name and the key that signs for it; the key is read when first asked for."""
    key = cache(lambda: signing_key(settings))
    return lambda workspace_id: (origin_for(settings.checkpoint_origin, workspace_id), key())


@router.get("/checkpoint", summary="Take a checkpoint", response_model=CheckpointView, responses=QUERY_PROBLEMS)
async def take_checkpoint(request: Request, caller: Verifier, at_least: AtLeast = None) -> Response:
    """Size and root of the workspace's log as it is, signed."""
    await wait_for(request, "tree", at_least)
    size = await _size(request, caller)
    [root] = await _hashes(request, caller, [Span(0, size)])
    try:
        origin, key = request.app.state.signer(caller.workspace_id)
    except KeyUnusableError as error:
        log.error("no checkpoint can be signed: %s", error)  # noqa: TRY400  # the sentence says it all
        raise UnavailableError("No key to sign checkpoints with is set up here; whoever runs this has to.") from None
    note = key.sign(Checkpoint(origin, size, root))
    shown = {"checkpoint": note, "origin": origin, "size": size, "root": _text(root)}
    return as_json(shown | {"key": key.verifier(origin).text()})


@router.get(
    "/proofs/inclusion",
    summary="Prove that an event is in the log",
    response_model=InclusionProof,
    responses=QUERY_PROBLEMS,
)
async def prove_inclusion(
    request: Request, caller: Verifier, wanted: Annotated[InclusionParameters, Query()]
) -> Response:
    """What leads from the event's leaf to the root of a checkpoint.

    The leaf is derived from the event itself, which a bundle shows: see docs/AUDIT.md.
    """
    await wait_for(request, "tree", wanted.at_least)
    size = await _size(request, caller, wanted.size)
    index, position = await _leaf(request, caller, size, wanted.position)
    leaf, root, *path = await _hashes(
        request, caller, [Span(index, index + 1), Span(0, size), *inclusion_spans(index, size)]
    )
    shown = {"position": position, "index": index, "size": size, "leaf": _text(leaf), "root": _text(root)}
    return as_json(shown | {"path": [_text(each) for each in path]})


@router.get(
    "/proofs/consistency",
    summary="Prove that nothing was rewritten",
    response_model=ConsistencyProof,
    responses=QUERY_PROBLEMS,
)
async def prove_consistency(
    request: Request, caller: Verifier, wanted: Annotated[ConsistencyParameters, Query()]
) -> Response:
    """What shows that a later checkpoint goes on from an earlier one."""
    await wait_for(request, "tree", wanted.at_least)
    size = await _size(request, caller, wanted.size)
    if wanted.since > size:
        raise ProofNotFoundError
    wholes = [Span(0, wanted.since), Span(0, size)]
    since_root, root, *path = await _hashes(request, caller, [*wholes, *consistency_spans(wanted.since, size)])
    shown = {"since": wanted.since, "size": size, "since_root": _text(since_root), "root": _text(root)}
    return as_json(shown | {"path": [_text(each) for each in path]})


async def _size(request: Request, caller: Caller, wanted: int | None = None) -> int:
    """The tree's size, or the earlier one that is wanted.

    Raises `ProofNotFoundError` for one that it never had.
    """
    rows = await fetch(request, caller, LAST_QUERY, (caller.workspace_id,))
    size = head_of(tuple(rows[0].values()) if rows else None).size
    if wanted is not None and wanted > size:
        raise ProofNotFoundError
    return size if wanted is None else wanted


async def _leaf(request: Request, caller: Caller, size: int, position: int | None) -> tuple[int, int]:
    """Index and position of the leaf of ``position``, or of the last in the tree of ``size`` leaves.

    Raises `ProofNotFoundError` where the tree has no such leaf.
    """
    if position is None and size:
        number, place = leaf_place(size - 1)
        rows = await fetch(request, caller, LEAVES_QUERY, (caller.workspace_id, number))
        return size - 1, rows[0]["positions"][place]
    rows = await fetch(request, caller, FIND_QUERY, (caller.workspace_id, position))
    index = index_in(tuple(rows[0].values()) if rows else None, position or 0)
    if index is None or index >= size:
        raise ProofNotFoundError
    return index, position or 0


async def _hashes(request: Request, caller: Caller, spans: Sequence[Span]) -> list[bytes]:
    """The hashes of ``spans``, from as many tiles as the tree is high, about: one query."""
    rows = await fetch(request, caller, TILES_QUERY, (caller.workspace_id, *coordinates(tiles_of(spans))))
    return hashes_of(spans, {Tile(row["level"], row["number"]): row["hashes"] for row in rows})


def _text(hash_: bytes) -> str:
    return base64.b64encode(hash_).decode()
