"""The verifiable log: a Merkle tree per workspace over its events in the log's order, as tiles off the append path.

A tile holds up to 32 hashes that stand side by side: on level 0 of leaves, on level n + 1 of full tiles of level n. So
any complete subtree is hashed from one tile, and a proof reads two tiles per level at most.

Invariant: leaf i of a workspace is the i-th of its events, without gaps; a hash that was stored never changes.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID
from weakref import WeakKeyDictionary

import psycopg
from cachetools import LRUCache

from domain.envelope import RecordedEvent
from domain.leaves import Envelope, digest_of, line_of, origin_of, tag_of
from domain.merkle import HASH_BYTES, Node, Span, leaf_hash, node_hash, nodes_of, span_hash

TILE_HEIGHT = 5
TILE_WIDTH = 1 << TILE_HEIGHT
LEVELS = 8
"""Enough for 2 ** 40 events of a workspace."""

DDL = """
create table tree_tiles (
    workspace_id   uuid     not null,
    level          smallint not null,
    number         bigint   not null,
    hashes         bytea    not null, -- 32 bytes each; only the last tile of a level has fewer than 32 of them
    positions      bigint[],          -- level 0: where in the log the leaves' events stand
    first_position bigint,            -- level 0: of these the first
    primary key (workspace_id, level, number)
) with (fillfactor = 80);
create index on tree_tiles (workspace_id, first_position) where level = 0;
"""

COLUMNS = (
    *("position", "workspace_id", "stream_type", "stream_id", "version", "topic", "actor_kind", "actor_id", "surface"),
    *("occurred_at", "recorded_at", "request_id", "correlation_id", "causation_id", "schema_version", "data"),
)
_SELECTED_AS = {
    **dict.fromkeys(("workspace_id", "stream_id", "request_id", "correlation_id"), "{}::text"),
    **dict.fromkeys(("occurred_at", "recorded_at"), "{} at time zone 'UTC'"),
}
SELECTED = ", ".join(_SELECTED_AS.get(name, "{}").format(name) for name in COLUMNS)
"""The columns of the log that `envelope` takes, in its order."""

TILES_QUERY = """
select level, number, hashes from tree_tiles
where workspace_id = %s and (level, number) in (select * from unnest(%s::smallint[], %s::bigint[]))"""
"""The tiles of a workspace: two lists, of levels and numbers, from `coordinates`."""
LAST_QUERY = (
    "select number, positions from tree_tiles where workspace_id = %s and level = 0 order by number desc limit 1"
)
"""The last tile of leaves: see `head_of`."""
LEAVES_QUERY = "select positions from tree_tiles where workspace_id = %s and level = 0 and number = %s"
"""Where the events of a tile of leaves stand: see `leaf_place`."""
FIND_QUERY = """
select number, positions from tree_tiles where workspace_id = %s and level = 0 and first_position <= %s
order by first_position desc limit 1"""
"""The tile that has the leaf of a position, if any has: see `index_in`."""

_EDGE_QUERY = f"""
select last.workspace_id::text, last.level, last.number, last.hashes, last.positions
from unnest(%s::uuid[]) as wanted (id) cross join generate_series(0, {LEVELS - 1}) as levels (level)
cross join lateral (
    select * from tree_tiles where workspace_id = wanted.id and level = levels.level order by number desc limit 1
) last"""
_SAVE = """
insert into tree_tiles (workspace_id, level, number, hashes, positions, first_position)
select id, level, number, hashes, positions::bigint[], first_position
from unnest(%s::uuid[], %s::smallint[], %s::bigint[], %b::bytea[], %s::text[], %s::bigint[])
    as tile (id, level, number, hashes, positions, first_position)
on conflict (workspace_id, level, number) do update set hashes = excluded.hashes, positions = excluded.positions"""
_ORIGINS_QUERY = f"""
select {SELECTED} from events join unnest(%s::uuid[], %s::uuid[]) as wanted (w, s)
on workspace_id = w and stream_id = s and version = 1"""
_KEPT_ORIGINS = 10_000
"""Of the streams that had events last, by connection; the others are read again."""


class LogBrokenError(Exception):
    """The log is not one that this program wrote: the tree stops growing."""


class Tile(NamedTuple):
    """Where a tile stands."""

    level: int
    number: int


class Head(NamedTuple):
    """How large a tree is, and where in the log the event of its last leaf stands (0: it has none)."""

    size: int
    position: int


Tiles = Mapping[Tile, bytes]


def envelope(row: Sequence[Any]) -> Envelope:
    """A row of the log, selected as `SELECTED`, as it goes into the tree."""
    recorded = _moment(row[10])
    occurred = recorded if row[9] == row[10] else _moment(row[9])
    return Envelope._make((*row[:9], occurred, recorded, *row[11:15], bytes(row[15])))


def _moment(time: datetime) -> str:
    return f"{time.isoformat(timespec='microseconds')}+00:00"


# Reading


def head_of(last: Sequence[Any] | None) -> Head:
    """The head of a tree from the row of `LAST_QUERY`."""
    if last is None:
        return Head(0, 0)
    number, positions = last
    return Head(number * TILE_WIDTH + len(positions), positions[-1])


def index_in(found: Sequence[Any] | None, position: int) -> int | None:
    """The index of the leaf of ``position`` from the row of `FIND_QUERY`; None: it is no event of the workspace."""
    if found is None or position not in found[1]:
        return None
    return int(found[0] * TILE_WIDTH + found[1].index(position))


def leaf_place(index: int) -> tuple[int, int]:
    """The number of the tile that has leaf ``index``, and where in it."""
    return divmod(index, TILE_WIDTH)


def tiles_of(spans: Iterable[Span]) -> list[Tile]:
    """The tiles that must be read to hash all of ``spans``."""
    return sorted({_place(node)[0] for span in spans for node in nodes_of(span)})


def coordinates(tiles: Iterable[Tile]) -> tuple[list[int], list[int]]:
    """Their levels and numbers, for `TILES_QUERY`."""
    listed = list(tiles)
    return [tile.level for tile in listed], [tile.number for tile in listed]


def hashes_of(spans: Iterable[Span], tiles: Tiles) -> list[bytes]:
    """The hash of each of ``spans``.

    Raises `KeyError` where ``tiles`` lacks one that is needed.
    """
    return [span_hash(span, lambda node: _node(node, tiles)) for span in spans]


def _place(node: Node) -> tuple[Tile, int, int]:
    """The tile from which ``node`` is hashed, the first of its hashes that count, and how many do."""
    level, height = divmod(node.height, TILE_HEIGHT)
    number, first = divmod(node.number << height, TILE_WIDTH)
    return Tile(level, number), first, 1 << height


def _node(node: Node, tiles: Tiles) -> bytes:
    tile, first, count = _place(node)
    hashes = tiles[tile]
    return _fold([hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES] for at in range(first, first + count)])


def _fold(row: list[bytes]) -> bytes:
    """The root over a power of two of hashes."""
    while len(row) > 1:
        row = [node_hash(row[at], row[at + 1]) for at in range(0, len(row), 2)]
    return row[0]


# Building


@dataclass(slots=True)
class _Growing:
    """The right edge of a workspace's tree, and the tiles that have changed."""

    size: int = 0
    edge: dict[int, tuple[int, list[bytes]]] = field(default_factory=dict)
    """By level: the number of the last tile, and its hashes."""
    positions: list[int] = field(default_factory=list)
    """Of the last tile of level 0."""
    touched: set[int] = field(default_factory=set)
    """Levels whose last tile has changed."""
    full: dict[Tile, tuple[bytes, list[int] | None]] = field(default_factory=dict)
    """Changed tiles that have become full."""

    def extend(self, leaves: Sequence[bytes], positions: Sequence[int]) -> None:
        """Add leaves, given by their hashes, and where in the log their events stand."""
        at = 0
        while at < len(leaves):
            if len(self.positions) == TILE_WIDTH:
                self.positions = []
            end = at + TILE_WIDTH - len(self.positions)
            self.positions += positions[at:end]
            self._add(0, leaves[at:end])
            at = end
        self.size += len(leaves)

    def _add(self, level: int, added: Sequence[bytes]) -> None:
        """Add what the last tile of ``level``, or the one after it, has room for."""
        number, hashes = self.edge.get(level, (0, []))
        if len(hashes) == TILE_WIDTH:
            number, hashes = number + 1, []
        hashes += added
        self.edge[level] = number, hashes
        self.touched.add(level)
        if len(hashes) == TILE_WIDTH:
            self.full[Tile(level, number)] = self._tile(level)
            self._add(level + 1, [_fold(hashes)])

    def _tile(self, level: int) -> tuple[bytes, list[int] | None]:
        return b"".join(self.edge[level][1]), self.positions if level == 0 else None

    def rows(self, workspace_id: str) -> Iterable[tuple[Any, ...]]:
        """The changed tiles as rows."""
        last = {Tile(level, self.edge[level][0]): self._tile(level) for level in self.touched}
        for tile, (hashes, positions) in (self.full | last).items():
            yield workspace_id, *tile, hashes, positions, positions[0] if positions else None


class Tree:
    """The read model of trees. It reads the log's rows itself: bytes count here, not what they mean."""

    name = "tree"
    tables: tuple[str, ...] = ("tree_tiles",)
    ddl = DDL

    def __init__(self) -> None:
        # By connection: whoever restores a backup, or tests, connects anew.
        self._origins: WeakKeyDictionary[Any, LRUCache[tuple[str, str], bytes]] = WeakKeyDictionary()

    def apply(self, connection: psycopg.Connection[Any], events: Sequence[RecordedEvent]) -> None:
        """Add a leaf for each of ``events``."""
        rows = connection.execute(
            f"select {SELECTED} from events where position between %s and %s order by position",
            (events[0].position, events[-1].position),
            prepare=True,
            binary=True,
        ).fetchall()
        envelopes = [envelope(row) for row in rows]
        lines = [line_of(each) for each in envelopes]
        origins = self._find_origins(connection, envelopes, lines)
        growing = _load_edges(connection, {each.workspace_id for each in envelopes})
        leaves: dict[str, list[bytes]] = defaultdict(list)
        positions: dict[str, list[int]] = defaultdict(list)
        for each, line in zip(envelopes, lines, strict=True):
            id_ = each.workspace_id
            tag = tag_of(origins[id_, each.stream_id], growing[id_].size + len(leaves[id_]))
            leaves[id_].append(leaf_hash(tag + digest_of(line)))
            positions[id_].append(each.position)
        for id_, tree in growing.items():
            tree.extend(leaves[id_], positions[id_])
        _save(connection, [row for id_, tree in growing.items() for row in tree.rows(id_)])

    def _find_origins(
        self, connection: psycopg.Connection[Any], envelopes: Sequence[Envelope], lines: Sequence[bytes]
    ) -> Mapping[tuple[str, str], bytes]:
        """The origins of the streams that ``envelopes`` belong to."""
        known = self._origins.setdefault(connection, LRUCache(_KEPT_ORIGINS))
        keys = [(each.workspace_id, each.stream_id) for each in envelopes]
        origins = {
            key: origin_of(line) for key, each, line in zip(keys, envelopes, lines, strict=True) if each.version == 1
        }
        origins |= {key: known[key] for key in keys if key not in origins and key in known}
        lacking = list({key for key in keys if key not in origins})
        if lacking:
            origins |= load_origins(connection, lacking)
        if not origins.keys() >= set(lacking):
            raise LogBrokenError(f"streams without their first event, such as {set(lacking) - origins.keys()}")
        known.update(origins)
        return origins


def load_origins(
    connection: psycopg.Connection[Any], streams: Sequence[tuple[str | UUID, str | UUID]]
) -> dict[tuple[str, str], bytes]:
    """The origins of streams, given as workspace and id, by both as text."""
    values = [stream[0] for stream in streams], [stream[1] for stream in streams]
    firsts = [envelope(row) for row in connection.execute(_ORIGINS_QUERY, values, prepare=True, binary=True)]
    return {(first.workspace_id, first.stream_id): origin_of(line_of(first)) for first in firsts}


def _save(connection: psycopg.Connection[Any], rows: Sequence[tuple[Any, ...]]) -> None:
    """Store changed tiles in one statement. Positions go as text: an array of arrays has rows of one length."""
    *others, positions, first = map(list, zip(*rows, strict=True))
    texts = [None if each is None else f"{{{','.join(map(str, each))}}}" for each in positions]
    connection.execute(_SAVE, (*others, texts, first), prepare=True)


def _load_edges(connection: psycopg.Connection[Any], workspaces: Iterable[str]) -> dict[str, _Growing]:
    growing: dict[str, _Growing] = defaultdict(_Growing)
    growing |= {id_: _Growing() for id_ in workspaces}
    for id_, level, number, hashes, positions in connection.execute(
        _EDGE_QUERY, (list(growing),), prepare=True, binary=True
    ):
        tree = growing[id_]
        tree.edge[level] = number, [bytes(hashes[at : at + HASH_BYTES]) for at in range(0, len(hashes), HASH_BYTES)]
        if level == 0:
            tree.positions, tree.size = positions, head_of((number, positions)).size
    return growing
