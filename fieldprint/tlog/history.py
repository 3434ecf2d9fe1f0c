"""The one history of a log, extended step by step: what must be on the disk before what.

    entries  ->  bundles and tiles, durable  ->  checkpoint, signed  ->  recorded  ->  cosigned  ->  published
                 integrated                                                                         published, witnessed

1. Bundles and tiles are durable before a checkpoint over them is signed.
2. A signed checkpoint is recorded (`LastSigned`) before it leaves: to a witness or into the log's place.
3. The record changes by compare-and-swap from the checkpoint that this one extends.

So of all that was ever signed and shown the record holds the last, every checkpoint extends the one before, and what a
crash leaves behind the record was shown to nobody. This class has no thread and no clock; `writer.py` has both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from fieldprint.errors import FieldprintError, FormatError, LogError, LogLockedError
from fieldprint.note import NoteSigner, VerifierKey, parse_note, sign_note, verify_signatures
from fieldprint.tlog.checkpoint import Checkpoint
from fieldprint.tlog.last_signed import LastSigned
from fieldprint.tlog.merkle import CompactRange, leaf_hash
from fieldprint.tlog.reader import LogReader
from fieldprint.tlog.storage import Storage
from fieldprint.tlog.tile import HEIGHT, WIDTH, bundle_path, encode_bundle, tile_path


class State(IntEnum):
    """How far an entry has come."""

    WAITING = 0  # handed over; nothing is promised
    SEQUENCED = 1  # it has an index, if nothing fails
    INTEGRATED = 2  # it and its hashes are durable
    PUBLISHED = 3  # a signed checkpoint that covers it is recorded and can be read: acknowledged
    WITNESSED = 4  # and that checkpoint has the cosignatures that the policy asks for


@dataclass(frozen=True, slots=True)
class Cosigned:
    """What witnesses answered: signature lines for the note, whether they are enough for the policy, and by which keys."""

    lines: bytes
    quorum: bool
    keys: tuple[VerifierKey, ...]


class Cosign(Protocol):
    """Asks witnesses; called with a checkpoint that is recorded and not yet published."""

    def __call__(self, signed: bytes, prove: Callable[[int], list[bytes]]) -> Cosigned:
        """The cosignatures that could be had.

        Args:
            signed: the note, with the log's signature.
            prove: gives the consistency proof from a smaller tree size to this checkpoint's.
        """


@dataclass(frozen=True, slots=True)
class _Edge:
    """What of the tree an append needs: its compact range, and the last, partial bundle and tiles."""

    tree: CompactRange
    tail: list[bytes]
    levels: list[list[bytes]]

    def copy(self) -> "_Edge":
        return _Edge(self.tree.copy(), list(self.tail), [list(level) for level in self.levels])

    def extend(self, entries: Sequence[bytes]) -> dict[str, bytes]:
        """Put entries behind the others; returns the bundles and tiles that this completes or begins."""
        objects: dict[str, bytes] = {}
        tree, tail, levels, changed = self.tree, self.tail, self.levels, 0
        for entry in entries:
            tail.append(entry)
            made = tree.append(leaf_hash(entry))
            changed = max(changed, -(-len(made) // HEIGHT))
            if len(tail) == WIDTH:
                objects[bundle_path(tree.tree_size // WIDTH - 1)] = encode_bundle(tail)
                tail.clear()
            for level, value in enumerate(made[::HEIGHT]):
                if level == len(levels):
                    levels.append([])
                levels[level].append(value)
                if len(levels[level]) == WIDTH:
                    index = (tree.tree_size >> (HEIGHT * level)) // WIDTH - 1
                    objects[tile_path(level, index)] = b"".join(levels[level])
                    levels[level].clear()
        if tail:
            objects[bundle_path(tree.tree_size // WIDTH, len(tail))] = encode_bundle(tail)
        for level, hashes in enumerate(levels[:changed]):  # those above lie there already
            if hashes:
                index = (tree.tree_size >> (HEIGHT * level)) // WIDTH
                objects[tile_path(level, index, len(hashes))] = b"".join(hashes)
        return objects


class History:
    """The history of the log that `storage` holds and `signer` signs, taken up where it stopped.

    Whoever makes one holds the log's lock.
    """

    def __init__(
        self,
        storage: Storage,
        signer: NoteSigner,
        record: LastSigned,
        *,
        create: bool = False,
        adopt: bool = False,
        cosign: Cosign | None = None,
    ) -> None:
        """Take up the history.

        Args:
            create: begin one, if there is none.
            adopt: believe the checkpoint that lies in the log, if none of this log is recorded.

        Raises:
            LogError: there is no log; it is not what was signed last; or nothing says what was.
            VerificationError, FormatError: the checkpoint is not this key's, or malformed.
        """
        self._storage = storage
        self._signer = signer
        self._record = record
        self._log = str(signer.verifier_key)
        self._cosign = cosign
        self._recorded: bytes | None = None  # the last signed checkpoint
        self._lying: bytes | None = None  # what lies in the log's place
        self._settled = True
        self._take_up(create=create, adopt=adopt)

    @property
    def published(self) -> tuple[int, bytes]:
        """Entries that the published checkpoint covers, and that checkpoint, a signed note."""
        return self._published

    @property
    def tree_size(self) -> int:
        """Entries that the published checkpoint covers."""
        return self._published[0]

    def settle(self) -> None:
        """After a failed `extend`: find out what is recorded, and go on from there. Else nothing.

        Raises:
            LogError, CapacityError: that failed too; it can be tried again.
            VerificationError, FormatError: the checkpoint that lies there is not this key's, or malformed.
        """
        if not self._settled:
            self._take_up(create=False, adopt=False)

    def extend(self, entries: Sequence[bytes], reached: Callable[[State], None]) -> None:
        """Put entries behind the others; `reached` is told each state, the last one is at least PUBLISHED.

        Raises:
            LogLockedError: another writer has extended it; nothing was written.
            CapacityError: no room. LogError: another failure. The history has not changed, or has grown by these
                entries without being published; `settle` finds out, and raises what it does.
        """
        self.settle()
        if self._record.read(self._log) != self._recorded:
            raise LogLockedError(
                f"another writer has signed a checkpoint of {self._storage.place}",
                remedy="Let it end, and open the log again",
            )
        edge = self._edge.copy()
        objects = edge.extend(entries)
        self._settled = False
        self._storage.write(objects)
        reached(State.INTEGRATED)
        self._sign(edge)
        reached(State.WITNESSED if self._publish() else State.PUBLISHED)
        self._settled = True

    def _sign(self, edge: _Edge) -> None:
        """Sign the checkpoint over `edge` and record it."""
        checkpoint = Checkpoint(self._signer.name, edge.tree.tree_size, edge.tree.root())
        signed = sign_note(checkpoint.to_text(), [self._signer])
        self._record.swap(self._log, self._recorded, signed)
        self._recorded, self._edge = signed, edge

    def _publish(self) -> bool:
        """Have the recorded checkpoint cosigned, and publish it; returns whether the witnesses were enough."""
        assert self._recorded is not None  # noqa: S101  what is published was recorded
        note, quorum = self._recorded, False
        if self._cosign is not None:
            note, quorum = self._cosigned(self._cosign, note)
        self._storage.publish("checkpoint", note, self._lying)
        self._lying = note
        self._published = self._edge.tree.tree_size, note
        return quorum

    def _cosigned(self, cosign: Cosign, signed: bytes) -> tuple[bytes, bool]:
        """The note with the cosignatures that could be had; a witness that fails does not stop the log.

        Of an answer in which one line is not a valid signature over this checkpoint nothing is published.
        """

        def prove(size: int) -> list[bytes]:
            return self._reader(signed).consistency_proof(size)

        try:
            answer = cosign(signed, prove)
            note = signed + answer.lines
            parsed = parse_note(note)
            verified = verify_signatures(parsed, [self._signer.verifier_key, *answer.keys])
        except FieldprintError:
            return signed, False
        if parsed.text != parse_note(signed).text or len(verified.signatures) != len(parsed.signatures):
            return signed, False
        return note, answer.quorum

    def _reader(self, signed: bytes | None) -> LogReader:
        return LogReader(self._storage, [self._signer.verifier_key], signed=signed)

    def _take_up(self, *, create: bool, adopt: bool) -> None:
        """Compare what lies in the log with what was signed last, and make the published checkpoint that one."""
        lying, recorded = self._storage.read("checkpoint"), self._record.read(self._log)
        published = None if lying is None else self._reader(lying).checkpoint()
        self._lying = lying
        if recorded is None:
            if published is None:
                self._begin(create=create)
                return
            if not adopt:
                raise LogError(
                    f"{self._record.path} does not know what was signed last for {self._storage.place}",
                    remedy="Bring that file back, or adopt the log if this is its newest state",
                )
        reader = self._reader(recorded)
        checkpoint = reader.checkpoint()
        if published is not None and published.tree_size > checkpoint.tree_size:
            raise LogError(
                f"{self._record.path} is older than the log {self._storage.place}: it knows "
                f"{checkpoint.tree_size} entries, the log has {published.tree_size}",
                remedy="Restore that file, or adopt the log with a new one if this is its newest state",
            )
        try:
            edge = _Edge(
                CompactRange.read(checkpoint.tree_size, reader.subtree_hash),
                list(reader.entries(checkpoint.tree_size // WIDTH * WIDTH)),
                [list(hashes) for hashes in reader.edge()],
            )
            if published is not None and reader.root_hash(published.tree_size) != published.root_hash:
                raise FormatError("the checkpoint that lies there is not of this history")
        except (FormatError, LogError) as error:
            raise LogError(
                f"{self._storage.place} does not hold the {checkpoint.tree_size} entries that were signed: {error.what}",
                remedy="Restore the newest copy of the log; to go on from an older one would be a second history",
            ) from error
        if recorded is None:
            recorded = reader.signed_checkpoint()
            self._record.swap(self._log, None, recorded)
        self._recorded, self._edge = recorded, edge
        if lying is None or published != checkpoint:
            self._publish()
        else:
            self._published = checkpoint.tree_size, lying
        self._settled = True

    def _begin(self, *, create: bool) -> None:
        """Publish an empty tree, if there is nothing yet."""
        if not create:
            raise LogError(
                f"{self._storage.place} holds no log", remedy="Create it first: fieldprint log new"
            )
        if any(True for _ in self._storage.names("tile/")):
            raise LogError(
                f"{self._storage.place} holds tiles and no checkpoint; a new log here would be a second history",
                remedy="Restore the checkpoint, or choose an empty place",
            )
        self._recorded = None
        self._sign(_Edge(CompactRange(), [], []))
        self._publish()
        self._settled = True
