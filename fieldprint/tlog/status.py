"""A Merkle tree over a sorted set of digests, with proofs that a digest is in the set and proofs that one is not.

A log proves presence and never absence. What is absent is shown by a second, small tree whose leaves are sorted:

    leaf   SHA-256(0x00 || digest)
    node   SHA-256(0x01 || left || right)                        both as in RFC 9162 section 2.1.1
    root   SHA-256(0x02 || count as 8 bytes, big-endian || hash of the tree over the leaves in ascending order)

A digest is absent if two leaves that stand side by side enclose it, or if it lies before the first or after the last.
That the count is in the root makes the edge on the right certain: an audit path alone does not tell how many leaves
there are. Whoever replays the log makes the same tree; a root over leaves that are not sorted is not theirs.
"""

import json
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import rfc8785

from fieldprint.errors import FormatError, VerificationError
from fieldprint.tlog.merkle import (
    HASH_SIZE,
    empty_root,
    leaf_hash,
    prove_inclusion,
    tree_hash,
    verify_inclusion,
)

MAX_COUNT = 2**53 - 1  # what JSON keeps exactly
MAX_PATH = 53
MAX_STATUS_PROOF_SIZE = 16384


def status_root(tree: bytes, count: int) -> bytes:
    """The root that is signed: SHA-256(0x02 || count as 8 bytes, big-endian || hash of the tree)."""
    return sha256(b"\x02" + count.to_bytes(8, "big") + tree).digest()


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A leaf beside a digest that is absent: the leaf's digest and its audit path, the sibling first."""

    digest: bytes
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class PresenceProof:
    """That a digest is in the set: its index, its audit path and the hash of the tree.

    {"index":1,"path":["4f1c..."],"tree":"09ab...","type":"presence","v":1}
    """

    index: int
    path: tuple[bytes, ...]
    tree: bytes

    def to_bytes(self) -> bytes:
        """Canonical JSON (RFC 8785); `from_bytes` is its inverse."""
        path = [value.hex() for value in self.path]
        fields: dict[str, Any] = {
            "index": self.index,
            "path": path,
            "tree": self.tree.hex(),
            "type": "presence",
            "v": 1,
        }
        return rfc8785.dumps(fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> "PresenceProof":
        """The proof in `data`; nothing is verified.

        Raises:
            FormatError: too large, no JSON of this form, or not in canonical bytes.
        """
        fields = _fields(data, "presence", {"index", "path", "tree"})
        proof = cls(_number(fields["index"]), _path(fields["path"]), _hash(fields["tree"]))
        _check_written(proof.to_bytes(), data)
        return proof


@dataclass(frozen=True, slots=True)
class AbsenceProof:
    """That a digest is not in the set: how many smaller ones are, the neighbours, and the hash of the tree.

    rank: number of smaller digests. before: the leaf at rank - 1, None at rank 0. after: the leaf at rank, None where
    nothing in the set is larger.

    {"after":null,"before":{"digest":"77e0...","path":["4f1c..."]},"rank":2,"tree":"09ab...","type":"absence","v":1}
    """

    rank: int
    before: Neighbour | None
    after: Neighbour | None
    tree: bytes

    def to_bytes(self) -> bytes:
        """Canonical JSON (RFC 8785); `from_bytes` is its inverse."""
        return rfc8785.dumps(
            {
                "after": _written(self.after),
                "before": _written(self.before),
                "rank": self.rank,
                "tree": self.tree.hex(),
                "type": "absence",
                "v": 1,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "AbsenceProof":
        """The proof in `data`; nothing is verified.

        Raises:
            FormatError: too large, no JSON of this form, or not in canonical bytes.
        """
        fields = _fields(data, "absence", {"after", "before", "rank", "tree"})
        before, after = _neighbour(fields["before"]), _neighbour(fields["after"])
        proof = cls(_number(fields["rank"]), before, after, _hash(fields["tree"]))
        _check_written(proof.to_bytes(), data)
        return proof


class StatusTree:
    """The tree over a set of digests that only grows.

    An insertion moves what stands to its right, so hashing waits until the root or a proof is asked for, and then only
    what lies right of the leftmost insertion is hashed again: many insertions cost what one costs.
    """

    def __init__(self, digests: Iterable[bytes] = ()) -> None:
        """The tree over these digests, each counted once.

        Raises:
            ValueError: one of them is not 32 bytes.
        """
        self._digests = sorted({_checked(digest) for digest in digests})
        self._levels = [[leaf_hash(digest) for digest in self._digests]]
        self._stale = 0  # leaves from here on have parents that are not hashed yet

    def __len__(self) -> int:
        """How many digests are in the set."""
        return len(self._digests)

    def __contains__(self, digest: object) -> bool:
        """Whether the digest is in the set."""
        if not isinstance(digest, bytes):
            return False
        rank = bisect_left(self._digests, digest)
        return self._digests[rank : rank + 1] == [digest]

    def add(self, digest: bytes) -> bool:
        """Put a digest into the set; whether it is new.

        Raises:
            ValueError: it is not 32 bytes.
        """
        if _checked(digest) in self:
            return False
        rank = bisect_left(self._digests, digest)
        self._digests.insert(rank, digest)
        self._levels[0].insert(rank, leaf_hash(digest))
        self._stale = min(self._stale, rank)
        return True

    @property
    def root(self) -> bytes:
        """The root over the set and its count."""
        return status_root(self._tree(), len(self))

    def prove_present(self, digest: bytes) -> PresenceProof:
        """The proof that the digest is in the set.

        Raises:
            ValueError: it is not.
        """
        if digest not in self:
            raise ValueError(f"{digest.hex()} is not in the set")
        tree, index = self._tree(), bisect_left(self._digests, digest)
        return PresenceProof(index, self._path(index), tree)

    def prove_absent(self, digest: bytes) -> AbsenceProof:
        """The proof that the digest is not in the set.

        Raises:
            ValueError: it is, or is not 32 bytes.
        """
        if _checked(digest) in self:
            raise ValueError(f"{digest.hex()} is in the set")
        tree, rank = self._tree(), bisect_left(self._digests, digest)
        before = Neighbour(self._digests[rank - 1], self._path(rank - 1)) if rank else None
        after = Neighbour(self._digests[rank], self._path(rank)) if rank < len(self) else None
        return AbsenceProof(rank, before, after, tree)

    def _path(self, index: int) -> tuple[bytes, ...]:
        return tuple(prove_inclusion(index, len(self), self._read))

    def _read(self, level: int, index: int) -> bytes:
        return self._levels[level][index]

    def _tree(self) -> bytes:
        """The hash of the tree, after hashing what insertions left open."""
        start, level = self._stale, 0
        while len(self._levels[level]) > 1:
            start >>= 1
            below = self._levels[level]
            level += 1
            if level == len(self._levels):
                self._levels.append([])
            pairs = zip(
                below[2 * start :: 2], below[2 * start + 1 :: 2], strict=False
            )  # an odd last one waits
            self._levels[level][start:] = [sha256(b"\x01" + a + b).digest() for a, b in pairs]
        self._stale = len(self)
        return tree_hash(len(self), self._read)


def verify_present(digest: bytes, proof: PresenceProof, root: bytes, count: int) -> None:
    """Return only if the digest is in the set of `count` digests with this root.

    1. Lengths and numbers are possible.
    2. The root is that of the proof's tree and the count.
    3. The digest is a leaf of the tree, at the proof's index.

    Raises:
        VerificationError: with the number of the check.
    """
    _check_root(digest, proof.tree, root, count)
    _check_leaf(digest, proof.index, count, proof.path, proof.tree, check=3)


def verify_absent(digest: bytes, proof: AbsenceProof, root: bytes, count: int) -> None:
    """Return only if the digest is not in the set of `count` digests with this root.

    1. Lengths and numbers are possible; a neighbour is missing where there is none, and nowhere else.
    2. The root is that of the proof's tree and the count.
    3. The digest is larger than the neighbour before it and smaller than the one after it.
    4. The neighbours are leaves of the tree at rank - 1 and rank, so that nothing stands between them.

    Args:
        digest: the one that is claimed to be absent.
        proof: of `StatusTree.prove_absent`.
        root: from a status root whose signature was verified.
        count: from the same.

    Raises:
        VerificationError: with the number of the check.
    """
    before, after, rank = proof.before, proof.after, proof.rank
    if not 0 <= rank <= count or (before is None) != (rank == 0) or (after is None) != (rank == count):
        raise VerificationError(1, "the absence proof has not the neighbours that its rank asks for")
    _check_root(digest, proof.tree, root, count)
    if (before is not None and before.digest >= digest) or (after is not None and after.digest <= digest):
        raise VerificationError(3, "the neighbours of the absence proof do not enclose the digest")
    if before is not None:
        _check_leaf(before.digest, rank - 1, count, before.path, proof.tree, check=4)
    if after is not None:
        _check_leaf(after.digest, rank, count, after.path, proof.tree, check=4)


def _check_root(digest: bytes, tree: bytes, root: bytes, count: int) -> None:
    """Checks 1 and 2 of both kinds of proof."""
    if any(len(value) != HASH_SIZE for value in (digest, tree, root)) or not 0 <= count <= MAX_COUNT:
        raise VerificationError(1, "a length or the count of the status proof is impossible")
    if count == 0 and tree != empty_root():
        raise VerificationError(2, "the status proof's tree is not the empty one")
    if status_root(tree, count) != root:
        raise VerificationError(
            2, "the status proof is not of this root and count", remedy="Get a proof of the present root"
        )


def _check_leaf(
    digest: bytes, index: int, count: int, path: tuple[bytes, ...], tree: bytes, *, check: int
) -> None:
    if len(digest) != HASH_SIZE:
        raise VerificationError(1, "a digest of the status proof has another length")
    try:
        verify_inclusion(leaf_hash(digest), index, count, path, tree)
    except VerificationError as error:
        raise VerificationError(check, f"the status proof's leaf {index}: {error.what}") from error


def _checked(digest: bytes) -> bytes:
    if len(digest) != HASH_SIZE:
        raise ValueError(f"a digest has {HASH_SIZE} bytes, not {len(digest)}")
    return digest


def _written(neighbour: Neighbour | None) -> dict[str, Any] | None:
    if neighbour is None:
        return None
    return {"digest": neighbour.digest.hex(), "path": [value.hex() for value in neighbour.path]}


def _fields(data: bytes, kind: str, names: set[str]) -> dict[str, Any]:
    """The fields of a proof of this kind; that the bytes are canonical is left to `_check_written`."""
    if len(data) > MAX_STATUS_PROOF_SIZE:
        raise FormatError(f"the status proof has {len(data)} bytes, more than {MAX_STATUS_PROOF_SIZE}")
    try:
        fields = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the status proof is not JSON: {error}") from error
    if not isinstance(fields, dict) or set(fields) != names | {"type", "v"}:
        raise FormatError(
            f"the status proof must have exactly the fields {', '.join(sorted(names))}, type, v"
        )
    if fields["type"] != kind:
        raise FormatError(f"the status proof is not of type {kind}")
    return fields


def _check_written(written: bytes, data: bytes) -> None:
    """Writing the proof again gives the same bytes: one form, one spelling, version 1."""
    if written != data:
        raise FormatError("the status proof is not version 1 in canonical form (RFC 8785)")


def _neighbour(value: object) -> Neighbour | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {"digest", "path"}:
        raise FormatError("a neighbour of the status proof must have exactly the fields digest, path")
    return Neighbour(_hash(value["digest"]), _path(value["path"]))


def _path(value: object) -> tuple[bytes, ...]:
    if not isinstance(value, list) or len(value) > MAX_PATH:
        raise FormatError(f"a path of the status proof must be a list of at most {MAX_PATH} hashes")
    return tuple(_hash(item) for item in value)


def _hash(value: object) -> bytes:
    if isinstance(value, str) and len(value) == 2 * HASH_SIZE:
        try:
            return bytes.fromhex(value)
        except ValueError:
            pass
    raise FormatError("a hash of the status proof must be 64 hex digits")


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise FormatError("an index or rank of the status proof must be a number from 0 to 2^53 - 1")
    return value
