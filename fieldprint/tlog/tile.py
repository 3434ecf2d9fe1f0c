"""Tiles and entry bundles (c2sp.org/tlog-tiles): their paths and their bytes.

A hash tile at (level, index) of width 256 holds the hashes of the subtrees (8 * level, 256 * index + 0..255); an entry
bundle holds 256 entries, each behind its length as a big-endian uint16. A partial one has `.p/WIDTH` behind its path.

    tile/0/x001/x234/067            tile/0/000.p/5            tile/entries/000.p/5
"""

from fieldprint.errors import FormatError
from fieldprint.note import MAX_NOTE_SIZE
from fieldprint.tlog.merkle import HASH_SIZE

WIDTH = 256
HEIGHT = 8
MAX_ENTRY_SIZE = 65535
MAX_BUNDLE_SIZE = WIDTH * (2 + MAX_ENTRY_SIZE)


def max_size(name: str) -> int:
    """How many bytes a log's file of this name may have: a checkpoint's note, or the largest of tiles and bundles."""
    return MAX_NOTE_SIZE if name == "checkpoint" else MAX_BUNDLE_SIZE


def _digits(index: int) -> str:
    """x001/x234/067 for 1234067."""
    text = f"{index % 1000:03d}"
    index //= 1000
    while index:
        text = f"x{index % 1000:03d}/{text}"
        index //= 1000
    return text


def tile_path(level: int, index: int, width: int = WIDTH) -> str:
    """The path of a hash tile below the log's folder."""
    return f"tile/{level}/{_digits(index)}" + ("" if width == WIDTH else f".p/{width}")


def bundle_path(index: int, width: int = WIDTH) -> str:
    """The path of an entry bundle below the log's folder."""
    return f"tile/entries/{_digits(index)}" + ("" if width == WIDTH else f".p/{width}")


def encode_bundle(entries: list[bytes]) -> bytes:
    """The bytes of an entry bundle.

    Raises:
        ValueError: an entry has more than 65,535 bytes.
    """
    if any(len(entry) > MAX_ENTRY_SIZE for entry in entries):
        raise ValueError(f"an entry has more than {MAX_ENTRY_SIZE} bytes")
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def decode_bundle(data: bytes, width: int) -> list[bytes]:
    """The `width` entries of a bundle.

    Raises:
        FormatError: the bundle is truncated, or holds more or fewer entries.
    """
    entries, position = [], 0
    while position < len(data):
        stop = position + 2 + int.from_bytes(data[position : position + 2], "big")
        if position + 2 > len(data) or stop > len(data):
            raise FormatError("an entry bundle is truncated")
        entries.append(data[position + 2 : stop])
        position = stop
    if len(entries) != width:
        raise FormatError(f"an entry bundle holds {len(entries)} entries, not {width}")
    return entries


def decode_tile(data: bytes, width: int) -> list[bytes]:
    """The `width` hashes of a tile.

    Raises:
        FormatError: the tile is truncated, or holds more bytes than that.
    """
    if len(data) != width * HASH_SIZE:
        what = "is truncated" if len(data) < width * HASH_SIZE else "has bytes left over"
        raise FormatError(f"a tile of {width} hashes {what}: {len(data)} bytes")
    return [data[i : i + HASH_SIZE] for i in range(0, len(data), HASH_SIZE)]
