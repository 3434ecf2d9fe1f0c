"""Replaying a log: checkpoint against the last audit, tiles against the checkpoint, every entry against its tile.

Nothing is believed but the signed checkpoint. The tree is walked from the top: a tile is compared with the hash that
stands in the verified tile above it before anything below it is read, so the first thing that is wrong is named as soon
as it is reached, and what is kept is one tile a level and one bundle, whatever the log's size.

The checks:

1. The checkpoint is a signed note of the log's key, and of that log; no cosignature by a known witness is false, and the
   quorum is met.
2. The tree that the last audit saw is a prefix of this one; a log never shrinks.
3. The last, partial tiles of all levels together give the checkpoint's root.
4. Every full tile is there, has 8,192 bytes, and hashes to what stands in the tile above it.
5. Every bundle is there, holds exactly as many entries as its place says, and each has the hash in its level 0 tile.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

from fieldprint.errors import FormatError, VerificationError
from fieldprint.tlog import merkle
from fieldprint.tlog.checkpoint import Checkpoint
from fieldprint.tlog.storage import Source
from fieldprint.tlog.tile import HEIGHT, WIDTH, bundle_path, decode_bundle, tile_path
from fieldprint.tlog.trust import Trust, verify_checkpoint, verify_cosignatures

SIZE = merkle.HASH_SIZE
MAX_TILE_SIZE = WIDTH * SIZE
COSIGN = (
    "The log's operator can have it cosigned: fieldprint log cosign LOG --policy FILE --quorum FILE --publish"
)
KEEP = "Keep the state file and this checkpoint: both are signed, and together they are evidence"


class AuditError(VerificationError):
    """A check of an audit failed at `place`: `checkpoint`, the path of a tile or bundle, or `entry 812`.

    evidence: where check 2 failed, the signed checkpoint that contradicts the last audit's.
    """

    def __init__(self, check: int, what: str, *, place: str, remedy: str = "", evidence: bytes = b"") -> None:
        super().__init__(check, what, remedy=remedy)
        self.place = place
        self.evidence = evidence


@dataclass(frozen=True, slots=True)
class Audited:
    """How far an audit came: entries [0, position) were compared with the tree of the signed checkpoint."""

    signed_checkpoint: bytes
    position: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """Verified entries from `start` on, with their leaf hashes."""

    start: int
    entries: Sequence[bytes]
    leaf_hashes: Sequence[bytes]


class LogAudit:
    """An audit in progress; making one performs checks 1 to 3, and `bundles` the others.

    Args:
        source: gives the log's files.
        trust: the log's keys, and the witnesses that must have cosigned its checkpoint.
        since: what the last audit came to, of a source that the auditor trusts; None audits from the first entry.
        workers: how many files are read ahead, each in a thread; 0 reads one after the other.

    Raises:
        AuditError: check 1, 2 or 3 failed. LogError: the log cannot be read at the moment.
    """

    def __init__(
        self, source: Source, trust: Trust, since: Audited | None = None, *, workers: int = 0
    ) -> None:
        self._source = source
        self._workers = workers
        signed = source.read("checkpoint")
        if signed is None:
            raise AuditError(1, "there is no checkpoint", place="checkpoint", remedy="Is this a log?")
        try:
            self.checkpoint = verify_checkpoint(signed, trust.log_keys)
            verify_cosignatures(signed, trust, remedy=COSIGN)
        except (FormatError, VerificationError) as error:
            raise AuditError(1, error.what, place="checkpoint", remedy=error.remedy) from error
        self.signed_checkpoint = signed
        before = None if since is None else verify_checkpoint(since.signed_checkpoint, trust.log_keys)
        self._check_not_smaller(before)
        self._edge = [self._partial_tile(level) for level in range(len(self._counts()))]
        self._check_edge()
        self._open: dict[int, tuple[int, bytes]] = {}  # the verified full tile in hand, of each level
        if before is not None:
            self._check_continues(before)
        self.position = 0 if since is None else since.position

    def _counts(self) -> list[int]:
        """How many hashes each level of tiles holds, from level 0 up."""
        size = self.checkpoint.tree_size
        return [size >> (HEIGHT * level) for level in range(-(-size.bit_length() // HEIGHT))]

    # Checks 1 to 3

    def _check_not_smaller(self, before: Checkpoint | None) -> None:
        if before is None:
            return
        if before.origin != self.checkpoint.origin:
            raise AuditError(
                2,
                f"the log is {self.checkpoint.origin}, the last audit was of {before.origin}",
                place="checkpoint",
                remedy="Give each log a state file of its own",
            )
        if self.checkpoint.tree_size < before.tree_size:
            raise AuditError(
                2,
                f"the log has {self.checkpoint.tree_size} entries, and had {before.tree_size} at the last audit",
                place="checkpoint",
                remedy=KEEP,
                evidence=self.signed_checkpoint,
            )

    def _check_continues(self, before: Checkpoint) -> None:
        root = merkle.tree_hash(before.tree_size, self._subtree_hash)
        if root != before.root_hash:
            raise AuditError(
                2,
                f"the first {before.tree_size} entries are not those of the last audit: a second history",
                place="checkpoint",
                remedy=KEEP,
                evidence=self.signed_checkpoint,
            )

    def _partial_tile(self, level: int) -> bytes:
        """The last tile of a level, from its own file or, if the log has grown since, from the full one's."""
        index, width = divmod(self._counts()[level], WIDTH)
        if not width:
            return b""
        name = tile_path(level, index, width)
        data = self._source.read(name)
        if data is None:
            name = tile_path(level, index)
            whole = self._source.read(name)
            if whole is None:
                raise AuditError(3, f"{tile_path(level, index, width)} is not there", place=name)
            data = whole[: width * SIZE] if len(whole) == MAX_TILE_SIZE else b""
        if len(data) != width * SIZE:
            raise AuditError(3, f"{name} does not have the size of its hashes", place=name)
        return data

    def _check_edge(self) -> None:
        edge = [[data[i : i + SIZE] for i in range(0, len(data), SIZE)] for data in self._edge]
        if merkle.edge_root(edge) != self.checkpoint.root_hash:
            place = tile_path(
                0, self.checkpoint.tree_size // WIDTH, self.checkpoint.tree_size % WIDTH or WIDTH
            )
            raise AuditError(
                3, "the partial tiles together do not give the checkpoint's root", place=f"{place} and above"
            )

    # Check 4

    def _tile(self, level: int, index: int) -> bytes:
        """The hashes of a tile, compared with the tile above it, and so with the checkpoint."""
        if index == self._counts()[level] // WIDTH:
            return self._edge[level]
        held = self._open.get(level)
        if held is not None and held[0] == index:
            return held[1]
        name = tile_path(level, index)
        data = self._checked_tile(name, self._source.read(name), self._hash(level + 1, index))
        self._open[level] = index, data
        return data

    def _checked_tile(self, name: str, data: bytes | None, expected: bytes) -> bytes:
        if data is None:
            raise AuditError(4, f"{name} is not there", place=name)
        if len(data) != MAX_TILE_SIZE:
            raise AuditError(4, f"{name} has {len(data)} bytes, not {MAX_TILE_SIZE}", place=name)
        if fold(data) != expected:
            raise AuditError(4, f"{name} does not have the hash that stands in the tile above it", place=name)
        return data

    def _hash(self, level: int, index: int) -> bytes:
        """Hash `index` of a level of tiles."""
        tile, offset = divmod(index, WIDTH)
        return self._tile(level, tile)[offset * SIZE : (offset + 1) * SIZE]

    def _subtree_hash(self, level: int, index: int) -> bytes:
        """The hash of a complete subtree of the tree, as `merkle.HashReader`."""
        tile_level, rest = divmod(level, HEIGHT)
        tile, offset = divmod(index << rest, WIDTH)
        return fold(self._tile(tile_level, tile)[offset * SIZE : (offset + (1 << rest)) * SIZE])

    # Check 5

    def bundles(self) -> Iterator[Bundle]:
        """The entries from `position` on, a bundle at a time, each verified; `position` moves with them.

        Raises:
            AuditError: check 4 or 5 failed; `place` says where. LogError: the log cannot be read at the moment.
        """
        size = self.checkpoint.tree_size
        first = self.position // WIDTH if self.position < size else -(-size // WIDTH)
        numbers = range(first, -(-size // WIDTH))
        names = itertools.chain.from_iterable(
            (bundle_path(n, min(WIDTH, size - n * WIDTH)), tile_path(0, n))
            if size - n * WIDTH >= WIDTH
            else (bundle_path(n, size - n * WIDTH),)
            for n in numbers
        )
        files = self._ahead(names)
        for number in numbers:
            start = number * WIDTH
            width = min(WIDTH, size - start)
            data = next(files)
            entries, hashes = self._bundle(number, width, data, next(files) if width == WIDTH else None)
            skip = max(0, self.position - start)
            yield Bundle(start + skip, entries[skip:], hashes[skip:])
            self.position = start + width

    def _ahead(self, names: Iterable[str]) -> Iterator[bytes | None]:
        """The files in order, read by threads before they are asked for."""
        if not self._workers:
            yield from (self._source.read(name) for name in names)
            return
        waiting: deque[Future[bytes | None]] = deque()
        rest = iter(names)
        with ThreadPoolExecutor(self._workers) as pool:
            try:
                for name in itertools.islice(rest, 2 * self._workers):
                    waiting.append(pool.submit(self._source.read, name))
                while waiting:
                    data = waiting.popleft().result()
                    for name in itertools.islice(rest, 1):
                        waiting.append(pool.submit(self._source.read, name))
                    yield data
            finally:
                for future in waiting:
                    future.cancel()

    def _bundle(
        self, number: int, width: int, data: bytes | None, tile: bytes | None
    ) -> tuple[list[bytes], list[bytes]]:
        """The bundle's entries and their leaf hashes, compared with the level 0 tile."""
        if width == WIDTH:
            expected = self._checked_tile(tile_path(0, number), tile, self._hash(1, number))
        else:
            expected = self._edge[0]
        name, count = bundle_path(number, width), width
        if data is None and width < WIDTH:  # the log may have grown since
            name, count = bundle_path(number), WIDTH
            data = self._source.read(name)
        if data is None:
            raise AuditError(
                5, f"{bundle_path(number, width)} is not there", place=bundle_path(number, width)
            )
        try:
            entries = decode_bundle(data, count)[:width]
        except FormatError as error:
            raise AuditError(5, f"{name}: {error.what}", place=name) from error
        hashes = [sha256(b"\x00" + entry).digest() for entry in entries]
        if b"".join(hashes) != expected:
            bad = next(i for i, h in enumerate(hashes) if h != expected[i * SIZE : (i + 1) * SIZE])
            index = number * WIDTH + bad
            raise AuditError(5, f"entry {index} is not the one that the tree holds", place=f"entry {index}")
        return entries, hashes


def fold(data: bytes) -> bytes:
    """The hash of the complete subtree over neighbouring hashes, which stand one behind the other in `data`."""
    while len(data) > SIZE:
        data = b"".join([sha256(b"\x01" + data[i : i + 64]).digest() for i in range(0, len(data), 64)])
    return data
