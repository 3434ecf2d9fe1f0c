"""The status tree as its definition says it, computed anew each time, and what is absent by looking at everything."""

from collections.abc import Collection
from hashlib import sha256

from fieldprint.tlog.status import AbsenceProof, Neighbour
from tests.tlog.naive import mth, path


def root(digests: Collection[bytes]) -> bytes:
    """SHA-256(0x02 || count || MTH of the sorted digests)."""
    leaves = tuple(sorted(set(digests)))
    return sha256(b"\x02" + len(leaves).to_bytes(8, "big") + mth(leaves)).digest()


def prove_absent(digests: Collection[bytes], digest: bytes) -> AbsenceProof:
    """The neighbours found by counting, their paths by recursion."""
    leaves = tuple(sorted(set(digests)))
    rank = sum(leaf < digest for leaf in leaves)
    around = [
        Neighbour(leaves[i], tuple(path(i, leaves))) if 0 <= i < len(leaves) else None
        for i in (rank - 1, rank)
    ]
    return AbsenceProof(rank, around[0], around[1], mth(leaves))
