"""The tree as RFC 9162 section 2.1 defines it, and the loops of its verification, to be read and checked by hand."""

from collections.abc import Sequence
from functools import cache
from hashlib import sha256


def split(size: int) -> int:
    """The largest power of two smaller than `size`."""
    k = 1
    while k * 2 < size:
        k *= 2
    return k


@cache
def mth(entries: tuple[bytes, ...]) -> bytes:
    """MTH of RFC 9162 section 2.1.1."""
    if not entries:
        return sha256().digest()
    if len(entries) == 1:
        return sha256(b"\x00" + entries[0]).digest()
    k = split(len(entries))
    return sha256(b"\x01" + mth(entries[:k]) + mth(entries[k:])).digest()


def path(m: int, entries: tuple[bytes, ...]) -> list[bytes]:
    """PATH of RFC 9162 section 2.1.3.1."""
    if len(entries) == 1:
        return []
    k = split(len(entries))
    if m < k:
        return [*path(m, entries[:k]), mth(entries[k:])]
    return [*path(m - k, entries[k:]), mth(entries[:k])]


def subproof(m: int, entries: tuple[bytes, ...], whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 9162 section 2.1.4.1."""
    if m == len(entries):
        return [] if whole else [mth(entries)]
    k = split(len(entries))
    if m <= k:
        return [*subproof(m, entries[:k], whole), mth(entries[k:])]
    return [*subproof(m - k, entries[k:], False), mth(entries[:k])]


def subtree_subproof(start: int, stop: int, entries: tuple[bytes, ...], *, known: bool) -> list[bytes]:
    """SUBTREE_SUBPROOF of the draft on Merkle tree certificates, section 4.4.1."""
    if (start, stop) == (0, len(entries)):
        return [] if known else [mth(entries)]
    k = split(len(entries))
    if stop <= k:
        return [*subtree_subproof(start, stop, entries[:k], known=known), mth(entries[k:])]
    if k <= start:
        return [*subtree_subproof(start - k, stop - k, entries[k:], known=known), mth(entries[:k])]
    return [*subtree_subproof(0, stop - k, entries[k:], known=False), mth(entries[:k])]


def folded(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes | None:
    """The root of the loop of RFC 9162 section 2.1.3.2; None where it fails."""
    if not 0 <= index < size:
        return None
    fn, sn, r = index, size - 1, leaf
    for p in proof:
        if sn == 0:
            return None
        if fn % 2 == 1 or fn == sn:
            r = sha256(b"\x01" + p + r).digest()
            while not (fn % 2 == 1 or fn == 0):
                fn, sn = fn // 2, sn // 2
        else:
            r = sha256(b"\x01" + r + p).digest()
        fn, sn = fn // 2, sn // 2
    return r if sn == 0 else None


def includes(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root_hash: bytes | None) -> bool:
    """What that loop says."""
    return root_hash is not None and folded(leaf, index, size, proof) == root_hash


class Tree:
    """A tree that keeps every leaf hash and computes everything anew."""

    def __init__(self, leaves: list[bytes]) -> None:
        self.leaves = leaves

    def append(self, leaf: bytes) -> list[bytes]:
        """The hashes of the complete subtrees that end with the new leaf, from one entry up."""
        self.leaves.append(leaf)
        size, made, width = len(self.leaves), [], 1
        while size % width == 0:
            made.append(self.hash(size - width, size))
            width *= 2
        return made

    def hash(self, start: int, stop: int) -> bytes:
        """MTH over leaf hashes."""
        if stop - start == 1:
            return self.leaves[start]
        k = split(stop - start)
        return sha256(b"\x01" + self.hash(start, start + k) + self.hash(start + k, stop)).digest()

    def root(self) -> bytes:
        """The root."""
        return self.hash(0, len(self.leaves)) if self.leaves else sha256().digest()
