"""The database: the same rows however it was filled, and look-ups that say what the registry in memory says."""

import itertools
import multiprocessing
import os
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy; the extra [registry] brings it")

from sqlalchemy import delete, event, text

from fieldprint.anchor import AnchorArtifact, Policy, Registration, sign_anchor
from fieldprint.errors import FieldprintError, FormatError, VerificationError
from fieldprint.registry import Registry
from fieldprint.registry.database import RegistryDatabase
from fieldprint.registry.tables import METADATA
from fieldprint.tlog import LogReader
from fieldprint.verify import verify_anchor
from tests.registry.histories import append, history, write_log
from tests.registry.world import (
    DAY,
    OWNER,
    POLICY,
    SECOND,
    SIGNERS,
    TIME,
    anchor,
    digest,
    lift,
    override,
    promote,
    revoke,
    sign,
    supersede,
)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "registry.db")
    return str(request.getfixturevalue("postgres_url"))


def rows(url: str) -> list[str]:
    with RegistryDatabase(url, create=True) as database:
        return list(database.dump())


def synced(url: str, reader: LogReader, **options: Any) -> list[str]:
    with RegistryDatabase(url, create=True) as database:
        database.sync(reader, POLICY, **options)
    return rows(url)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> LogReader:
    return write_log(tmp_path_factory.mktemp("log") / "log", history(1, 400))


def test_the_history_has_every_event_believed_and_refused(log: LogReader) -> None:
    registry = Registry.replay(log.entries(), POLICY)
    assert len(registry.believed) == 8 and min(registry.believed.values()) > 2
    assert registry.num_refused > 20 and registry.tainted_by_revocation


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_rebuilding_gives_the_rows_of_syncing(url: str, log: LogReader, tmp_path: Path, batch: int) -> None:
    other = str(tmp_path / "other.db")
    expected = synced(other, log)
    assert len(expected) > 400
    assert synced(url, log, batch=batch) == expected
    with RegistryDatabase(url) as database:
        assert database.rebuild(log, POLICY, batch=batch) == 400
    assert rows(url) == expected


def test_each_sync_by_another_process_resumes(url: str, log: LogReader, tmp_path: Path) -> None:
    """A fresh object reads its state from the rows, so this compares what is stored with what is replayed."""
    entries, folder = list(log.entries()), tmp_path / "log"
    reader, size = write_log(folder, entries[:1]), 1
    draw = random.Random(7)
    while size < len(entries):
        step = draw.choice([1, 2, 3, 30])
        append(folder, entries[size : size + step])
        size = min(len(entries), size + step)
        reader.refresh()
        with RegistryDatabase(url, create=True) as database:
            database.sync(reader, POLICY)
            assert database.sync(reader, POLICY) == 0
    assert rows(url) == synced(str(tmp_path / "other.db"), log)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(2, 10**6), batch=st.integers(1, 40))
def test_the_rows_restore_the_registry(
    tmp_path_factory: pytest.TempPathFactory, seed: int, batch: int
) -> None:
    folder = tmp_path_factory.mktemp("restore")
    reader = write_log(folder / "log", history(seed, 60))
    with RegistryDatabase(str(folder / "r.db"), create=True) as database:
        database.sync(reader, POLICY, batch=batch)
    with RegistryDatabase(str(folder / "r.db")) as database:
        database.sync(reader, POLICY)
        restored = database._registry
    replayed = Registry.replay(reader.entries(), POLICY)
    assert restored is not None and restored.status_tree.root == replayed.status_tree.root
    for name in ("anchors", "revoked", "superseded", "overrides", "status", "believed", "refused"):
        assert getattr(restored, name) == getattr(replayed, name), name
    assert (restored.num_refused, restored._last_number) == (replayed.num_refused, replayed._last_number)


def test_look_ups_say_what_the_registry_says(url: str, log: LogReader) -> None:
    synced(url, log)
    registry = Registry.replay(log.entries(), POLICY)
    with RegistryDatabase(url) as database:
        assert database.revoked() == registry.revoked
        assert database.overrides(TIME) == list(registry.overrides.values())
        for key, record in registry.anchors.items():
            assert database.anchor(key) == replace(record, carried=frozenset())
            assert database.resolve(key[:16]) == key
            kind, name = record.registration.kind, record.registration.name
            for asked in (kind, "identity"):
                standing = registry.standing(key, asked, TIME)
                assert database.standing(key, asked, TIME) == replace(standing, policy=POLICY.digest)
            found = database.active(kind, name)
            assert (found is not None) == (record.state == "active")
            parents = [other for other in registry.anchors if other in record.registration.parents]
            assert set(parents) <= set(database.ancestors(key))
            assert all(key in database.descendants(parent) for parent in parents)
        unknown = digest("nobody")
        standing = replace(registry.standing(unknown, "memory", TIME), policy=POLICY.digest)
        assert database.standing(unknown, "memory", TIME) == standing
        states = [record.state for record in registry.anchors.values()]
        assert database.summary()["anchors"] == {state: states.count(state) for state in set(states)}
        assert len(database.anchors(state="revoked")) == states.count("revoked")
        with pytest.raises(FieldprintError, match="no registered anchor"):
            database.resolve(unknown)


def test_verify_anchor_asks_the_database(url: str, tmp_path: Path) -> None:
    artifact = AnchorArtifact(
        name="me", kind="memory", text="a text", not_before=TIME, not_after=TIME.replace(month=12)
    )
    signed = sign_anchor(artifact, [OWNER])
    made, newer = Registration.of(artifact), anchor("newer")
    folder = tmp_path / "log"
    reader = write_log(folder, [b"no event"])
    with RegistryDatabase(url, create=True) as database:

        def check(expected: int | None, *entries: bytes) -> None:
            if entries:
                append(folder, list(entries))
                reader.refresh()
            database.sync(reader, POLICY)
            replayed = Registry.replay(reader.entries(), POLICY)
            for registry in (database, replayed):
                if expected is None:
                    assert verify_anchor(signed, POLICY, now=TIME, registry=registry).digest == made.anchor
                    continue
                with pytest.raises(VerificationError) as refused:
                    verify_anchor(signed, POLICY, now=TIME, registry=registry)
                assert refused.value.check == expected

        check(11)
        check(None, sign(made), promote(made))
        check(15, override(1, "kind", "memory"))
        check(None, lift(1))
        check(9, sign(newer), promote(newer), supersede(made, newer, OWNER))
        check(8, revoke(made))


def _sync(url: str, folder: Path, barrier: Any, counts: Any) -> None:
    reader = LogReader(folder, [POLICY.log_key])
    with RegistryDatabase(url) as database:
        barrier.wait()
        counts.put(database.sync(reader, POLICY, batch=9))


def test_concurrent_syncs_apply_each_event_once(url: str, log: LogReader, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    write_log(folder, list(log.entries()))
    rows(url)
    context = multiprocessing.get_context("spawn")
    barrier, counts = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_sync, args=(url, folder, barrier, counts)) for _ in range(3)]
    for worker in workers:
        worker.start()
    written = [counts.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sum(written) == 400
    assert rows(url) == synced(str(tmp_path / "other.db"), log)


def test_worker_processes_read_what_one_process_reads(log: LogReader, tmp_path: Path) -> None:
    assert synced(str(tmp_path / "a.db"), log, workers=2) == synced(str(tmp_path / "b.db"), log)


class Crash(BaseException):
    """Nobody catches it by accident."""


def _crash_in_front_of(database: RegistryDatabase, stop: int) -> None:
    """Statement number `stop` is not executed; commits count as statements."""
    count = itertools.count()

    def next_one(*_: Any) -> None:
        if next(count) == stop:
            raise Crash

    event.listen(database._database._engine, "before_cursor_execute", next_one)
    event.listen(database._database._engine, "commit", next_one)


def _empty(database: RegistryDatabase) -> None:
    with database._database.writing() as connection:
        for table in METADATA.sorted_tables:
            connection.execute(delete(table))


@pytest.mark.parametrize("what", ["sync", "rebuild"])
def test_a_crash_at_any_statement_loses_a_batch_at_most(
    url: str, log: LogReader, tmp_path: Path, what: str
) -> None:
    reader = write_log(tmp_path / "log", list(log.entries())[:36])
    expected = synced(str(tmp_path / "other.db"), reader)
    stop, done = 0, False
    while not done:
        with RegistryDatabase(url, create=True) as database:
            if what == "rebuild":
                database.sync(reader, POLICY)
            else:
                _empty(database)
            _crash_in_front_of(database, stop)
            with suppress(Crash):
                getattr(database, what)(reader, POLICY, batch=15)
                done = True
        stop += 1
        with RegistryDatabase(url) as database:
            position = database.position()
            assert position is None or position.next in (15, 30, 36)
        if what == "rebuild":
            assert rows(url) == expected  # the old ones, or the new ones, which are the same
        assert synced(url, reader) == expected
    assert stop > 20


def _die(url: str, folder: Path, stop: int) -> None:
    with RegistryDatabase(url) as database:

        def leave(*_: Any) -> None:
            nonlocal stop
            stop -= 1
            if stop < 0:
                os._exit(9)

        event.listen(database._database._engine, "before_cursor_execute", leave)
        database.sync(LogReader(folder, [POLICY.log_key]), POLICY, batch=20)


def test_a_process_that_dies_between_log_and_database_leaves_nothing_half_done(
    url: str, log: LogReader, tmp_path: Path
) -> None:
    folder = tmp_path / "log"
    reader = write_log(folder, list(log.entries())[:60])
    rows(url)
    context = multiprocessing.get_context("spawn")
    for stop in (5, 17, 29):
        process = context.Process(target=_die, args=(url, folder, stop))
        process.start()
        process.join()
        assert process.exitcode == 9
    assert synced(url, reader) == synced(str(tmp_path / "other.db"), reader)


def test_a_log_that_lost_entries_is_refused(url: str, log: LogReader, tmp_path: Path) -> None:
    synced(url, log)
    before = rows(url)
    short = write_log(tmp_path / "short", list(log.entries())[:300])
    with RegistryDatabase(url) as database:
        with pytest.raises(FieldprintError, match=r"the log lost some.*rebuild"):
            database.sync(short, POLICY)
        assert rows(url) == before
        assert database.rebuild(short, POLICY) == 300
    assert rows(url) == synced(str(tmp_path / "other.db"), short)


def test_a_rebuild_from_less_of_the_log_while_another_syncs_loses_no_row(url: str, tmp_path: Path) -> None:
    """What lies between would be passed over, a revocation as well as anything else."""
    made = [anchor(f"a{number}") for number in range(6)]
    folder = tmp_path / "log"
    old = write_log(folder, [sign(each) for each in made[:3]])
    assert old.checkpoint().tree_size == 3
    append(folder, [revoke(made[0]), *(sign(each) for each in made[3:])])
    reader = LogReader(folder, [POLICY.log_key])

    def rebuild(done: int, _: int) -> None:
        if done == 5:
            with RegistryDatabase(url) as other:
                assert other.rebuild(old, POLICY) == 3

    with RegistryDatabase(url, create=True) as database:
        with pytest.raises(FieldprintError, match="went back from entry 5 to 3"):
            database.sync(reader, POLICY, batch=5, progress=rebuild)
        assert database.sync(reader, POLICY) == 4
        assert database.standing(made[0].anchor, "memory", TIME).revocation is not None
    assert rows(url) == synced(str(tmp_path / "other.db"), reader)


def test_a_database_of_another_policy_or_of_no_log_is_told(url: str, log: LogReader) -> None:
    with RegistryDatabase(url, create=True) as database:
        with pytest.raises(FieldprintError, match="has read no log yet"):
            database.check_policy(POLICY)
        database.sync(log, POLICY)
        database.check_policy(POLICY)
        with pytest.raises(FieldprintError, match="another policy"):
            database.check_policy(replace(POLICY, revocation_threshold=1))


def test_what_the_database_itself_raises_is_one_of_our_errors(url: str, log: LogReader) -> None:
    synced(url, log)
    with RegistryDatabase(url) as database:
        with database._database.writing() as connection:
            connection.execute(text("ALTER TABLE registry_revocations RENAME TO elsewhere"))
        with pytest.raises(FieldprintError, match=r"cannot be read: .*revocations"):
            database.standing(digest("x"), "memory", TIME)
        with pytest.raises(FieldprintError, match=r"cannot be written: .*revocations"):
            database.rebuild(log, POLICY)


@pytest.mark.parametrize("cell", ["no json", "7", "[7]", "[" * 100_000])
def test_a_cell_that_somebody_else_wrote_is_one_of_our_errors(url: str, tmp_path: Path, cell: str) -> None:
    made = anchor("a")
    synced(url, write_log(tmp_path / "log", [sign(made)]))
    with RegistryDatabase(url) as database:
        with database._database.writing() as connection:
            connection.execute(text("UPDATE registry_anchors SET taint = :cell"), {"cell": cell})
        with pytest.raises(FormatError, match="a cell of the registry database"):
            database.standing(made.anchor, "memory", TIME)


@pytest.mark.parametrize("place", ["postgresql://me:secret@host:port/db", "://me:secret@host"])
def test_a_place_that_is_none_is_refused_without_its_password(place: str) -> None:
    with pytest.raises(FieldprintError, match="neither a file nor") as refused:
        RegistryDatabase(place)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("same_object", [True, False])
def test_a_forked_log_is_refused(url: str, log: LogReader, tmp_path: Path, same_object: bool) -> None:
    entries = list(log.entries())
    entries[200] = b"another history"
    forked = write_log(tmp_path / "forked", [*entries, b"and more"])
    with RegistryDatabase(url, create=True) as database:
        database.sync(log, POLICY)
        before = rows(url)
        if same_object:
            with pytest.raises(FieldprintError, match=r"forked or rewritten.*rebuild"):
                database.sync(forked, POLICY)
    with RegistryDatabase(url) as database, pytest.raises(FieldprintError, match="forked or rewritten"):
        database.sync(forked, POLICY)
    assert rows(url) == before


def test_an_anchor_is_verified_under_the_policy_that_filled_the_database(url: str, tmp_path: Path) -> None:
    made = AnchorArtifact("note", "memory", "Oslo is cold.", TIME, TIME + DAY)
    signed = sign_anchor(made, SIGNERS["memory"])
    reader = write_log(tmp_path / "small", [sign(Registration.of(made))])
    other = replace(POLICY, revocation_threshold=1)
    with RegistryDatabase(url, create=True) as database:

        def check(policy: Policy) -> int:
            try:
                verify_anchor(signed, policy, now=TIME, registry=database)
            except VerificationError as error:
                return error.check
            return 0

        assert check(POLICY) == 17  # it has read no log
        database.sync(reader, POLICY)
        assert check(POLICY) == 0
        assert check(Policy.from_bytes(POLICY.to_bytes())) == 0
        assert check(other) == 17
        database.rebuild(reader, other)
        assert (check(POLICY), check(other)) == (17, 0)


def test_another_policy_is_refused(url: str, log: LogReader) -> None:
    synced(url, log)
    other: Policy = replace(POLICY, revocation_threshold=1)
    with RegistryDatabase(url) as database:
        with pytest.raises(FieldprintError, match="another policy"):
            database.sync(log, other)
        assert database.rebuild(log, other) == 400


def test_an_altered_row_is_made_right_by_rebuilding(url: str, log: LogReader) -> None:
    expected = synced(url, log)
    with RegistryDatabase(url) as database:
        with database._database.writing() as connection:
            connection.execute(text("DELETE FROM registry_revocations"))
        assert rows(url) != expected
        database.rebuild(log, POLICY)
    assert rows(url) == expected


def test_what_is_no_registry_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(FieldprintError, match="no registry"):
        RegistryDatabase(url)
    with pytest.raises(FieldprintError, match="SQLite or PostgreSQL"):
        RegistryDatabase("mysql://localhost/x")
    rows(url)
    with RegistryDatabase(url) as database:
        assert database.position() is None
        assert database.standing(digest("a"), "memory", TIME).registration is None
        with database._database.writing() as connection:
            connection.execute(
                text("INSERT INTO registry_position VALUES (1, 99, 'o', 0, :d, :d)"), {"d": digest("")}
            )
    with pytest.raises(FieldprintError, match="version 99"):
        RegistryDatabase(url)


def test_the_two_keys_of_a_revocation_are_needed_here_too(url: str, tmp_path: Path) -> None:
    made = anchor("a")
    reader = write_log(tmp_path / "log", [sign(made), revoke(made, OWNER), revoke(made, SECOND)])
    synced(url, reader)
    with RegistryDatabase(url) as database:
        assert database.revoked() == {}
        assert [each["why"] for each in database.summary()["refused"]] == ["signatures", "signatures"]
