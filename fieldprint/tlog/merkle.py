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


def prove_consistency(size1: int, size2: int, read: HashReader) -> list[bytes]:
    """The proof that the tree of `size1` entries is a prefix of the one of `size2`, RFC 9162 section 2.1.4.1."""
    if not 0 <= size1 <= size2:
        raise ValueError(f"a tree of {size1} entries is no prefix of one of {size2}")
    if size1 in (0, size2):
        return []
    start, stop, whole, path = 0, size2, True, []
    while size1 != stop:
        middle = start + (1 << ((stop - start - 1).bit_length() - 1))
        if size1 <= middle:
            path.append(range_hash(middle, stop, read))
            stop = middle
        else:
            path.append(range_hash(start, middle, read))
            start, whole = middle, False
    return ([] if whole else [range_hash(start, stop, read)]) + path[::-1]


def verify_inclusion(
    leaf_hash: bytes, index: int, tree_size: int, proof: Sequence[bytes], root_hash: bytes
) -> None:
    """Return only if `proof` shows `leaf_hash` at `index` in the tree, RFC 9162 section 2.1.3.2.

    Raises:
        VerificationError: it does not; check 1 is the shape of the arguments, check 2 the root.
    """
    if not 0 <= index < tree_size or any(len(h) != HASH_SIZE for h in (leaf_hash, root_hash, *proof)):
        raise VerificationError(1, "index, tree size or hash lengths of the inclusion proof are impossible")
    node, last, value = index, tree_size - 1, leaf_hash
    for sibling in proof:
        if last == 0:
            raise VerificationError(1, "the inclusion proof is too long")
        if node & 1 or node == last:
            value = node_hash(sibling, value)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            value = node_hash(value, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise VerificationError(1, "the inclusion proof is too short")
    if value != root_hash:
        raise VerificationError(2, "the inclusion proof does not lead to the tree's root")


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
    path = list(proof)
    if size1 & (size1 - 1) == 0:
        path.insert(0, root1)
    if not path:
        raise VerificationError(1, "the consistency proof is empty")
    node, last = size1 - 1, size2 - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise VerificationError(1, "the consistency proof is too long")
        if node & 1 or node == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise VerificationError(1, "the consistency proof is too short")
    if first != root1:
        raise VerificationError(2, "the consistency proof does not lead to the first root")
    if second != root2:
        raise VerificationError(3, "the consistency proof does not lead to the second root")
