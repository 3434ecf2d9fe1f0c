"""Bytes to digest: BLAKE3 of pages, and the root over page digests."""

from collections.abc import Sequence

import blake3 as _package

LEAF_CONTEXT = "fieldprint v1 page leaf"
NODE_CONTEXT = "fieldprint v1 page node"


def digest(data: bytes | memoryview) -> bytes:
    """BLAKE3 of `data`, 32 bytes."""
    return _package.blake3(data).digest()


def tree_root(digests: Sequence[bytes]) -> bytes:
    """The root over page digests, 32 bytes.

    The tree has the shape of RFC 9162 section 2.1.1 (the left part holds the largest power of two below the number of
    leaves); leaves and nodes are BLAKE3 in its derive-key mode, with a context each, so that neither can pass for the
    other.

    Raises:
        ValueError: no digest is given, or one has not 32 bytes.
    """
    if not digests or any(len(d) != 32 for d in digests):
        raise ValueError("digests must hold at least one digest of 32 bytes each")
    level = [_package.blake3(d, derive_key_context=LEAF_CONTEXT).digest() for d in digests]
    while len(level) > 1:
        paired = [
            _package.blake3(level[i] + level[i + 1], derive_key_context=NODE_CONTEXT).digest()
            for i in range(0, len(level) - 1, 2)
        ]
        level = paired + level[len(paired) * 2 :]
    return level[0]
