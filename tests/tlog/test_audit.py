"""The audit of the tree: against its slow twin, after every change of a byte, over growth, forks and interruptions."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldprint.errors import FieldprintError, LogError
from fieldprint.note import NoteSigner, sign_note
from fieldprint.tlog import Checkpoint, LogReader, LogWriter, leaf_hash, merkle
from fieldprint.tlog.audit import Audited, AuditError, LogAudit, fold
from fieldprint.tlog.tile import bundle_path, encode_bundle, tile_path
from fieldprint.tlog.trust import KnownLog, TrustPolicy
from tests.tlog.naive_audit import naive_audit

SIGNER = NoteSigner("audit.example/log", Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32))
OTHER = NoteSigner("audit.example/log", Ed25519PrivateKey.from_private_bytes(bytes([8]) * 32))
KEYS = [SIGNER.verifier_key]
TRUST = TrustPolicy((KnownLog(SIGNER.verifier_key),))


class Memory:
    """A log's files in a dictionary."""

    place = "memory"

    def __init__(self, folder: Path) -> None:
        self.files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.name != ".lock"
        }
        self.asked: list[str] = []

    def read(self, name: str) -> bytes | None:
        self.asked.append(name)
        return self.files.get(name)


def entry(index: int) -> bytes:
    return b"entry %d" % index


def filled(path: Path, *sizes: int, fork: int | None = None) -> Memory:
    """A log that was appended to up to each of `sizes`; entry `fork` is another one than in other logs."""
    with LogWriter(path, SIGNER, create=True) as log:
        for size in sizes:
            entries = [b"forged" if i == fork else entry(i) for i in range(log.tree_size, size)]
            log.append(entries)
    return Memory(path)


def audited(source: Memory, since: Audited | None = None, workers: int = 0) -> list[bytes]:
    audit = LogAudit(source, TRUST, since, workers=workers)
    entries = []
    for bundle in audit.bundles():
        assert [leaf_hash(e) for e in bundle.entries] == list(bundle.leaf_hashes)
        entries += bundle.entries
    assert audit.position == audit.checkpoint.tree_size
    return entries


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Memory]:
    folder = tmp_path_factory.mktemp("logs")
    sizes = (0, 1, 2, 255, 256, 257, 600, 65535, 65536, 65836)
    return {size: filled(folder / str(size), size) for size in sizes}


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 600, 65535, 65536, 65836])
@pytest.mark.parametrize("workers", [0, 3])
def test_every_entry_is_read_in_order(logs: dict[int, Memory], size: int, workers: int) -> None:
    found = audited(logs[size], workers=workers)
    assert found == [entry(i) for i in range(size)]
    if size < 65536:
        assert naive_audit(logs[size], KEYS) == found


def test_every_file_of_the_tree_is_read_once(logs: dict[int, Memory]) -> None:
    source = logs[65836]
    source.asked.clear()
    audited(source)
    assert sorted(source.asked) == sorted(set(source.asked)) == sorted(source.files)


@given(st.binary(min_size=32, max_size=32 * 8))
def test_fold_is_the_hash_of_the_complete_subtree(data: bytes) -> None:
    count = 1 << ((len(data) // 32).bit_length() - 1)
    hashes = [data[i * 32 : (i + 1) * 32] for i in range(count)]
    assert fold(b"".join(hashes)) == merkle.fold(hashes)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_flipped_byte_of_a_checkpoint_tile_or_bundle_is_refused(
    logs: dict[int, Memory], data: st.DataObject
) -> None:
    """And named: the file that was changed, or the entry in it."""
    source = logs[data.draw(st.sampled_from([1, 2, 255, 256, 257, 600]))]
    name = data.draw(st.sampled_from(sorted(source.files)))
    before = source.files[name]
    position = data.draw(st.integers(0, len(before) - 1))
    flipped = bytearray(before)
    flipped[position] ^= 1 << data.draw(st.integers(0, 7))
    source.files[name] = bytes(flipped)
    try:
        with pytest.raises(AuditError) as caught:
            audited(source)
        assert naive_audit(source, KEYS) is None
    finally:
        source.files[name] = before
    if name == "checkpoint":
        assert (caught.value.check, caught.value.place) == (1, "checkpoint")
    elif name.startswith("tile/entries"):
        assert caught.value.check == 5
        assert caught.value.place == name or caught.value.place.startswith("entry ")
    else:
        assert caught.value.check in (3, 4)
        assert (
            caught.value.place in (name, f"{tile_path(0, 0, 1)} and above") or "above" in caught.value.place
        )


def test_flipped_bytes_in_a_tree_of_three_levels_are_named(logs: dict[int, Memory]) -> None:
    source, chance = logs[65836], random.Random(3)
    for name in [tile_path(0, 77), tile_path(1, 0), tile_path(1, 1, 1), tile_path(2, 0, 1), bundle_path(200)]:
        before = source.files[name]
        flipped = bytearray(before)
        flipped[chance.randrange(len(flipped))] ^= 4
        source.files[name] = bytes(flipped)
        with pytest.raises(AuditError) as caught:
            audited(source)
        source.files[name] = before
        expected = {tile_path(0, 77): 4, tile_path(1, 0): 4, bundle_path(200): 5}.get(name, 3)
        assert caught.value.check == expected
        if expected == 4:
            assert caught.value.place == name


@pytest.mark.parametrize("size", [256, 600, 65836])
def test_the_first_bad_entry_is_named_by_its_index(logs: dict[int, Memory], size: int) -> None:
    source = logs[size]
    last = (size - 1) // 256
    for number, bad in ((0, 0), (0, 255), (last, 3)):
        width = min(256, size - number * 256)
        name = bundle_path(number, width)
        before = source.files[name]
        entries = [entry(number * 256 + i) for i in range(width)]
        entries[bad] = b"entry X"
        if bad + 1 < width:
            entries[bad + 1] = b"entry Y"
        source.files[name] = encode_bundle(entries)
        with pytest.raises(AuditError, match=f"entry {number * 256 + bad} is not the one") as caught:
            audited(source)
        assert (caught.value.check, caught.value.place) == (5, f"entry {number * 256 + bad}")
        source.files[name] = before


def test_an_entry_changed_together_with_its_tile_is_refused(logs: dict[int, Memory]) -> None:
    source = Memory(Path("/nonexistent"))
    source.files = dict(logs[600].files)
    entries = [entry(i) for i in range(256)]
    entries[9] = b"forged"
    source.files[bundle_path(0)] = encode_bundle(entries)
    source.files[tile_path(0, 0)] = b"".join(map(leaf_hash, entries))
    with pytest.raises(AuditError, match="does not have the hash that stands in the tile above") as caught:
        audited(source)
    assert (caught.value.check, caught.value.place) == (4, tile_path(0, 0))


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("checkpoint", 1),
        (tile_path(0, 0), 4),
        (tile_path(0, 2, 88), 3),
        (tile_path(1, 0, 2), 3),
        (bundle_path(1), 5),
        (bundle_path(2, 88), 5),
    ],
)
def test_missing_cut_and_lengthened_files(logs: dict[int, Memory], name: str, check: int) -> None:
    source = Memory(Path("/nonexistent"))
    for data in (None, b"", logs[600].files[name][:-1], logs[600].files[name] + b"\0"):
        source.files = dict(logs[600].files)
        if data is None:
            del source.files[name]
        else:
            source.files[name] = data
        with pytest.raises(AuditError) as caught:
            audited(source)
        assert caught.value.check == check
        assert naive_audit(source, KEYS) is None


def test_partial_files_of_a_log_that_has_grown_are_taken_from_the_full_ones(tmp_path: Path) -> None:
    small = filled(tmp_path / "log", 300)
    with LogWriter(tmp_path / "log", SIGNER) as log:
        log.append([entry(i) for i in range(300, 512)])
    grown = Memory(tmp_path / "log")
    grown.files["checkpoint"] = small.files["checkpoint"]
    for name in (tile_path(0, 1, 44), bundle_path(1, 44)):
        del grown.files[name]
    assert audited(grown) == [entry(i) for i in range(300)] == naive_audit(grown, KEYS)
    grown.files[tile_path(0, 1)] = grown.files[tile_path(0, 1)][:-32]
    with pytest.raises(AuditError, match="does not have the size"):
        audited(grown)


# Consistency with the last audit


@pytest.mark.parametrize("old", [0, 1, 200, 256, 300, 600])
def test_an_audit_goes_on_where_the_last_one_ended(tmp_path: Path, old: int) -> None:
    before = filled(tmp_path / "log", old) if old else filled(tmp_path / "log")
    since = Audited(before.files["checkpoint"], old)
    with LogWriter(tmp_path / "log", SIGNER) as log:
        log.append([entry(i) for i in range(old, 700)])
    source = Memory(tmp_path / "log")
    assert audited(source, since) == [entry(i) for i in range(old, 700)]
    assert not [name for name in source.asked if name == bundle_path(0)] or old < 256


def test_an_interrupted_audit_goes_on_under_a_newer_checkpoint(tmp_path: Path) -> None:
    audit = LogAudit(filled(tmp_path / "log", 900), TRUST)
    steps = audit.bundles()
    first = [*next(steps).entries, *next(steps).entries]
    state = Audited(audit.signed_checkpoint, 512)
    with LogWriter(tmp_path / "log", SIGNER) as log:
        log.append([entry(i) for i in range(900, 1000)])
    assert first + audited(Memory(tmp_path / "log"), state) == [entry(i) for i in range(1000)]


@pytest.mark.parametrize("fork", [0, 255, 299])
def test_a_second_history_is_refused(tmp_path: Path, fork: int) -> None:
    honest, forked = filled(tmp_path / "honest", 300), filled(tmp_path / "forked", 300, 500, fork=fork)
    assert len(audited(forked)) == 500  # by itself nothing is wrong with it
    with pytest.raises(AuditError, match="a second history") as caught:
        LogAudit(forked, TRUST, Audited(honest.files["checkpoint"], 300))
    assert caught.value.check == 2


def test_another_tree_of_the_same_size_is_refused(tmp_path: Path) -> None:
    honest, forked = filled(tmp_path / "honest", 300), filled(tmp_path / "forked", 300, fork=7)
    with pytest.raises(AuditError, match="a second history"):
        LogAudit(forked, TRUST, Audited(honest.files["checkpoint"], 300))


def test_a_log_that_shrank_is_refused(tmp_path: Path) -> None:
    old, new = filled(tmp_path / "old", 300), filled(tmp_path / "new", 299)
    with pytest.raises(AuditError, match="has 299 entries, and had 300") as caught:
        LogAudit(new, TRUST, Audited(old.files["checkpoint"], 300))
    assert caught.value.check == 2


def test_another_log_than_that_of_the_last_audit_is_refused(tmp_path: Path) -> None:
    other = NoteSigner("audit.example/two", Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32))
    note = sign_note(Checkpoint(other.name, 0, merkle.empty_root()).to_text(), [other])
    both = TrustPolicy((KnownLog(SIGNER.verifier_key), KnownLog(other.verifier_key)))
    with pytest.raises(AuditError, match=r"the last audit was of audit\.example/two"):
        LogAudit(filled(tmp_path / "log", 3), both, Audited(note, 0))


def test_a_checkpoint_by_another_key_is_refused(tmp_path: Path) -> None:
    source = filled(tmp_path / "log", 3)
    source.files["checkpoint"] = sign_note(LogReader(tmp_path / "log", KEYS).checkpoint().to_text(), [OTHER])
    with pytest.raises(AuditError, match="no trusted key") as caught:
        LogAudit(source, TRUST)
    assert caught.value.check == 1


def test_a_checkpoint_of_a_log_that_no_key_names_is_refused(tmp_path: Path) -> None:
    source = filled(tmp_path / "log", 3)
    checkpoint = replace(LogReader(tmp_path / "log", KEYS).checkpoint(), origin="audit.example/two")
    source.files["checkpoint"] = sign_note(checkpoint.to_text(), [SIGNER])
    with pytest.raises(AuditError, match=r"is of audit\.example/two, not of"):
        LogAudit(source, TRUST)


# What an audit costs


def test_what_is_kept_does_not_grow_with_the_log(logs: dict[int, Memory]) -> None:
    """One tile a level: the audit holds as much after 256 bundles as after two."""
    audit = LogAudit(logs[65836], TRUST)
    held = [len(audit._open) for _ in audit.bundles()]
    assert max(held) == held[1] <= 3


def test_a_source_that_fails_is_no_verdict_on_the_log(logs: dict[int, Memory]) -> None:
    class Failing(Memory):
        def read(self, name: str) -> bytes | None:
            if name == bundle_path(1):
                raise LogError("the network is down")
            return self.files.get(name)

    source = Failing(Path("/nonexistent"))
    source.files = logs[600].files
    for workers in (0, 2):
        with pytest.raises(LogError, match="the network is down") as caught:
            audited(source, workers=workers)
        assert not isinstance(caught.value, AuditError)


def test_errors_are_ours(logs: dict[int, Memory]) -> None:
    with pytest.raises(FieldprintError):
        LogAudit(logs[600], TRUST, Audited(b"no note", 0))
