"""The Merkle tree of RFC 9162 section 2.1 with SHA-256, as pure functions over plain values.

Subtrees are named (level, index): the complete subtree over entries [index * 2^level, (index + 1) * 2^level). A
hash reader is a function from such a name to its hash.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256

from fieldprint.errors import VerificationError

HASH_SIZE = 32
HashReader = Callable[[int, int], bytes]


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256(0x00 || entry), RFC 9162 section 2.1.1."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right), RFC 9162 section 2.1.1."""
    return sha256(b"\x01" + left + right).digest()


def empty_root() -> bytes:
    """The root of a tree without entries: SHA-256 of nothing."""
    return sha256(b"").digest()


def fold(hashes: Sequence[bytes]) -> bytes:
    """The hash of the complete subtree over neighbouring subtrees' hashes; their number is a power of two."""
    level = list(hashes)
    while len(level) > 1:
        level = [node_hash(a, b) for a, b in zip(level[::2], level[1::2], strict=True)]
    return level[0]


def edge_root(levels: Sequence[Sequence[bytes]]) -> bytes:
    """The root from the hashes of the partial tiles alone, level 0 first: complete subtrees folded from the right."""
    root: bytes | None = None
    for hashes in levels:
        position = len(hashes)
        while position:
            width = position & -position
            part = fold(hashes[position - width : position])
            root = part if root is None else node_hash(part, root)
            position -= width
    return empty_root() if root is None else root


def range_hash(start: int, stop: int, read: HashReader) -> bytes:
    """The hash of the entries [start, stop), where start is aligned as a subtree of an RFC 9162 tree is."""
    size = stop - start
    if size & (size - 1) == 0 and start % size == 0:
        level = size.bit_length() - 1
        return read(level, start >> level)
    middle = start + (1 << ((size - 1).bit_length() - 1))
    return node_hash(range_hash(start, middle, read), range_hash(middle, stop, read))


def tree_hash(tree_size: int, read: HashReader) -> bytes:
    """The root of the tree over the first `tree_size` entries."""
    return empty_root() if tree_size == 0 else range_hash(0, tree_size, read)


def prove_inclusion(index: int, tree_size: int, read: HashReader) -> list[bytes]:
    """The audit path of entry `index` in the tree of `tree_size` entries, RFC 9162 section 2.1.3.1."""
    if not 0 <= index < tree_size:
        raise ValueError(f"index {index} is not in a tree of {tree_size} entries")
    start, stop, path = 0, tree_size, []
    while stop - start > 1:
        middle = start + (1 << ((stop - start - 1).bit_length() - 1))
        if index < middle:
            path.append(range_hash(middle, stop, read))
            stop = middle
        else:
            path.append(range_hash(start, middle, read))
            start = middle
    return path[::-1]


def is_subtree(start: int, stop: int) -> bool:
    """Whether [start, stop) is a subtree: not empty, and `start` a multiple of the next power of two of its size."""
    return 0 <= start < stop and start % (1 << (stop - start - 1).bit_length()) == 0


def prove_subtree(start: int, stop: int, tree_size: int, read: HashReader) -> list[bytes]:
    """The proof that the subtree over [start, stop) is part of the tree, SUBTREE_PROOF of the draft on Merkle tree
    certificates, section 4.4.1.

    With start = 0 it is the consistency proof of RFC 9162, with stop = start + 1 the inclusion proof.

    Raises:
        ValueError: [start, stop) is no subtree, or not in the tree.
    """
    if not is_subtree(start, stop) or stop > tree_size:
        raise ValueError(f"[{start}, {stop}) is no subtree of a tree of {tree_size} entries")
    low, high, known, path = 0, tree_size, True, []
    while (low, high) != (start, stop):
        middle = low + (1 << ((high - low - 1).bit_length() - 1))
        if stop <= middle:
            path.append(range_hash(middle, high, read))
            high = middle
            continue
        path.append(range_hash(low, middle, read))
        low = middle
        if start < middle:  # the subtree is cut here: its left part is in the proof, its right part goes on
            start, known = middle, False
    return ([] if known else [range_hash(start, stop, read)]) + path[::-1]


def prove_consistency(size1: int, size2: int, read: HashReader) -> list[bytes]:
    """The proof that the tree of `size1` entries is a prefix of the one of `size2`, RFC 9162 section 2.1.4.1."""
    if not 0 <= size1 <= size2:
        raise ValueError(f"a tree of {size1} entries is no prefix of one of {size2}")
    return [] if size1 == 0 else prove_subtree(0, size1, size2, read)


def verify_inclusion(
    leaf_hash: bytes, index: int, tree_size: int, proof: Sequence[bytes], root_hash: bytes
) -> None:
    """Return only if `proof` shows `leaf_hash` at `index` in the tree, RFC 9162 section 2.1.3.2.

    The bits of `index` below the highest in which it differs from the last entry's say on which side each sibling
    stands; of the bits above, every 1 is a left sibling and every 0 a level without one. `naive.py` of the tests is
    the RFC's loop.

    Raises:
        VerificationError: it does not; check 1 is the shape of the arguments, check 2 the root.
    """
    if not 0 <= index < tree_size or len(leaf_hash) != HASH_SIZE or len(root_hash) != HASH_SIZE:
        raise VerificationError(1, "index, tree size or hash lengths of the inclusion proof are impossible")
    inner = (index ^ (tree_size - 1)).bit_length()
    length = inner + (index >> inner).bit_count()
    if len(proof) != length:
        long = "long" if len(proof) > length else "short"
        raise VerificationError(1, f"the inclusion proof is too {long}")
    value, bits = leaf_hash, index | -1 << inner
    for sibling in proof:
        if len(sibling) != HASH_SIZE:
            raise VerificationError(1, "a hash of the inclusion proof has another length")
        value = sha256(b"\x01" + sibling + value if bits & 1 else b"\x01" + value + sibling).digest()
        bits >>= 1
    if value != root_hash:
        raise VerificationError(2, "the inclusion proof does not lead to the tree's root")


def verify_subtree(
    start: int, stop: int, tree_size: int, proof: Sequence[bytes], subtree_hash: bytes, root_hash: bytes
) -> None:
    """Return only if `proof` shows that the tree's entries [start, stop) are those of the subtree, draft on Merkle
    tree certificates, section 4.4.3.

    Raises:
        VerificationError: it does not; check 1 is the shape of the arguments, check 2 the subtree's hash, 3 the root.
    """
    if (
        not is_subtree(start, stop)
        or stop > tree_size
        or any(len(h) != HASH_SIZE for h in (subtree_hash, root_hash, *proof))
    ):
        raise VerificationError(1, "bounds or hash lengths of the subtree proof are impossible")
    first, last, end = start, stop - 1, tree_size - 1
    while first != last and (last == end or last & 1):
        first, last, end = first >> 1, last >> 1, end >> 1
    path = iter(proof)
    part = subtree_hash if first == last else next(path, None)
    if part is None:
        raise VerificationError(1, "the subtree proof is empty")
    whole = part
    for sibling in path:
        if end == 0:
            raise VerificationError(1, "the subtree proof is too long")
        if last & 1 or last == end:
            if first < last:
                part = node_hash(sibling, part)
            whole = node_hash(sibling, whole)
            while last and not last & 1:
                first, last, end = first >> 1, last >> 1, end >> 1
        else:
            whole = node_hash(whole, sibling)
        first, last, end = first >> 1, last >> 1, end >> 1
    if end:
        raise VerificationError(1, "the subtree proof is too short")
    if part != subtree_hash:
        raise VerificationError(2, "the proof does not lead to the subtree's hash")
    if whole != root_hash:
        raise VerificationError(3, "the proof does not lead to the tree's root")


def verify_consistency(size1: int, size2: int, proof: Sequence[bytes], root1: bytes, root2: bytes) -> None:
    """Return only if `proof` shows that tree 1 is a prefix of tree 2, RFC 9162 section 2.1.4.2.

    Raises:
        VerificationError: it does not; check 1 is the shape of the arguments, check 2 the first root, 3 the second.
    """
    if not 0 <= size1 <= size2 or any(len(h) != HASH_SIZE for h in (root1, root2, *proof)):
        raise VerificationError(1, "sizes or hash lengths of the consistency proof are impossible")
    if size1 in (0, size2):
        if proof or (size1 == size2 and root1 != root2) or (size1 == 0 and root1 != empty_root()):
            raise VerificationError(2, "the trees are not consistent")
        return
    verify_subtree(0, size1, size2, proof, root1, root2)


class CompactRange:
    """The roots of the complete subtrees that a tree's first entries fall into: what an append needs of the tree.

    For 6 entries: (level 2, entries 0 to 3), (level 1, entries 4 and 5). An append makes one node for every trailing 1
    bit of the size, so n appends make fewer than n nodes, and no memory but log2(n) hashes is needed.
    """

    def __init__(self, tree_size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """The range over the first `tree_size` entries.

        Args:
            tree_size: number of entries.
            hashes: of the complete subtrees from left to right, one for each 1 bit of `tree_size`.

        Raises:
            ValueError: another number of hashes.
        """
        if tree_size < 0 or len(hashes) != tree_size.bit_count():
            raise ValueError(f"a compact range over {tree_size} entries does not have {len(hashes)} hashes")
        self.tree_size = tree_size
        self.hashes = list(hashes)

    @classmethod
    def read(cls, tree_size: int, read: HashReader) -> "CompactRange":
        """The range over a stored tree's first entries."""
        tree = cls()
        tree.extend(tree_size, read)
        return tree

    def append(self, leaf: bytes) -> list[bytes]:
        """Put a leaf hash behind the others; returns the complete subtrees' hashes that this made, from level 0 up."""
        return self._put(leaf, 0)

    def extend(self, tree_size: int, read: HashReader) -> None:
        """Put the entries up to `tree_size` of a stored tree behind the others, by fewer than 2 log2(tree_size) hashes.

        Whether the stored tree begins with the entries of this one, only the root can tell.
        """
        while self.tree_size < tree_size:
            size = self.tree_size
            level = (tree_size - size).bit_length() - 1
            if size:
                level = min(level, (size & -size).bit_length() - 1)
            self._put(read(level, size >> level), level)

    def _put(self, value: bytes, level: int) -> list[bytes]:
        """Put a complete subtree behind the others, whose number is a multiple of its entries'."""
        made, count = [value], self.tree_size >> level
        while count & 1:
            value = sha256(b"\x01" + self.hashes.pop() + value).digest()
            made.append(value)
            count >>= 1
        self.hashes.append(value)
        self.tree_size += 1 << level
        return made

    def copy(self) -> "CompactRange":
        """Another range over the same entries."""
        return CompactRange(self.tree_size, self.hashes)

    def root(self) -> bytes:
        """The root of the tree over the entries so far."""
        if not self.hashes:
            return empty_root()
        value = self.hashes[-1]
        for left in self.hashes[-2::-1]:
            value = node_hash(left, value)
        return value
