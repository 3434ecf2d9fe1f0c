"""A gate over the registry's database, with the database replaced, stopped and started again under it."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy; the extra [registry] brings it")

from sqlalchemy import text

from fieldprint.errors import FieldprintError
from fieldprint.registry.database import RegistryDatabase
from fieldprint.registry.gate import AnchorGate, GatedAnchor, Ruling
from fieldprint.registry.watch import WatchLost
from fieldprint.registry.watched import WatchedDatabase
from tests.postgres import PostgresServer
from tests.registry.histories import append, write_log
from tests.registry.world import DAY, POLICY, TIME, anchor, lift, override, revoke, sign

PARENT, CHILD = anchor("parent"), anchor("child", parents=(anchor("parent").anchor,))
USED = GatedAnchor(CHILD.anchor, "memory", TIME + 30 * DAY)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "registry.db")
    return str(request.getfixturevalue("postgres_url"))


def until(what: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_a_gate_hears_of_revocations_and_orders(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    reader = write_log(folder, [sign(PARENT), sign(CHILD)])
    with RegistryDatabase(url, create=True) as database:
        database.sync(reader, POLICY)
        with WatchedDatabase(url, POLICY) as watched:
            gate = AnchorGate(POLICY, USED, registry=watched, clock=lambda: TIME)
            before: list[Ruling | None] = [None]

            def after(entry: bytes) -> str | None:
                append(folder, [entry])
                reader.refresh()
                database.sync(reader, POLICY)
                deadline = time.monotonic() + 0.1  # a server's notification takes a moment
                while (ruling := gate.ruling()) == before[-1] and time.monotonic() < deadline:
                    time.sleep(0.001)
                before.append(ruling)
                return None if ruling is None else ruling.reason

            assert gate.ruling() is None
            assert after(sign(anchor("other"))) is None
            assert after(override(1, "kind", "memory", action="bypass")) == "bypassed"
            assert after(lift(1)) is None
            assert after(revoke(PARENT)) == "revoked"
            assert after(revoke(CHILD)) == "revoked"


def test_a_file_that_was_replaced_is_lost_and_opened_again(tmp_path: Path) -> None:
    reader = write_log(tmp_path / "log", [sign(PARENT), sign(CHILD)])
    for name in ("registry.db", "new.db"):
        with RegistryDatabase(str(tmp_path / name), create=True) as database:
            database.sync(reader, POLICY)
    with WatchedDatabase(str(tmp_path / "registry.db"), POLICY, retry=0.05) as watched:
        gate = AnchorGate(POLICY, USED, registry=watched, grace=0, clock=lambda: TIME)
        assert gate.ruling() is None
        (tmp_path / "new.db").replace(tmp_path / "registry.db")
        ruling = gate.ruling()
        assert ruling is not None
        assert ruling.reason == "registry-lost"
        until(lambda: gate.ruling() is None)


def test_a_database_of_another_policy_is_refused_and_lost_when_it_becomes_one(
    url: str, tmp_path: Path
) -> None:
    """Else a revocation that this policy believes, and the other does not, would not be heard."""
    other = replace(POLICY, revocation_threshold=1)
    reader = write_log(tmp_path / "log", [sign(PARENT), sign(CHILD)])
    with RegistryDatabase(url, create=True) as database:
        database.sync(reader, POLICY)
        with pytest.raises(FieldprintError, match="another policy"):
            WatchedDatabase(url, other)
        with WatchedDatabase(url, POLICY, retry=0.05) as watched:
            gate = AnchorGate(POLICY, USED, registry=watched, grace=0, clock=lambda: TIME)
            assert gate.ruling() is None
            database.rebuild(reader, other)
            until(lambda: gate.ruling() is not None)
            ruling = gate.ruling()
            assert ruling is not None
            assert ruling.reason == "registry-lost"
            assert "another policy" in ruling.why
            database.rebuild(reader, POLICY)
            until(lambda: gate.ruling() is None)


def test_a_database_that_cannot_be_read_is_lost(url: str, tmp_path: Path) -> None:
    reader = write_log(tmp_path / "log", [sign(PARENT), sign(CHILD)])
    with RegistryDatabase(url, create=True) as database:
        database.sync(reader, POLICY)
        with WatchedDatabase(url, POLICY, retry=0.05) as watched:
            with database._database.writing() as connection:
                connection.execute(text("ALTER TABLE registry_revocations RENAME TO elsewhere"))
            gate = AnchorGate(POLICY, USED, registry=watched, grace=0, clock=lambda: TIME)
            until(lambda: gate.ruling() is not None)
            with database._database.writing() as connection:
                connection.execute(text("ALTER TABLE elsewhere RENAME TO registry_revocations"))
            until(lambda: gate.ruling() is None)


def test_a_server_that_goes_and_comes_back(postgres_server: PostgresServer, tmp_path: Path) -> None:
    url = postgres_server.create_database()
    reader = write_log(tmp_path / "log", [sign(PARENT), sign(CHILD)])
    with RegistryDatabase(url, create=True) as database:
        database.sync(reader, POLICY)
    with WatchedDatabase(url, POLICY, retry=0.05) as watched:
        strict = AnchorGate(POLICY, USED, registry=watched, grace=0, clock=lambda: TIME)
        assert strict.ruling() is None
        postgres_server.stop()  # in a crash this server, which syncs nothing, may lose what was committed
        try:
            until(lambda: strict.ruling() is not None)
            began = time.perf_counter()
            for _ in range(50):
                with pytest.raises(WatchLost):
                    watched.poll()
            assert time.perf_counter() - began < 1, "a step does not wait for a connection"
        finally:
            postgres_server.start()
        until(lambda: strict.ruling() is None)
    postgres_server.drop_database(url)
