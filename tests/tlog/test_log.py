"""The log's folder: appending and reading, changed bytes, two writers, a full disk and kills."""

import base64
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

import fieldprint
from fieldprint.errors import (
    CapacityError,
    FormatError,
    LogError,
    LogLockedError,
    VerificationError,
)
from fieldprint.note import NoteSigner, sign_note
from fieldprint.tlog import (
    Checkpoint,
    Cosigned,
    LogReader,
    LogWriter,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from fieldprint.tlog.tile import bundle_path, decode_bundle, encode_bundle, tile_path

ORIGIN = "fieldprint.example/log"
ROOT = bytes(range(32))
ENCODED = base64.b64encode(ROOT).decode()
PRELUDE = """
import os, resource, sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fieldprint.errors import CapacityError
from fieldprint.note import NoteSigner
from fieldprint.tlog import LogWriter
signer = NoteSigner("fieldprint.example/log", Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32))
path = Path(sys.argv[1])
"""


def signer(name: str = ORIGIN, seed: int = 1) -> NoteSigner:
    return NoteSigner(name, Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


SIGNER = signer()
KEYS = [SIGNER.verifier_key]


def entry(index: int) -> bytes:
    return f"entry {index}".encode()


def filled(path: Path, size: int) -> Path:
    with LogWriter(path, SIGNER, create=True) as log:
        log.append([entry(i) for i in range(size)])
    return path


def child(script: str, path: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(fieldprint.__file__).parent.parent)}
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


# Checkpoints


@given(
    st.text(st.characters(min_codepoint=0x20, codec="utf-8"), min_size=1),
    st.integers(0, 2**63 - 1),
    st.binary(min_size=32, max_size=32),
    st.lists(st.text(st.characters(min_codepoint=0x20, codec="utf-8"), min_size=1), max_size=3),
)
def test_checkpoint_comes_back_from_its_text(
    origin: str, size: int, root: bytes, extensions: list[str]
) -> None:
    checkpoint = Checkpoint(origin, size, root, tuple(extensions))
    assert Checkpoint.from_text(checkpoint.to_text()) == checkpoint


def test_checkpoint_text_has_the_three_lines() -> None:
    assert Checkpoint(ORIGIN, 600, ROOT).to_text() == f"{ORIGIN}\n600\n{ENCODED}\n"


@pytest.mark.parametrize(
    "checkpoint",
    [
        Checkpoint("", 7, ROOT),
        Checkpoint("a\nb", 7, ROOT),
        Checkpoint(ORIGIN, -1, ROOT),
        Checkpoint(ORIGIN, 2**63, ROOT),
        Checkpoint(ORIGIN, 7, ROOT[1:]),
        Checkpoint(ORIGIN, 7, ROOT, ("",)),
        Checkpoint(ORIGIN, 7, ROOT, ("a\nb",)),
    ],
    ids=repr,
)
def test_checkpoint_that_nobody_could_read_is_not_written(checkpoint: Checkpoint) -> None:
    with pytest.raises(FormatError):
        checkpoint.to_text()


@pytest.mark.parametrize(
    "size",
    [
        "007",
        "00",
        "-1",
        "-0",
        "+7",
        " 7",
        "7 ",
        "7_0",
        "0x7",
        "1e3",
        "7.0",
        "\u0667",
        "\u00b2",
        str(2**63),
        "9" * 5000,
        "x",
    ],
)
def test_checkpoint_sizes_have_one_spelling(size: str) -> None:
    with pytest.raises(FormatError, match="tree size"):
        Checkpoint.from_text(f"{ORIGIN}\n{size}\n{ENCODED}\n")


@pytest.mark.parametrize(
    "encoded",
    [
        base64.b64encode(ROOT[:-1]).decode(),
        base64.b64encode(ROOT + b"\0").decode(),
        ENCODED.rstrip("="),
        ENCODED + "=",
        ENCODED[:-2] + "9=",
        " " + ENCODED,
        ENCODED + " ",
        ENCODED + "\r",
        ROOT.hex(),
        "\N{EM DASH}",
    ],
)
def test_checkpoint_roots_are_32_bytes_in_one_spelling(encoded: str) -> None:
    with pytest.raises(FormatError, match="root hash"):
        Checkpoint.from_text(f"{ORIGIN}\n7\n{encoded}\n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        f"{ORIGIN}\n",
        f"{ORIGIN}\n7\n",
        f"{ORIGIN}\n7\n{ENCODED}",
        f"{ORIGIN}\n7\n{ENCODED}\n\n",
        f"{ORIGIN}\n7\n{ENCODED}\n\nextension\n",
        f"{ORIGIN}\n7\n{ENCODED}\ntrailing",
        f"\n7\n{ENCODED}\n",
        f"{ORIGIN}\n\n{ENCODED}\n",
        f"{ORIGIN}\n7\n\n",
        f"\n{ORIGIN}\n7\n{ENCODED}\n",
    ],
)
def test_checkpoint_lines_are_complete_and_not_empty(text: str) -> None:
    with pytest.raises(FormatError, match="lines"):
        Checkpoint.from_text(text)


# Bundles


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=20))
def test_bundle_comes_back_and_no_cut_of_it_does(entries: list[bytes]) -> None:
    data = encode_bundle(entries)
    assert decode_bundle(data, len(entries)) == entries
    for bad in (data[:-1], data + b"\0", data + b"\0\1", b"\0\0" + data):
        with pytest.raises(FormatError):
            decode_bundle(bad, len(entries))


# Appending and reading


def test_batches_over_tile_borders_are_read_back_and_proven(tmp_path: Path) -> None:
    path, size = tmp_path / "log", 0
    checkpoints = []
    with LogWriter(path, SIGNER, create=True) as log:
        assert (
            log.tree_size == 0
            and Checkpoint.from_text(log.checkpoint.decode().partition("\n\n")[0] + "\n").tree_size == 0
        )
    for count in (1, 3, 250, 1, 1, 1, 7, 247, 1, 3, 300, 5):  # stops at 255, 256, 257, 511, 512 and behind
        with LogWriter(path, SIGNER) as log:
            assert log.tree_size == size
            appended = log.append([entry(i) for i in range(size, size + count)])
            assert (appended.first_index, appended.tree_size) == (size, size + count)
            assert appended.checkpoint == log.checkpoint == (path / "checkpoint").read_bytes()
        size += count
        reader = LogReader(path, KEYS)
        checkpoint = reader.checkpoint()
        assert checkpoint.tree_size == size and checkpoint.root_hash == reader.root_hash()
        checkpoints.append(checkpoint)
    assert {255, 256, 257, 511, 512} <= {c.tree_size for c in checkpoints}
    assert list(reader.entries()) == [entry(i) for i in range(size)]
    for index in range(size):
        verify_inclusion(
            leaf_hash(entry(index)), index, size, reader.inclusion_proof(index), checkpoint.root_hash
        )
    for earlier in checkpoints:
        old = earlier.tree_size
        assert reader.root_hash(old) == earlier.root_hash
        verify_consistency(old, size, reader.consistency_proof(old), earlier.root_hash, checkpoint.root_hash)
        verify_inclusion(
            leaf_hash(entry(old - 1)), old - 1, old, reader.inclusion_proof(old - 1, old), earlier.root_hash
        )


def test_one_writer_and_a_writer_reopened_each_time_make_the_same_log(tmp_path: Path) -> None:
    whole = filled(tmp_path / "whole", 600)
    with LogWriter(tmp_path / "steps", SIGNER, create=True) as log:
        for start in range(0, 600, 37):
            log.append([entry(i) for i in range(start, min(600, start + 37))])
    names = [p.relative_to(whole) for p in whole.rglob("*") if p.is_file()]
    assert len(names) > 8
    for name in names:
        assert (whole / name).read_bytes() == (tmp_path / "steps" / name).read_bytes()
    assert not list(tmp_path.rglob("*.part"))


def test_published_files_never_change(tmp_path: Path) -> None:
    path = filled(tmp_path / "log", 300)
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != "checkpoint"}
    with LogWriter(path, SIGNER) as log:
        log.append([entry(i) for i in range(300, 600)])
    assert all(p.read_bytes() == data for p, data in before.items())


def test_ranges_of_entries(tmp_path: Path) -> None:
    reader = LogReader(filled(tmp_path / "log", 520), KEYS)
    for start, stop in ((0, 0), (0, 1), (255, 257), (256, 256), (200, 515), (512, 520), (520, 520)):
        assert list(reader.entries(start, stop)) == [entry(i) for i in range(start, stop)]
    assert reader.entry(519) == entry(519)
    for start, stop in ((-1, 3), (4, 3), (0, 521)):
        with pytest.raises(ValueError, match="are not in a log"):
            list(reader.entries(start, stop))
    with pytest.raises(ValueError, match="not in a tree"):
        reader.inclusion_proof(520)
    with pytest.raises(ValueError, match="not 521"):
        reader.root_hash(521)


def test_reader_keeps_its_checkpoint_until_refreshed(tmp_path: Path) -> None:
    path = filled(tmp_path / "log", 250)
    reader = LogReader(path, KEYS)
    with LogWriter(path, SIGNER) as log:
        log.append([entry(i) for i in range(250, 530)])
    for partial in path.rglob("*.p"):  # a log may drop the partial tiles of full ones
        if partial.name == "000.p":
            for file in partial.iterdir():
                if file.name == "250":
                    file.unlink()
    assert list(reader.entries()) == [entry(i) for i in range(250)]
    assert reader.root_hash() == reader.checkpoint().root_hash
    reader.refresh()
    assert reader.checkpoint().tree_size == 530 and reader.root_hash() == reader.checkpoint().root_hash


def test_a_reader_reads_by_a_checkpoint_that_it_is_given(tmp_path: Path) -> None:
    path = filled(tmp_path / "log", 250)
    signed = LogReader(path, KEYS).signed_checkpoint()
    with LogWriter(path, SIGNER) as log:
        log.append([entry(i) for i in range(250, 530)])
    (path / "checkpoint").unlink()
    reader = LogReader(path, KEYS, signed=signed)
    assert list(reader.entries()) == [entry(i) for i in range(250)]
    assert reader.root_hash() == reader.checkpoint().root_hash
    with pytest.raises(LogError, match="checkpoint cannot be read"):
        reader.refresh()
    with pytest.raises(VerificationError):
        LogReader(path, KEYS, signed=signed[:-5] + b"A" + signed[-4:])


def test_a_reader_keeps_few_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fieldprint.tlog.reader.CACHED_TILES", 2)
    reader = LogReader(filled(tmp_path / "log", 256 * 6 + 5), KEYS)
    assert list(reader.entries()) == [entry(i) for i in range(256 * 6 + 5)]
    assert reader.root_hash(1000) and len(reader.inclusion_proof(3)) == 11
    assert len(reader._tiles) == 2


def test_empty_log_and_empty_batch(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log", SIGNER, create=True) as log:
        before = log.checkpoint
        appended = log.append([])
        assert (appended.first_index, appended.tree_size, appended.checkpoint) == (0, 0, before)
    reader = LogReader(tmp_path / "log", KEYS)
    assert list(reader.entries()) == [] and reader.root_hash() == reader.checkpoint().root_hash


def test_entries_up_to_65535_bytes(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log", SIGNER, create=True) as log:
        with pytest.raises(ValueError, match="65535"):
            log.append([b"small", bytes(65536)])
        assert log.tree_size == 0
        log.append([bytes(65535), b""])
    assert list(LogReader(tmp_path / "log", KEYS).entries()) == [bytes(65535), b""]


# Changed bytes, wrong keys, missing folders


@pytest.mark.parametrize("name", [bundle_path(0), bundle_path(1, 44)])
def test_reader_detects_a_changed_entry(tmp_path: Path, name: str) -> None:
    path = filled(tmp_path / "log", 300)
    for position in (0, 1, 2, 9, (path / name).stat().st_size - 1):
        flip(path / name, position)
        with pytest.raises(FormatError):
            list(LogReader(path, KEYS).entries())
        flip(path / name, position)
    assert len(list(LogReader(path, KEYS).entries())) == 300


@pytest.mark.parametrize("name", [tile_path(0, 0), tile_path(0, 1, 44)])
def test_reader_detects_a_changed_leaf_hash(tmp_path: Path, name: str) -> None:
    path = filled(tmp_path / "log", 300)
    for position in (0, 31, 700, (path / name).stat().st_size - 1):
        flip(path / name, position)
        with pytest.raises(FormatError, match="lead to the checkpoint's root"):
            list(LogReader(path, KEYS).entries())
        flip(path / name, position)


@pytest.mark.parametrize("name", [tile_path(0, 1, 44), tile_path(1, 0, 1)])
def test_root_detects_a_changed_tile_and_the_writer_does_not_build_on_it(tmp_path: Path, name: str) -> None:
    path = filled(tmp_path / "log", 300)
    flip(path / name, 5)
    with pytest.raises(FormatError, match="do not lead to the checkpoint's root"):
        LogReader(path, KEYS).root_hash()
    with pytest.raises(LogError, match="do not lead to the checkpoint's root"):
        LogWriter(path, SIGNER)


@pytest.mark.parametrize("size", [256, 257, 300, 512])
def test_an_entry_changed_together_with_its_leaf_hash_is_refused(tmp_path: Path, size: int) -> None:
    path = filled(tmp_path / "log", size)
    forged = [entry(i) for i in range(256)]
    forged[9] = b"entry X"
    (path / bundle_path(0)).write_bytes(encode_bundle(forged))
    (path / tile_path(0, 0)).write_bytes(b"".join(leaf_hash(e) for e in forged))
    for read in (
        lambda reader: list(reader.entries()),
        lambda reader: reader.entry(9),
        lambda reader: reader.inclusion_proof(9),
        lambda reader: reader.consistency_proof(100),
    ):
        with pytest.raises(FormatError, match=r"tile/0/000 does not lead to the checkpoint's root"):
            read(LogReader(path, KEYS))


def test_tiles_of_a_tree_of_three_levels_are_compared(tmp_path: Path) -> None:
    path = filled(tmp_path / "log", 65536 + 300)
    reader = LogReader(path, KEYS)
    assert reader.root_hash() == reader.checkpoint().root_hash
    for index in (0, 65535, 65536, 65835):
        assert reader.entry(index) == entry(index)
    for name, index in ((tile_path(0, 7), 7 * 256), (tile_path(1, 0), 5), (tile_path(1, 1, 1), 65536)):
        flip(path / name, 9)
        with pytest.raises(FormatError, match="lead to the checkpoint's root"):
            LogReader(path, KEYS).entry(index)
        flip(path / name, 9)


def test_tile_with_bytes_left_over_is_refused(tmp_path: Path) -> None:
    path = filled(tmp_path / "log", 300)
    for name in (tile_path(0, 0), tile_path(0, 1, 44), tile_path(1, 0, 1)):
        data = (path / name).read_bytes()
        for more in (b"\0", bytes(32)):
            (path / name).write_bytes(data + more)
            with pytest.raises(FormatError, match="left over"):
                list(LogReader(path, KEYS).entries())
        (path / name).write_bytes(data)


def test_truncated_tile_and_missing_tile(tmp_path: Path) -> None:
    path = filled(tmp_path / "log", 300)
    tile = path / tile_path(0, 1, 44)
    tile.write_bytes(tile.read_bytes()[:-1])
    with pytest.raises(FormatError, match="truncated"):
        LogReader(path, KEYS).root_hash()
    tile.unlink()
    with pytest.raises(LogError, match="cannot be read"):
        LogReader(path, KEYS).root_hash()


def test_checkpoint_by_another_key_is_refused(tmp_path: Path) -> None:
    path = filled(tmp_path / "log", 3)
    for other in (signer(seed=2), signer("fieldprint.example/other", 1)):
        with pytest.raises(VerificationError, match="no trusted key"):
            LogReader(path, [other.verifier_key])
        with pytest.raises(VerificationError, match="no trusted key"):
            LogWriter(path, other)
    with pytest.raises(VerificationError):
        LogReader(path, [])
    with LogWriter(path, SIGNER) as log:  # the refused writers gave the lock back
        assert log.tree_size == 3


def test_checkpoint_of_another_log_is_refused(tmp_path: Path) -> None:
    path = filled(tmp_path / "log", 3)
    other = Checkpoint("fieldprint.example/other", 3, LogReader(path, KEYS).root_hash())
    (path / "checkpoint").write_bytes(sign_note(other.to_text(), [SIGNER]))
    with pytest.raises(VerificationError, match=r"the checkpoint is of fieldprint\.example/other, not of"):
        LogReader(path, KEYS)


def test_every_changed_byte_of_the_checkpoint_is_refused(tmp_path: Path) -> None:
    path = filled(tmp_path / "log", 3)
    for position in range((path / "checkpoint").stat().st_size):
        flip(path / "checkpoint", position)
        with pytest.raises((FormatError, VerificationError)):
            LogReader(path, KEYS)
        flip(path / "checkpoint", position)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="cannot be read"):
        LogReader(tmp_path / "none", KEYS)
    with pytest.raises(LogError, match="holds no log"):
        LogWriter(tmp_path / "none", SIGNER)
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").touch()
    with pytest.raises(LogError, match="cannot be written"):
        LogWriter(tmp_path / "file", SIGNER, create=True)


def test_tiles_without_a_checkpoint_are_no_empty_log(tmp_path: Path) -> None:
    path = filled(tmp_path / "log", 3)
    (path / "checkpoint").unlink()
    (tmp_path / "log.last-signed").unlink()
    with pytest.raises(LogError, match="a second history"):
        LogWriter(path, SIGNER, create=True)


def test_threads_share_a_writer(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log", SIGNER, create=True) as log:

        def work(number: int) -> list[tuple[int, bytes]]:
            found = []
            for i in range(20):
                data = b"%d/%d" % (number, i)
                found.append((log.append([data]).first_index, data))
            return found

        with ThreadPoolExecutor(4) as pool:
            acknowledged = [pair for pairs in pool.map(work, range(4)) for pair in pairs]
    entries = list(LogReader(tmp_path / "log", KEYS).entries())
    assert len(entries) == len(acknowledged) == 80
    assert all(entries[index] == data for index, data in acknowledged)


def test_close_waits_for_the_batch_in_hand(tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    def cosign(signed: bytes, prove: Any) -> Cosigned:
        if log.tree_size == 0 and Checkpoint.from_text(signed.decode().partition("\n\n")[0] + "\n").tree_size:
            started.set()
            go_on.wait(10)
        return Cosigned(b"", quorum=False, keys=())

    filled(tmp_path / "log", 0)
    log = LogWriter(tmp_path / "log", SIGNER, cosign=cosign)
    appender = threading.Thread(target=log.append, args=([b"entry"],))
    closer = threading.Thread(target=log.close)
    appender.start()
    started.wait(10)
    closer.start()
    closer.join(0.2)
    assert closer.is_alive()
    with pytest.raises(LogLockedError):
        LogWriter(tmp_path / "log", SIGNER)
    go_on.set()
    appender.join(10)
    closer.join(10)
    with LogWriter(tmp_path / "log", SIGNER) as again:
        assert again.tree_size == 1


def test_closed_writer_refuses_to_append(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log", SIGNER, create=True) as log:
        pass
    log.close()
    with pytest.raises(LogError, match="closed"):
        log.append([b"entry"])


# Two writers


def test_two_writers_in_one_process(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log", SIGNER, create=True) as log:
        with pytest.raises(LogLockedError):
            LogWriter(tmp_path / "log", SIGNER)
        log.append([b"entry"])
    LogWriter(tmp_path / "log", SIGNER).close()


def test_two_writers_in_two_processes(tmp_path: Path) -> None:
    path = filled(tmp_path / "log", 3)
    with child(
        "log = LogWriter(path, signer)\nprint('held', flush=True)\nsys.stdin.read()\n", path
    ) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LogLockedError, match="another process"):
            LogWriter(path, SIGNER)
        assert LogReader(path, KEYS).checkpoint().tree_size == 3  # readers need no lock
        holder.stdin.close()
        assert holder.wait(timeout=30) == 0
    with LogWriter(path, SIGNER) as log:
        assert log.append([entry(3)]).tree_size == 4


# Failing disks and kills

FULL_DISK = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = LogWriter(path, signer, create=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    while True:
        log.append([b"%d " % i + bytes(900) for i in range(log.tree_size, log.tree_size + 3)])
        print(log.tree_size, flush=True)
except CapacityError as error:
    print("full", error.remedy != "", flush=True)
before = log.tree_size
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if len(sys.argv) == 2 and log.append([b"other"]).first_index == before:
    print("again", log.tree_size, flush=True)
"""


def test_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with child(FULL_DISK, path) as process:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
    *counts, full, again = output.splitlines()
    acknowledged = int(counts[-1])
    assert 0 < acknowledged * 900 < 100_000
    assert (full, again) == ("full True", f"again {acknowledged + 1}")
    with LogWriter(path, SIGNER) as log:
        assert log.tree_size == acknowledged + 1
        log.append([b"after"])
    expected = [b"%d " % i + bytes(900) for i in range(acknowledged)]
    assert list(LogReader(path, KEYS).entries()) == [*expected, b"other", b"after"]
    assert not list(path.rglob("*.part"))


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, CapacityError), (errno.EDQUOT, CapacityError), (errno.EIO, LogError)]
)
def test_failing_fsync_acknowledges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[LogError | CapacityError]
) -> None:
    path = filled(tmp_path / "log", 3)

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with LogWriter(path, SIGNER) as log:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(error):
                log.append([b"lost"])
        assert log.tree_size == LogReader(path, KEYS).checkpoint().tree_size == 3
        log.append([entry(3)])
    assert list(LogReader(path, KEYS).entries()) == [entry(i) for i in range(4)]


def test_writer_stays_right_if_only_the_last_sync_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new checkpoint has its name already: the batch is in the log, although it was not acknowledged."""
    path = filled(tmp_path / "log", 3)
    before = (path / "checkpoint").read_bytes()
    fsync = os.fsync

    def fail_behind_the_checkpoint(descriptor: int) -> None:
        if (path / "checkpoint").read_bytes() != before:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    with LogWriter(path, SIGNER) as log:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail_behind_the_checkpoint)
            with pytest.raises(LogError):
                log.append([entry(3), entry(4)])
        assert log.append([entry(5)]).first_index == 5
    with LogWriter(path, SIGNER) as log:
        assert log.tree_size == 6
    assert list(LogReader(path, KEYS).entries()) == [entry(i) for i in range(6)]


APPEND_FOREVER = """
log = LogWriter(path, signer, create=True)
print(log.tree_size, flush=True)
count = 1
while True:
    log.append([b"entry %d" % i for i in range(log.tree_size, log.tree_size + count)])
    print(log.tree_size, flush=True)
    count = count % 13 + 1
"""


def test_killed_writers_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path, chance, acknowledged = tmp_path / "log", random.Random(5), 0
    for _ in range(15):
        with child(APPEND_FOREVER, path) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert int(first) >= acknowledged
            rest = "".join(process.stdout.readline() for _ in range(chance.randrange(5, 14)))
            time.sleep(chance.random() * 0.01)
            process.send_signal(signal.SIGKILL)
            rest += process.stdout.read()
            assert process.wait(timeout=30) == -signal.SIGKILL
        acknowledged = int(
            [line for line in (first + rest).splitlines(keepends=True) if line.endswith("\n")][-1]
        )
        reader = LogReader(path, KEYS)
        size = reader.checkpoint().tree_size
        assert size >= acknowledged
        assert reader.root_hash() == reader.checkpoint().root_hash
        assert list(reader.entries()) == [entry(i) for i in range(size)]
    assert acknowledged > 256
    with LogWriter(path, SIGNER) as log:  # what was signed and recorded, and not yet published, it takes up
        stop = log.append([b"after"]).first_index
    assert stop >= size
    assert list(LogReader(path, KEYS).entries(0, stop)) == [entry(i) for i in range(stop)]
