"""BLAKE3 in plain Python, from section 2 of its specification: the twin that tests compare the fast paths with."""

from collections.abc import Sequence

CHUNK_SIZE, BLOCK_SIZE, MASK = 1024, 64, 0xFFFFFFFF
CHUNK_START, CHUNK_END, PARENT, ROOT, KEYED_HASH, DERIVE_CONTEXT, DERIVE_MATERIAL = (1 << i for i in range(7))
IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)


def _mix(s: list[int], a: int, b: int, c: int, d: int, x: int, y: int) -> None:
    for word, first, second in ((x, 16, 12), (y, 8, 7)):
        s[a] = (s[a] + s[b] + word) & MASK
        s[d] = _rotate(s[d] ^ s[a], first)
        s[c] = (s[c] + s[d]) & MASK
        s[b] = _rotate(s[b] ^ s[c], second)


def _rotate(x: int, by: int) -> int:
    return (x >> by | x << (32 - by)) & MASK


def _compress(cv: Sequence[int], block: bytes, counter: int, flags: int) -> list[int]:
    """The first eight words of the compression function's output."""
    m = [int.from_bytes(block[i : i + 4].ljust(4, b"\0"), "little") for i in range(0, BLOCK_SIZE, 4)]
    s = [*cv, *IV[:4], counter & MASK, counter >> 32, len(block), flags]
    for _ in range(7):
        for i in range(4):
            _mix(s, i, 4 + i, 8 + i, 12 + i, m[2 * i], m[2 * i + 1])
        for i in range(4):
            _mix(s, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, m[8 + 2 * i], m[9 + 2 * i])
        m = [m[p] for p in PERMUTATION]
    return [s[i] ^ s[i + 8] for i in range(8)]


def _hash(data: bytes, key: Sequence[int], flags: int) -> bytes:
    """The root output of the tree over the chunks of `data`."""

    def subtree(start: int, stop: int, root: int) -> list[int]:
        if stop - start <= CHUNK_SIZE:
            cv: Sequence[int] = key
            blocks = [data[i : min(i + BLOCK_SIZE, stop)] for i in range(start, stop, BLOCK_SIZE)] or [b""]
            for i, block in enumerate(blocks):
                last = i == len(blocks) - 1
                edge = (CHUNK_START if i == 0 else 0) | (CHUNK_END | root if last else 0)
                cv = _compress(cv, block, start // CHUNK_SIZE, flags | edge)
            return list(cv)
        left = CHUNK_SIZE << ((stop - start - 1) // CHUNK_SIZE).bit_length() - 1
        words = subtree(start, start + left, 0) + subtree(start + left, stop, 0)
        block = b"".join(word.to_bytes(4, "little") for word in words)
        return _compress(key, block, 0, flags | PARENT | root)

    return b"".join(word.to_bytes(4, "little") for word in subtree(0, len(data), ROOT))


def _words(key: bytes) -> list[int]:
    return [int.from_bytes(key[i : i + 4], "little") for i in range(0, 32, 4)]


def naive_digest(data: bytes) -> bytes:
    """BLAKE3 of `data`."""
    return _hash(data, IV, 0)


def naive_keyed(data: bytes, key: bytes) -> bytes:
    """BLAKE3 of `data` under a key of 32 bytes."""
    return _hash(data, _words(key), KEYED_HASH)


def naive_derive(data: bytes, context: str) -> bytes:
    """BLAKE3 of `data` in the derive-key mode."""
    return _hash(data, context_key(context), DERIVE_MATERIAL)


def context_key(context: str) -> list[int]:
    """The key words of the derive-key mode under `context` (section 2.3)."""
    return _words(_hash(context.encode(), IV, DERIVE_CONTEXT))


def naive_root(digests: Sequence[bytes]) -> bytes:
    """`tree_root` from the recursive definition of RFC 9162 section 2.1.1."""
    if len(digests) == 1:
        return naive_derive(digests[0], "fieldprint v1 page leaf")
    left = 1 << (len(digests) - 1).bit_length() - 1
    return naive_derive(naive_root(digests[:left]) + naive_root(digests[left:]), "fieldprint v1 page node")
