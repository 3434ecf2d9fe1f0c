"""Reading a log: checkpoint, entries and proofs, each checked against what it must agree with.

Nothing of what is stored is believed but the signed checkpoint: the partial tiles must give its root, a full tile must
have the hash that stands in the tile above it, and an entry the hash that stands in its tile.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from fieldprint.errors import FormatError, LogError
from fieldprint.note import VerifierKey
from fieldprint.tlog import merkle
from fieldprint.tlog.checkpoint import Checkpoint
from fieldprint.tlog.storage import Source, open_source
from fieldprint.tlog.tile import HEIGHT, WIDTH, bundle_path, decode_bundle, decode_tile, tile_path
from fieldprint.tlog.trust import verify_checkpoint

CACHED_TILES = 4096  # some 80 MB; the oldest goes


class LogReader:
    """A log in a folder, at a URL or in another source, read with the keys that its checkpoint must be signed by.

    Entries and proofs are those of the checkpoint that was there when the reader was made, or at `refresh`; or those of
    `signed`, a checkpoint of this log that somebody else has shown.
    """

    def __init__(
        self, place: Path | str | Source, keys: Sequence[VerifierKey], *, signed: bytes | None = None
    ) -> None:
        self.source: Source = open_source(place) if isinstance(place, Path | str) else place
        self.keys = tuple(keys)
        self._take(self._read("checkpoint") if signed is None else signed)

    def refresh(self) -> None:
        """Read the checkpoint again.

        Raises:
            LogError: there is none.
            FormatError, VerificationError: it is malformed, or no key of its log signed it.
        """
        self._take(self._read("checkpoint"))

    def _take(self, signed: bytes) -> None:
        self._signed = signed
        self._checkpoint = verify_checkpoint(signed, self.keys)
        self._edge: list[list[bytes]] | None = None  # the partial tiles, once they gave the root
        self._tiles: dict[tuple[int, int], list[bytes]] = {}  # full tiles, once their hash was compared

    def checkpoint(self) -> Checkpoint:
        """The checkpoint, signature verified."""
        return self._checkpoint

    def signed_checkpoint(self) -> bytes:
        """The checkpoint's note."""
        return self._signed

    def entries(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The entries [start, stop), each checked against its leaf hash in the tree of the checkpoint."""
        end = self._checkpoint.tree_size if stop is None else stop
        if not 0 <= start <= end <= self._checkpoint.tree_size:
            raise ValueError(f"entries {start} to {end} are not in a log of {self._checkpoint.tree_size}")
        for bundle in range(start // WIDTH, -(-end // WIDTH)):
            width = min(WIDTH, self._checkpoint.tree_size - bundle * WIDTH)
            entries = self._bundle(bundle, width)
            for offset in range(max(0, start - bundle * WIDTH), min(width, end - bundle * WIDTH)):
                index = bundle * WIDTH + offset
                if merkle.leaf_hash(entries[offset]) != self.subtree_hash(0, index):
                    raise FormatError(f"entry {index} is not the one that the tree holds")
                yield entries[offset]

    def entry(self, index: int) -> bytes:
        """Entry `index`."""
        return next(self.entries(index, index + 1))

    def inclusion_proof(self, index: int, tree_size: int | None = None) -> list[bytes]:
        """The audit path of entry `index` in the tree of `tree_size` entries, by default the checkpoint's."""
        return merkle.prove_inclusion(index, self._size(tree_size), self.subtree_hash)

    def consistency_proof(self, size1: int, size2: int | None = None) -> list[bytes]:
        """The proof that the tree of `size1` entries is a prefix of the one of `size2`, by default the checkpoint's."""
        return merkle.prove_consistency(size1, self._size(size2), self.subtree_hash)

    def subtree_proof(self, start: int, stop: int, tree_size: int | None = None) -> list[bytes]:
        """The proof that the subtree over [start, stop) is part of the tree, by default the checkpoint's."""
        return merkle.prove_subtree(start, stop, self._size(tree_size), self.subtree_hash)

    def root_hash(self, tree_size: int | None = None) -> bytes:
        """The root computed from the tiles."""
        return merkle.tree_hash(self._size(tree_size), self.subtree_hash)

    def _size(self, tree_size: int | None) -> int:
        size = self._checkpoint.tree_size if tree_size is None else tree_size
        if not 0 <= size <= self._checkpoint.tree_size:
            raise ValueError(f"the log has {self._checkpoint.tree_size} entries, not {size}")
        return size

    def _read(self, name: str) -> bytes:
        """The object's bytes.

        Raises:
            LogError: there is none, or it cannot be read.
        """
        data = self.source.read(name)
        if data is None:
            raise self._missing(name)
        return data

    def _missing(self, name: str) -> LogError:
        remedy = "Is this the place of a log?"
        if name != "checkpoint":
            remedy = "The checkpoint covers it: the log is damaged, or a mirror incomplete"
        return LogError(f"{self.source.place}/{name} cannot be read: it is not there", remedy=remedy)

    def _whole(self, name: str, partial: str) -> bytes:
        """The full tile or bundle; if there is none either, it is the partial one that is missing."""
        data = self.source.read(name)
        if data is None:
            raise self._missing(partial)
        return data

    def _bundle(self, index: int, width: int) -> list[bytes]:
        """The bundle at its width, or the first `width` entries of the whole one if the log has grown since."""
        if width < WIDTH and (partial := self.source.read(bundle_path(index, width))) is not None:
            return decode_bundle(partial, width)
        return decode_bundle(self._whole(bundle_path(index), bundle_path(index, width)), WIDTH)[:width]

    def _read_tile(self, level: int, index: int, width: int) -> list[bytes]:
        """The tile at its width, or the first `width` hashes of the whole one if the log has grown since."""
        if width < WIDTH and (partial := self.source.read(tile_path(level, index, width))) is not None:
            return decode_tile(partial, width)
        whole = self._whole(tile_path(level, index), tile_path(level, index, width))
        return decode_tile(whole, WIDTH)[:width]

    def edge(self) -> list[list[bytes]]:
        """The hashes of the last, partial tile of each level, from level 0 up, which together give the root.

        Raises:
            FormatError: they do not give the checkpoint's root.
        """
        if self._edge is None:
            edge: list[list[bytes]] = []
            count = self._checkpoint.tree_size
            while count:
                index, width = divmod(count, WIDTH)
                edge.append(self._read_tile(len(edge), index, width) if width else [])
                count //= WIDTH
            if merkle.edge_root(edge) != self._checkpoint.root_hash:
                raise FormatError("the tiles do not lead to the checkpoint's root")
            self._edge = edge
        return self._edge

    def _tile(self, level: int, index: int) -> list[bytes]:
        """The hashes of a tile, compared with the tile above it, and so with the checkpoint."""
        edge = self.edge()
        if index == (self._checkpoint.tree_size >> (HEIGHT * level)) // WIDTH:
            return edge[level]
        if (level, index) not in self._tiles:
            hashes = self._read_tile(level, index, WIDTH)
            if merkle.fold(hashes) != self.subtree_hash(HEIGHT * (level + 1), index):
                raise FormatError(f"{tile_path(level, index)} does not lead to the checkpoint's root")
            if len(self._tiles) >= CACHED_TILES:
                del self._tiles[next(iter(self._tiles))]
            self._tiles[level, index] = hashes
            return hashes
        return self._tiles[level, index]

    def subtree_hash(self, level: int, index: int) -> bytes:
        """The hash of a complete subtree, from the tile of the level below or at it.

        Raises:
            FormatError: the tiles on the way to the root do not lead there.
        """
        tile_level, rest = divmod(level, HEIGHT)
        first, stop = index << rest, (index + 1) << rest
        tile, offset = divmod(first, WIDTH)
        return merkle.fold(self._tile(tile_level, tile)[offset : offset + stop - first])
