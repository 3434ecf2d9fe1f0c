"""The watch: every commit is told of, and silence is not believed when nobody answers."""

import os
import shutil
import time
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy; the extra [registry] brings it")

from fieldprint.registry.database import RegistryDatabase
from fieldprint.registry.watch import RegistryWatch, WatchLost
from tests.postgres import PostgresServer
from tests.registry.histories import append, write_log
from tests.registry.world import POLICY, anchor, revoke, sign


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "registry.db")
    return str(request.getfixturevalue("postgres_url"))


def told(watch: RegistryWatch, seconds: float = 0.1) -> bool:
    """Whether it tells of a change within the time that an engine may take to learn of one: a server takes a moment."""
    end = time.perf_counter() + seconds
    while not watch.poll():
        if time.perf_counter() > end:
            return False
        time.sleep(0.001)
    return True


def test_each_sync_is_told_once(url: str, tmp_path: Path) -> None:
    made = anchor("a")
    folder = tmp_path / "log"
    reader = write_log(folder, [sign(made)])
    with RegistryDatabase(url, create=True) as database, RegistryWatch(url) as watch:
        assert not watch.poll()
        database.sync(reader, POLICY)
        assert told(watch)
        assert not watch.poll()
        database.sync(reader, POLICY)
        assert not watch.poll()  # there was nothing to write
        append(folder, [revoke(made)])
        reader.refresh()
        database.sync(reader, POLICY)
        assert told(watch)
        assert list(database.revoked()) == [made.anchor]
        database.rebuild(reader, POLICY)
        assert told(watch) and not watch.poll()


def test_what_is_rolled_back_is_not_told(url: str, tmp_path: Path) -> None:
    reader = write_log(tmp_path / "log", [sign(anchor("a"))])
    with RegistryDatabase(url, create=True) as database, RegistryWatch(url) as watch:

        def stop(done: int, size: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            database.rebuild(reader, POLICY, progress=stop)
        assert not watch.poll()


def test_several_watches_hear_the_same(url: str, tmp_path: Path) -> None:
    reader = write_log(tmp_path / "log", [sign(anchor("a"))])
    with RegistryDatabase(url, create=True) as database:
        watches = [RegistryWatch(url, heartbeat=0) for _ in range(3)]
        database.sync(reader, POLICY)
        assert [told(watch) for watch in watches] == [True] * 3
        assert [watch.poll() for watch in watches] == [False] * 3
        for watch in watches:
            watch.close()


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_file_that_is_another_one_is_reported(tmp_path: Path, how: str) -> None:
    path = tmp_path / "registry.db"
    RegistryDatabase(str(path), create=True).close()
    with RegistryWatch(str(path)) as watch:
        assert not watch.poll()
        shutil.copy(path, tmp_path / "copy.db")
        if how == "replaced":
            os.replace(tmp_path / "copy.db", path)
        else:
            path.unlink()
        for _ in range(2):
            with pytest.raises(WatchLost, match="not there any more"):
                watch.poll()
        if how == "removed":
            os.replace(tmp_path / "copy.db", path)
        with pytest.raises(WatchLost):
            watch.poll()  # what was missed meanwhile is not known


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_is_gone_is_reported(
    postgres_server: PostgresServer, postgres_url: str, mode: str
) -> None:
    RegistryDatabase(postgres_url, create=True).close()
    watch = RegistryWatch(postgres_url)
    assert not watch.poll()
    postgres_server.stop(mode)
    try:
        with pytest.raises(WatchLost):
            watch.poll()
        with pytest.raises(WatchLost):
            RegistryWatch(postgres_url)
    finally:
        postgres_server.start()
    with pytest.raises(WatchLost):
        watch.poll()
    watch.close()
    with RegistryWatch(postgres_url) as again:
        assert not again.poll()


def test_what_is_not_there_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(WatchLost):
        RegistryWatch(str(tmp_path / "nothing.db"))


def test_asking_is_cheap_enough_for_every_step(url: str) -> None:
    RegistryDatabase(url, create=True).close()
    with RegistryWatch(url) as watch:
        times = []
        for _ in range(500):
            began = time.perf_counter()
            watch.poll()
            times.append(time.perf_counter() - began)
    assert sorted(times)[250] < 0.001
