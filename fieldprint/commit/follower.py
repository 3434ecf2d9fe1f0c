"""The log's answers, not believed: each must continue the tree that the one before led to, with our entries in it.

    tree so far        foreign entries     our entries            foreign entries
    [0 ............ v) [v ....... first)   [first ... first + n)  [first + n ... size)   =  size and root of the checkpoint
    verified before    hashes read         hashed here            hashes read

What is read need not be believed: with one wrong hash the root would be another. While nobody else writes, nothing is
read at all, and what is kept of the log is log2(v) hashes.
"""

from collections.abc import Sequence
from pathlib import Path

from fieldprint.errors import FormatError, LogError, VerificationError
from fieldprint.note import VerifierKey
from fieldprint.tlog import (
    Appended,
    Checkpoint,
    CompactRange,
    LogReader,
    Source,
    leaf_hash,
    verify_checkpoint,
)

EVIDENCE = "Keep the two signed checkpoints that this error holds, and ask the log's operator"


class InconsistentLogError(LogError):
    """The log signed something that does not go with what it showed before, or with what it says that it did.

    verified: the signed checkpoint that was believed last.
    presented: the signed checkpoint that does not go with it.
    """

    def __init__(self, what: str, *, verified: bytes, presented: bytes) -> None:
        super().__init__(what, remedy=EVIDENCE)
        self.verified = verified
        self.presented = presented


class LogFollower:
    """What a client of a log knows of its tree, moved on by each answer that is consistent with it.

        follower = LogFollower(log.source, VerifierKey.parse(log.verifier_key))
        checkpoint = follower.accept(log.append(entries), entries)

    One thread uses it, and hands over the answers in the order of the appends. It knows nothing older than itself: who
    keeps it from one generation to the next notices also what a log does in between.
    """

    def __init__(self, source: Path | str | Source, key: VerifierKey) -> None:
        """Begin with the checkpoint that lies in the log now; reads it and the last tile of each level.

        Args:
            source: where the log can be read.
            key: the log's; its name is the log's origin.

        Raises:
            LogError: there is no checkpoint, the key did not sign it, or the tiles do not lead to its root.
        """
        self._source = source
        self._key = key
        try:
            reader = LogReader(source, [key])
            self._tree = CompactRange.read(reader.checkpoint().tree_size, reader.subtree_hash)
        except (FormatError, VerificationError) as error:
            raise LogError(f"the log cannot be followed: {error.what}", remedy=error.remedy) from error
        self._checkpoint = reader.checkpoint()
        self._signed = reader.signed_checkpoint()

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that was believed last."""
        return self._checkpoint

    @property
    def signed_checkpoint(self) -> bytes:
        """Its note."""
        return self._signed

    def accept(self, appended: Appended, entries: Sequence[bytes]) -> Checkpoint:
        """The checkpoint of the log's answer, if the log did what it says; only then the follower moves on.

        1. The checkpoint is well formed, of the log's origin and signed by its key.
        2. Its tree is not smaller than the one that was believed last, and of the same size only with the same root.
        3. Our entries are behind everything that was believed before, and within the tree.
        4. The tree that was believed last, continued by the entries that the log holds and, at the place that the answer
           names, by ours, has the checkpoint's root. So nothing that was there has changed, and ours are in.

        The log may have grown beyond our entries by then, and its checkpoint cover more.

        Args:
            appended: the answer.
            entries: what was appended; none asks only whether the checkpoint continues the tree.

        Raises:
            InconsistentLogError: check 2, 3 or 4 failed: an older checkpoint, a second history, or entries that are not
                where the log says.
            LogError: check 1 failed, or the entries of others cannot be read.
        """
        try:
            checkpoint = verify_checkpoint(appended.checkpoint, [self._key])
        except (FormatError, VerificationError) as error:
            what = f"the log's answer has no checkpoint of {self._key.name}: {error.what}"
            raise LogError(what, remedy="Whoever answered does not have the log's key") from error
        self._check_sizes(appended, len(entries), checkpoint)
        tree = self._continued(appended, entries, checkpoint)
        if tree.root() != checkpoint.root_hash:
            raise self._refusal(self._difference(appended, entries), appended)
        self._tree, self._checkpoint, self._signed = tree, checkpoint, appended.checkpoint
        return checkpoint

    def _check_sizes(self, appended: Appended, count: int, checkpoint: Checkpoint) -> None:
        """Checks 2 and 3."""
        size, before = checkpoint.tree_size, self._checkpoint
        first, stop = appended.first_index, appended.first_index + count
        if size < before.tree_size:
            raise self._refusal(
                f"the log answered with an older checkpoint: it has {size} entries, and had {before.tree_size}",
                appended,
            )
        if size == before.tree_size and checkpoint.root_hash != before.root_hash:
            raise self._refusal(f"the log has a second history: another tree of {size} entries", appended)
        if first < before.tree_size:
            raise self._refusal(
                f"the log answered that our entries begin at {first}, and it had {before.tree_size} entries before",
                appended,
            )
        if not stop <= appended.tree_size <= size:
            raise self._refusal(
                f"our entries are not in the log's checkpoint: they are said to be {first} to {stop - 1} of "
                f"{appended.tree_size}, and it covers {size}",
                appended,
            )

    def _continued(
        self, appended: Appended, entries: Sequence[bytes], checkpoint: Checkpoint
    ) -> CompactRange:
        """The tree of check 4."""
        tree = self._tree.copy()
        first, size = appended.first_index, checkpoint.tree_size
        alone = first == tree.tree_size and first + len(entries) == size
        try:
            reader = None if alone else self._reader(appended)
            if reader is not None:
                tree.extend(first, reader.subtree_hash)
            for entry in entries:
                tree.append(leaf_hash(entry))
            if reader is not None:
                tree.extend(size, reader.subtree_hash)
        except FormatError as error:
            raise self._refusal(_no_tree(error), appended) from error
        return tree

    def _reader(self, appended: Appended) -> LogReader:
        return LogReader(self._source, [self._key], signed=appended.checkpoint)

    def _difference(self, appended: Appended, entries: Sequence[bytes]) -> str:
        """Why the root is another one, in words; it was found to be another one already."""
        try:
            reader = self._reader(appended)
            if reader.root_hash(self._tree.tree_size) != self._tree.root():
                return f"the log has a second history: the first {self._tree.tree_size} entries are others than before"
            for index, entry in enumerate(entries, appended.first_index):
                if reader.subtree_hash(0, index) != leaf_hash(entry):
                    return f"our entries are not in the log where it says: entry {index} is another one"
        except (FormatError, LogError) as error:
            return _no_tree(error)
        return "the log showed other hashes when they were read again"

    def _refusal(self, what: str, appended: Appended) -> InconsistentLogError:
        return InconsistentLogError(what, verified=self._signed, presented=appended.checkpoint)


def _no_tree(error: FormatError | LogError) -> str:
    return f"the log signed a tree that it does not hold, a second history or one without our entries: {error.what}"
