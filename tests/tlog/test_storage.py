"""Storages: a folder, and an object store behind a real HTTP server that the test starts."""

import os
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.faulty_disk import Fault, FaultyDisk
from fieldprint.errors import CapacityError, FormatError, LogError, LogLockedError
from fieldprint.note import NoteSigner
from fieldprint.tlog import LogReader, LogWriter, PosixStorage, Storage, open_storage

SIGNER = NoteSigner("fieldprint.example/log", Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32))
KEYS = [SIGNER.verifier_key]
BUCKET = "fieldprint"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """moto's server in a process of its own, with one bucket. Its absence in a development install is an error."""
    if find_spec("moto") is None and find_spec("mypy") is None:
        pytest.skip("not a development install: the extra `dev` brings the S3 server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
                urllib.request.urlopen(request, timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, "the S3 server did not start"
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=10)


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URL of an empty log in the store; what the store needs is in the environment, as for a user."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{request.node.name}"


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "log") if request.param == "folder" else request.getfixturevalue("s3")


def opened(place: str) -> Storage:
    storage = open_storage(place)
    storage.create()
    return storage


# What holds for both


def test_objects_come_back_and_are_named(place: str) -> None:
    storage = opened(place)
    objects = {f"tile/{i}/000": bytes([i]) * i for i in range(5)} | {"tile/entries/x001/002.p/7": b"x"}
    storage.write(objects)
    assert {name: storage.read(name) for name in objects} == objects
    assert sorted(storage.names("tile/")) == sorted(objects)
    assert list(storage.names("tile/3/")) == ["tile/3/000"] and list(storage.names("other/")) == []
    assert storage.read("tile/9/000") is None
    storage.write({"tile/0/000": b"other"})
    assert storage.read("tile/0/000") == b"other"


def test_publish_replaces_what_it_was_told_and_nothing_else(place: str) -> None:
    storage = opened(place)
    storage.publish("checkpoint", b"one", None)
    for previous in (None, b"two", b""):
        with pytest.raises(LogError, match="changed by somebody else"):
            storage.publish("checkpoint", b"three", previous)
    assert storage.read("checkpoint") == b"one"
    storage.publish("checkpoint", b"two", b"one")
    assert storage.read("checkpoint") == b"two"


def test_a_log_is_written_read_and_taken_up_again(place: str, tmp_path: Path) -> None:
    entries = [b"entry %d" % i for i in range(300)]
    for start, stop in ((0, 3), (3, 290), (290, 300)):
        with LogWriter(place, SIGNER, create=True, last_signed=tmp_path / "signed") as log:
            log.append(entries[start:stop])
            with pytest.raises(LogLockedError):
                LogWriter(place, SIGNER, last_signed=tmp_path / "signed")
    reader = LogReader(place, KEYS)
    assert list(reader.entries()) == entries
    assert reader.root_hash() == reader.checkpoint().root_hash
    assert {name.partition("/")[0] for name in open_storage(place).names("tile/")} == {"tile"}


def test_both_storages_hold_the_same_bytes(s3: str, tmp_path: Path) -> None:
    for place in (s3, tmp_path / "log"):
        with LogWriter(place, SIGNER, create=True, last_signed=tmp_path / f"{len(str(place))}") as log:
            log.append([b"entry %d" % i for i in range(300)])
    folder, store = open_storage(tmp_path / "log"), open_storage(s3)
    names = sorted(folder.names("tile/"))
    assert names == sorted(store.names("tile/")) and len(names) == 5
    assert all(folder.read(name) == store.read(name) for name in [*names, "checkpoint"])


def test_a_file_is_read_up_to_the_limit_of_its_kind_and_a_byte(place: str) -> None:
    """No check accepts that, and a hostile place cannot fill the memory."""
    storage = opened(place)
    for name, limit in (
        ("checkpoint", 1_000_000),
        ("tile/0/000", 16_777_472),
        ("tile/entries/000", 16_777_472),
    ):
        for size, read in ((0, 0), (limit, limit), (limit + 1, limit + 1), (limit + 5_000_000, limit + 1)):
            storage.write({name: bytes(size)})
            assert storage.read(name) == bytes(read), (name, size)


# The object store alone


def test_of_two_writers_that_share_nothing_one_fails(s3: str, tmp_path: Path) -> None:
    """Two machines with records of their own: the second cannot adopt silently, nor publish over the first."""
    with LogWriter(s3, SIGNER, create=True, last_signed=tmp_path / "a") as first:
        with pytest.raises(LogError, match="does not know what was signed last"):
            LogWriter(s3, SIGNER, last_signed=tmp_path / "b")
        with LogWriter(s3, SIGNER, adopt=True, last_signed=tmp_path / "b") as second:
            first.append([b"first"])
            with pytest.raises(LogError, match="changed by somebody else"):
                second.append([b"second"])


def test_two_threads_replace_one_object_and_one_of_them_wins(s3: str) -> None:
    storage = opened(s3)
    storage.publish("checkpoint", b"0", None)
    refused: list[LogError] = []

    def race(value: bytes) -> None:
        try:
            open_storage(s3).publish("checkpoint", value, b"0")
        except LogError as error:
            refused.append(error)

    threads = [threading.Thread(target=race, args=(bytes([65 + i]),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3 and storage.read("checkpoint") != b"0"


def test_a_store_that_does_not_answer_is_a_log_error(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fieldprint.tlog.storage.objects import ObjectStorage

    with pytest.raises(ValueError, match="of no object store"):
        open_storage("nosuch://bucket/log")
    with pytest.raises(LogError, match="cannot be opened"):
        open_storage("s3://")
    missing = ObjectStorage(s3.replace(BUCKET, "no-such-bucket"), retry_config={"max_retries": 0})
    with pytest.raises(LogError, match="cannot be written"):
        missing.write({"tile/0/000": b"x"})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    dead = ObjectStorage(s3, retry_config={"max_retries": 0})
    with pytest.raises(LogError, match="cannot be read"):
        dead.read("checkpoint")
    with pytest.raises(LogError, match="cannot be listed"):
        list(dead.names("tile/"))


def test_a_log_in_a_store_needs_a_record_on_this_machine(s3: str) -> None:
    with pytest.raises(ValueError, match="last_signed"):
        LogWriter(s3, SIGNER, create=True)


def test_nothing_loads_the_store_but_a_url() -> None:
    script = (
        "import sys; from fieldprint.tlog import LogReader, LogWriter, open_storage; open_storage('folder');"
        "sys.exit('obstore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# The folder alone


@pytest.mark.parametrize(
    ("kind", "error"), [("full", CapacityError), ("error", LogError), ("error after", LogError)]
)
def test_a_failing_call_says_what_failed_and_leaves_no_part(kind: str, error: type[Exception]) -> None:
    disk = FaultyDisk()
    storage = PosixStorage(Path("/log"), disk)
    storage.create()
    disk.calls = 0
    storage.write({"tile/0/000": b"x"})
    for at in range(disk.calls):
        disk = FaultyDisk()
        storage = PosixStorage(Path("/log"), disk)
        storage.create()
        disk.calls, disk.fault = 0, Fault(at, kind)
        with pytest.raises(error, match="/log cannot be written"):
            storage.write({"tile/0/000": b"x"})
        disk.fault = None
        assert not [p for p in disk.names if p.suffix == ".part"]
        storage.write({"tile/0/000": b"y"})
        assert storage.read("tile/0/000") == b"y"


def test_a_short_write_is_finished() -> None:
    disk = FaultyDisk()
    storage = PosixStorage(Path("/log"), disk)
    storage.create()
    for at in range(12):
        disk.calls, disk.fault = 0, Fault(at, "short")
        storage.write({"checkpoint": b"0123456789"})
        assert storage.read("checkpoint") == b"0123456789"


def test_every_file_and_name_is_durable_on_return() -> None:
    """Whatever of the rest a power failure takes."""
    import random

    disk = FaultyDisk()
    storage = PosixStorage(Path("/a/b/log"), disk)
    storage.create()
    objects = {"tile/0/000": b"x" * 99, "tile/entries/x001/x002/003.p/4": b"y", "checkpoint": b"z"}
    storage.write(objects)
    for seed in range(30):
        after = PosixStorage(Path("/a/b/log"), disk.after_power_failure(random.Random(seed)))
        assert {name: after.read(name) for name in objects} == objects


def test_an_unreadable_file_is_a_log_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(LogError, match="cannot be read"):
        open_storage(tmp_path).read("checkpoint")
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_file_of_six_gigabytes_is_not_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "checkpoint").open("wb") as file:
        file.truncate(6 << 30)  # no block is written
    tracemalloc.start()
    try:
        assert len(open_storage(tmp_path).read("checkpoint") or b"") == 1_000_001
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(FormatError, match="more than 1000000"):
        LogReader(tmp_path, KEYS)


def test_a_file_is_a_regular_file_or_refused(tmp_path: Path) -> None:
    """A pipe would hang, a device never end; in a process of its own, which the time limit ends if one does."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    script = """if True:
        import resource, sys
        from fieldprint.errors import LogError
        from fieldprint.tlog import open_storage
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        for name in ("pipe", "zero", "folder"):
            try:
                sys.exit(f"{name} was read: {open_storage(sys.argv[1]).read(name)!r:.99}")
            except LogError as error:
                assert "not a regular file" in str(error), error
        assert open_storage(sys.argv[1]).read("link") == b"content"
    """
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert run.returncode == 0, run.stderr
