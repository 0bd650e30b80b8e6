"""The Merkle tree of RFC 9162 (and RFC 6962): hashes, inclusion and consistency proofs, and how they are checked.

A tree is never held as a whole here: whoever has its complete subtrees stored says what they hash to.

Invariant: pure; a tree of n leaves has one root, and a proof that was not made from that tree does not verify.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()


class Node(NamedTuple):
    """A complete subtree: the ``number``-th, counted from the left, of those with 2 ** ``height`` leaves."""

    height: int
    number: int


class Span(NamedTuple):
    """The leaves from ``start`` up to ``end``, which is not one of them."""

    start: int
    end: int


Hashes = Callable[[Node], bytes]
"""What complete subtrees hash to."""


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf."""
    return sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node with two children."""
    return sha256(b"\1" + left + right).digest()


def nodes_of(span: Span) -> Iterator[Node]:
    """The complete subtrees that make up ``span``, the largest and leftmost first; it begins where one of them may."""
    start = span.start
    while start < span.end:
        height = (span.end - start).bit_length() - 1
        yield Node(height, start >> height)
        start += 1 << height


def span_hash(span: Span, hashes: Hashes) -> bytes:
    """The hash of the tree over the leaves of ``span``."""
    found = EMPTY_ROOT
    for number, node in enumerate(reversed(list(nodes_of(span)))):
        found = node_hash(hashes(node), found) if number else hashes(node)
    return found


def inclusion_spans(index: int, size: int) -> list[Span]:
    """Whose hashes prove that leaf ``index`` is in the tree of ``size`` leaves, from the leaf to the root."""
    _check(0 <= index < size, "there is no such leaf")
    start, end, spans = 0, size, []
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            spans.append(Span(middle, end))
            end = middle
        else:
            spans.append(Span(start, middle))
            start = middle
    return spans[::-1]


def consistency_spans(first: int, second: int) -> list[Span]:
    """Whose hashes prove that the tree of ``second`` leaves begins with the tree of ``first`` leaves."""
    _check(0 <= first <= second, "a tree begins with smaller ones only")
    if first in {0, second}:
        return []
    start, end, spans = 0, second, []
    while end != first:
        middle = start + _split(end - start)
        if first <= middle:
            spans.append(Span(middle, end))
            end = middle
        else:
            spans.append(Span(start, middle))
            start = middle
    if start > 0:
        spans.append(Span(start, end))
    return spans[::-1]


def is_included(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether ``path`` proves that the leaf hashed ``leaf`` is the ``index``-th under ``root`` (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size or not _are_hashes(leaf, root, *path):
        return False
    number, last, found = index, size - 1, leaf
    for other in path:
        if last == 0:
            return False
        if number & 1 or number == last:
            found = node_hash(other, found)
            while number and not number & 1:
                number, last = number >> 1, last >> 1
        else:
            found = node_hash(found, other)
        number, last = number >> 1, last >> 1
    return last == 0 and found == root


def is_consistent(first: int, first_root: bytes, second: int, second_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether ``path`` proves that the second tree begins with the whole first one (RFC 9162, 2.1.4.2)."""
    if not 0 <= first <= second or not _are_hashes(first_root, second_root, *path):
        return False
    if first == 0 and first_root != EMPTY_ROOT:
        return False
    if first == second:
        return not path and first_root == second_root
    if first == 0:
        return not path
    rest = list(path)
    if first & (first - 1) == 0:
        rest.insert(0, first_root)
    if not rest:
        return False
    number, last = first - 1, second - 1
    while number & 1:
        number, last = number >> 1, last >> 1
    found_first = found_second = rest[0]
    for other in rest[1:]:
        if last == 0:
            return False
        if number & 1 or number == last:
            found_first, found_second = node_hash(other, found_first), node_hash(other, found_second)
            while number and not number & 1:
                number, last = number >> 1, last >> 1
        else:
            found_second = node_hash(found_second, other)
        number, last = number >> 1, last >> 1
    return last == 0 and (found_first, found_second) == (first_root, second_root)


class Frontier:
    """A tree that grows leaf by leaf, of which only the roots of its complete subtrees are kept."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add the leaf with the hash ``leaf``."""
        complete = self.size
        while complete & 1:
            leaf = node_hash(self._peaks.pop(), leaf)
            complete >>= 1
        self._peaks.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The root of the tree as it is now."""
        if not self._peaks:
            return EMPTY_ROOT
        found = self._peaks[-1]
        for peak in self._peaks[-2::-1]:
            found = node_hash(peak, found)
        return found


def _split(size: int) -> int:
    """The largest power of two below ``size``, which is 2 or more."""
    return 1 << ((size - 1).bit_length() - 1)


def _are_hashes(*given: bytes) -> bool:
    return all(len(each) == HASH_BYTES for each in given)


def _check(holds: bool, otherwise: str) -> None:  # noqa: FBT001  # the condition itself
    if not holds:
        raise ValueError(otherwise)
