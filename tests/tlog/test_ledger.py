"""The laws of docs/ledger.md about people who hold checkpoints: split views, quorums, logs that were cut back."""

from collections.abc import Sequence
from itertools import combinations, permutations
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.errors import VerificationError
from fieldprint.note import NoteSigner
from fieldprint.tlog import Checkpoint, CompactRange, LogReader, LogWriter, leaf_hash, verify_consistency
from fieldprint.tlog.merkle import HashReader, prove_consistency
from tests.tlog.naive import Tree

SIGNER = NoteSigner("fieldprint.example/log", Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32))
KEYS = [SIGNER.verifier_key]


def tree(entries: Sequence[bytes]) -> Tree:
    return Tree([leaf_hash(entry) for entry in entries])


def reader(entries: Sequence[bytes]) -> HashReader:
    whole = tree(entries)
    return lambda level, index: whole.hash(index << level, (index + 1) << level)


def consistent(size1: int, size2: int, proof: Sequence[bytes], root1: bytes, root2: bytes) -> bool:
    try:
        verify_consistency(size1, size2, proof, root1, root2)
    except VerificationError:
        return False
    return True


@settings(deadline=None, max_examples=200)
@given(st.data(), st.integers(1, 20), st.integers(0, 20))
def test_no_proof_joins_two_histories(data: st.DataObject, size1: int, more: int) -> None:
    """Neither of the two logs can give a proof, and no mixture of both logs' hashes is one."""
    mine = [b"entry %d" % i for i in range(size1 + more)]
    other = list(mine)
    other[data.draw(st.integers(0, size1 - 1))] = b"another"
    root1, root2 = tree(mine[:size1]).root(), tree(other).root()
    honest, forged = (prove_consistency(size1, len(mine), reader(entries)) for entries in (mine, other))
    assert consistent(size1, len(mine), honest, root1, tree(mine).root())
    for choice in range(1 << min(len(honest), 6)):
        mixed = [(a, b)[choice >> i & 1] for i, (a, b) in enumerate(zip(honest, forged, strict=True))]
        assert not consistent(size1, len(mine), mixed, root1, root2)


def log(path: Path, entries: Sequence[bytes]) -> LogReader:
    """A log of the same key with a record of its own: what an operator who lies can make."""
    with LogWriter(path, SIGNER, create=True) as writer:
        writer.append(entries)
    return LogReader(path, KEYS)


def test_a_kept_checkpoint_detects_the_other_history(tmp_path: Path) -> None:
    common = [b"entry %d" % i for i in range(300)]
    mine = log(tmp_path / "mine", [*common, b"shown to me"])
    other = log(tmp_path / "other", [*common, b"shown to you", b"and more"])
    kept, shown = mine.checkpoint(), other.checkpoint()
    assert not consistent(
        kept.tree_size,
        shown.tree_size,
        other.consistency_proof(kept.tree_size),
        kept.root_hash,
        shown.root_hash,
    )
    assert other.root_hash(300) == mine.root_hash(300)  # up to the fork nobody can tell


def test_a_history_that_was_cut_back_contradicts_what_was_published(tmp_path: Path) -> None:
    """Undoing the last entry and going on leaves a checkpoint that no proof leads from."""
    published = log(tmp_path / "log", [b"one", b"two", b"mistake"]).checkpoint()
    cut = log(tmp_path / "cut", [b"one", b"two", b"instead", b"three"])
    now = cut.checkpoint()
    proof = cut.consistency_proof(published.tree_size)
    assert not consistent(published.tree_size, now.tree_size, proof, published.root_hash, now.root_hash)


class Witness:
    """A witness in its essence: the last checkpoint that it signed. A dishonest one signs all."""

    def __init__(self, *, honest: bool) -> None:
        self.honest = honest
        self.last = Checkpoint(SIGNER.name, 0, CompactRange().root())

    def signs(self, entries: Sequence[bytes]) -> bool:
        new = Checkpoint(SIGNER.name, len(entries), tree(entries).root())
        if self.honest:
            if new.tree_size < self.last.tree_size:
                return False
            proof = prove_consistency(self.last.tree_size, new.tree_size, reader(entries))
            if not consistent(self.last.tree_size, new.tree_size, proof, self.last.root_hash, new.root_hash):
                return False
            self.last = new
        return True


@pytest.mark.parametrize(
    ("count", "quorum", "liars", "safe"),
    [(1, 1, 0, True), (3, 2, 0, True), (3, 2, 1, False), (4, 3, 1, True), (5, 3, 0, True), (5, 4, 2, True)],
)
def test_two_quorums_share_an_honest_witness(count: int, quorum: int, liars: int, safe: bool) -> None:
    """Whichever witnesses the operator asks for which history, in whichever order; 2q - w > f is also needed."""
    assert safe == (2 * quorum - count > liars)
    histories = ([b"one", b"mine"], [b"one", b"yours", b"three"])
    both = False
    for first in combinations(range(count), quorum):
        for second in combinations(range(count), quorum):
            for order in permutations((0, 1)):
                witnesses = [Witness(honest=i >= liars) for i in range(count)]
                won = []
                for which in order:
                    asked = (first, second)[which]
                    won.append(sum(witnesses[i].signs(histories[which]) for i in asked) >= quorum)
                both = both or all(won)
    assert both == (not safe)
