"""The tree agrees with the definition and with pymerkle, whatever is in it; and with itself, however it was stored.

Invariant: pymerkle is somebody else's implementation of RFC 9162, used by these tests only.
"""

from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st
from pymerkle import InmemoryTree, verify_consistency, verify_inclusion

from domain.merkle import (
    EMPTY_ROOT,
    Frontier,
    Node,
    Span,
    consistency_spans,
    inclusion_spans,
    is_consistent,
    is_included,
    leaf_hash,
    node_hash,
    span_hash,
)
from projections.tree import TILE_WIDTH, Tile, _Growing, hashes_of, head_of, tiles_of

LEAVES = st.lists(st.binary(max_size=80), max_size=200)


def definition(hashes: list[bytes]) -> bytes:
    """RFC 9162, 2.1.1, word for word."""
    if not hashes:
        return EMPTY_ROOT
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    return node_hash(definition(hashes[:split]), definition(hashes[split:]))


class Stored:
    """A tree in memory that says what its complete subtrees hash to."""

    def __init__(self, leaves: list[bytes]) -> None:
        self.hashes = [leaf_hash(leaf) for leaf in leaves]

    def __call__(self, node: Node) -> bytes:
        return definition(self.hashes[node.number << node.height : (node.number + 1) << node.height])

    def root(self, size: int) -> bytes:
        return definition(self.hashes[:size])


def theirs(leaves: list[bytes]) -> InmemoryTree:
    tree = InmemoryTree(algorithm="sha256")
    for leaf in leaves:
        tree.append(leaf)
    return tree


@given(LEAVES)
def test_the_root_is_the_definition_s_and_pymerkle_s(leaves: list[bytes]) -> None:
    tree = Frontier()
    for leaf in leaves:
        tree.append(leaf_hash(leaf))
    assert tree.root() == Stored(leaves).root(len(leaves)) == theirs(leaves).get_state()


@given(LEAVES.filter(bool), st.data())
def test_inclusion_proofs_are_pymerkle_s_and_each_verifies_the_other_s(
    leaves: list[bytes], data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, len(leaves)))
    index = data.draw(st.integers(0, size - 1))
    stored = Stored(leaves)
    path = [span_hash(span, stored) for span in inclusion_spans(index, size)]
    leaf, root = stored.hashes[index], stored.root(size)
    assert is_included(leaf, index, size, path, root)
    proof = theirs(leaves).prove_inclusion(index + 1, size)  # counts from 1
    assert sorted(proof.path) == sorted([leaf, *path])
    verify_inclusion(leaf, root, proof)


@given(LEAVES.filter(bool), st.data())
def test_what_our_consistency_proofs_say_pymerkle_s_say_of_the_same_roots(
    leaves: list[bytes], data: st.DataObject
) -> None:
    second = data.draw(st.integers(1, len(leaves)))
    first = data.draw(st.integers(1, second))
    stored = Stored(leaves)
    path = [span_hash(span, stored) for span in consistency_spans(first, second)]
    roots = stored.root(first), stored.root(second)
    assert is_consistent(first, roots[0], second, roots[1], path)
    proof = theirs(leaves).prove_consistency(first, second)
    verify_consistency(*roots, proof)


@given(LEAVES.filter(bool), st.data())
def test_a_path_proves_nothing_else(leaves: list[bytes], data: st.DataObject) -> None:
    """Another leaf, index, size, root or path never verifies, except where it is the same after all."""
    size = data.draw(st.integers(1, len(leaves)))
    index = data.draw(st.integers(0, size - 1))
    stored = Stored(leaves)
    path = [span_hash(span, stored) for span in inclusion_spans(index, size)]
    truth = (stored.hashes[index], index, size, path, stored.root(size))
    other_size = data.draw(st.integers(0, 2 * len(leaves)))
    other_index = data.draw(st.integers(-1, 2 * len(leaves)))
    for claim in (
        (node_hash(truth[0], truth[0]), *truth[1:]),
        (truth[0], other_index, *truth[2:]),
        (*truth[:3], path[::-1], truth[4]),
        (*truth[:3], [*path, truth[0]], truth[4]),
        (*truth[:4], EMPTY_ROOT),
    ):
        leaf, at, of, claimed, root = claim
        if is_included(leaf, at, of, claimed, root):
            assert root == truth[4]
            assert leaf == stored.hashes[at]
    # A size is claimed together with its own root: that of a checkpoint.
    if 0 < other_size <= len(leaves) and is_included(truth[0], index, other_size, path, stored.root(other_size)):
        assert stored.root(other_size) == truth[4] or stored.hashes[index] == truth[0]


def kept(count: int, cuts: list[int]) -> tuple[dict[Tile, bytes], list[int], _Growing]:
    """The tiles of a tree that grew in batches which end at ``cuts``, as its rows are stored and loaded again."""
    tiles: dict[Tile, bytes] = {}
    positions: dict[int, list[int]] = {}
    growing, start = _Growing(), 0
    for end in sorted({*cuts, count}):
        numbers = range(start, end)
        growing.extend([leaf_hash(str(number).encode()) for number in numbers], [3 * number + 1 for number in numbers])
        for _, level, number, hashes, places, first in growing.rows(str(UUID(int=1))):
            tiles[Tile(level, number)] = hashes
            if level == 0:
                positions[number] = list(places)
                assert first == places[0]
        loaded = _Growing()
        for level in {tile.level for tile in tiles}:
            last = max(tile for tile in tiles if tile.level == level)
            loaded.edge[level] = last.number, [tiles[last][at : at + 32] for at in range(0, len(tiles[last]), 32)]
        if positions:
            last_number = max(positions)
            loaded.positions = list(positions[last_number])
            loaded.size = head_of((last_number, positions[last_number])).size
        growing, start = loaded, end
    return tiles, [place for number in sorted(positions) for place in positions[number]], growing


@settings(max_examples=60)
@given(st.integers(0, 40 * TILE_WIDTH), st.data())
def test_tiles_are_the_same_however_the_tree_grew_and_give_every_proof(count: int, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, count), max_size=8))
    tiles, positions, growing = kept(count, cuts)
    assert tiles == kept(count, [])[0]
    assert growing.size == count
    assert positions == [3 * number + 1 for number in range(count)]
    stored = Stored([str(number).encode() for number in range(count)])
    size = data.draw(st.integers(0, count))
    earlier = data.draw(st.integers(0, size))
    spans = [Span(0, size), *consistency_spans(earlier, size)]
    if earlier < size:
        spans += inclusion_spans(earlier, size)
    read = {tile: tiles[tile] for tile in tiles_of(spans)}
    assert hashes_of(spans, read) == [definition(stored.hashes[span.start : span.end]) for span in spans]
