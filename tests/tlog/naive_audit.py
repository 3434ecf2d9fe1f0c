"""The slow twin of fieldprint.tlog.audit: every hash of the tree from the entries alone, then every file compared.

It keeps the whole log in memory and computes each subtree by the recursive definition of RFC 9162 section 2.1.1.
"""

from functools import cache
from hashlib import sha256

from fieldprint.note import VerifierKey, verify_note
from fieldprint.tlog import Checkpoint
from fieldprint.tlog.storage import Source


def digits(index: int) -> str:
    """1234067 to x001/x234/067."""
    groups = []
    while not groups or index:
        groups.append(f"{index % 1000:03d}")
        index //= 1000
    return "/".join("x" * (i > 0) + group for i, group in reversed(list(enumerate(groups))))


def naive_audit(source: Source, keys: list[VerifierKey]) -> list[bytes] | None:
    """The entries, or None if anything is not as it must be."""
    try:
        checkpoint = Checkpoint.from_text(verify_note(source.read("checkpoint") or b"", keys))
    except Exception:
        return None
    size = checkpoint.tree_size
    entries: list[bytes] = []
    for start in range(0, size, 256):
        width = min(256, size - start)
        path = f"tile/entries/{digits(start // 256)}"
        data = source.read(path if width == 256 else f"{path}.p/{width}")
        if data is None and width < 256:
            data = source.read(path)
            width = 256
        if data is None:
            return None
        found = []
        while data:
            length = data[0] * 256 + data[1] if len(data) > 1 else 10**9
            if len(data) < 2 + length:
                return None
            found.append(data[2 : 2 + length])
            data = data[2 + length :]
        if len(found) != width:
            return None
        entries += found[: size - start]

    @cache
    def tree(start: int, stop: int) -> bytes:
        if stop - start <= 1:
            return sha256(b"\x00" + entries[start] if stop > start else b"").digest()
        middle = 1
        while 2 * middle < stop - start:
            middle *= 2
        left, right = tree(start, start + middle), tree(start + middle, stop)
        return sha256(b"\x01" + left + right).digest()

    if tree(0, size) != checkpoint.root_hash:
        return None
    level, span = 0, 1
    while size // span:
        count = size // span
        for first in range(0, count, 256):
            width = min(256, count - first)
            expected = b"".join(tree(i * span, (i + 1) * span) for i in range(first, first + width))
            path = f"tile/{level}/{digits(first // 256)}"
            data = source.read(path if width == 256 else f"{path}.p/{width}")
            if data is None and width < 256:
                data = source.read(path)
                data = data[: len(expected)] if data is not None and len(data) == 8192 else None
            if data != expected:
                return None
        level, span = level + 1, span * 256
    return entries
