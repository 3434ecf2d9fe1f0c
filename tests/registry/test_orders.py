"""The file of orders: believed whole, or an order to stop."""

import fcntl
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldprint.anchor.statements import Override, strongest
from fieldprint.note import NoteSigner
from fieldprint.registry import EventError, Registry
from fieldprint.registry.orders import MAX_FILE_SIZE, OrdersFile, record_orders, replayed
from fieldprint.tlog import LogReader, LogWriter
from tests.registry.world import (
    LOG,
    OWNER,
    POLICY,
    STRANGER,
    TIME,
    anchor,
    lift,
    override,
    sign,
)


def order_on(file: OrdersFile, now: datetime = TIME, **of: str) -> Override | None:
    return strongest(file.in_force, now, **of)


def test_a_file_that_is_not_there_orders_nothing(tmp_path: Path) -> None:
    file = OrdersFile(tmp_path / "orders", POLICY)
    assert (file.broken, file.in_force, file.entries()) == (None, [], [])
    assert order_on(file) is None


def test_an_order_holds_for_its_scope_until_it_is_lifted(tmp_path: Path) -> None:
    file = OrdersFile(tmp_path / "orders", POLICY)
    seen = OrdersFile(tmp_path / "orders", POLICY)
    file.append(override(3, "kind", "identity", action="bypass"))
    assert seen.changed()
    assert not seen.changed()
    order = order_on(seen, kind="identity")
    assert order is not None
    assert (order.number, order.action) == (3, "bypass")
    assert order_on(seen, kind="policy") is None
    file.append(lift(3))
    assert seen.changed()
    assert order_on(seen, kind="identity") is None


def test_a_freeze_goes_before_a_bypass_and_both_end_when_they_expire(tmp_path: Path) -> None:
    file = OrdersFile(tmp_path / "orders", POLICY)
    file.append(override(1, expires=TIME + timedelta(hours=1)))
    file.append(override(2, action="bypass"))
    first, later = order_on(file), order_on(file, TIME + timedelta(hours=1))
    assert first is not None
    assert later is not None
    assert (first.number, later.number) == (1, 2)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"not an order\n", "line 1 is no override"),
        (override(1) + b"\n\n" + lift(1) + b"\n", "line 2 is no override"),
        (sign(anchor("x")) + b"\n", "line 1 is no override"),
        (override(1, keys=(OWNER,)) + b"\n", "line 1 is refused (signatures)"),
        (override(1, keys=(STRANGER,)) + b"\n", "line 1 is refused (signatures)"),
        (override(2) + b"\n" + override(2) + b"\n", "line 2 is refused (number)"),
        (override(2) + b"\n" + override(1) + b"\n", "line 2 is refused (number)"),
        (lift(7) + b"\n", "line 1 is refused (not-in-force)"),
        (override(1)[:-9] + b"\n", "line 1 is no override"),
        (b" " * (MAX_FILE_SIZE + 1), "more than"),
    ],
)
def test_what_cannot_be_believed_is_an_order_to_stop(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "orders").write_bytes(content)
    file = OrdersFile(tmp_path / "orders", POLICY)
    assert file.broken is not None
    assert what in file.broken
    with pytest.raises(EventError):
        file.append(override(9))
    assert (tmp_path / "orders").read_bytes() == content


def test_a_file_that_cannot_be_read_is_an_order_to_stop(tmp_path: Path) -> None:
    (tmp_path / "orders").mkdir()
    assert OrdersFile(tmp_path / "orders", POLICY).broken is not None


def test_an_order_that_is_not_believed_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = OrdersFile(tmp_path / "orders", POLICY)
    file.append(override(5))
    before = (tmp_path / "orders").read_bytes()
    for entry in (override(5), override(6, keys=(OWNER,)), lift(4), sign(anchor("x"))):
        with pytest.raises(EventError):
            file.append(entry)
    assert (tmp_path / "orders").read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [tmp_path / "orders"]


def test_a_file_that_is_rewritten_with_its_old_time_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "orders"
    file = OrdersFile(path, POLICY)
    file.append(override(5, action="bypass"))
    whole, before = path.read_bytes(), path.stat()
    time.sleep(0.02)
    path.write_bytes(b"x" * len(whole))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.changed()
    assert file.broken is not None


def test_a_writer_waits_for_another_one_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = OrdersFile(tmp_path / "orders", POLICY), OrdersFile(tmp_path / "orders", POLICY)
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(each.append, override(n)) for each, n in ((file, 1), (other, 2))]
        time.sleep(0.2)
        assert not any(each.done() for each in waiting)
        assert not (tmp_path / "orders").exists()
        os.close(held)
        refused = [error for each in waiting if (error := each.exception()) is not None]
    # Which of them is first is open; whichever it is, what was written is not written over.
    assert all("its number is 1" in str(error) for error in refused)
    assert len(OrdersFile(tmp_path / "orders", POLICY).entries()) == 2 - len(refused)
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    monkeypatch.setattr("fieldprint.registry.orders.PATIENCE", 0.1)
    file.append(override(9))
    os.close(held)
    assert file.last_number == 9


def test_an_order_that_would_make_the_file_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = OrdersFile(tmp_path / "orders", POLICY)
    file.append(override(1))
    before = (tmp_path / "orders").read_bytes()
    monkeypatch.setattr("fieldprint.registry.orders.MAX_FILE_SIZE", 2 * len(before) - 1)
    with pytest.raises(EventError, match="begin a new file"):
        file.append(override(2))
    assert (tmp_path / "orders").read_bytes() == before


def test_a_damaged_file_is_seen_and_a_restored_one_believed_again(tmp_path: Path) -> None:
    file = OrdersFile(tmp_path / "orders", POLICY)
    file.append(override(5, action="bypass"))
    whole = (tmp_path / "orders").read_bytes()
    (tmp_path / "orders").write_bytes(whole[:40])
    assert file.changed()
    assert file.broken is not None
    (tmp_path / "orders").write_bytes(whole)
    assert file.changed()
    assert file.broken is None


@given(st.data())
def test_no_changed_byte_of_a_file_is_believed(data: st.DataObject) -> None:
    content = override(1) + b"\n" + lift(1) + b"\n" + override(2, "kind", "memory") + b"\n"
    at = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255))
    changed = content[:at] + bytes([byte]) + content[at + 1 :]
    try:
        found = replayed(changed, POLICY)
    except EventError:
        return
    # Only another end of a line says the same: what is signed cannot be changed.
    assert found.overrides == replayed(content, POLICY).overrides


def test_orders_are_recorded_once_and_the_log_gives_the_same(tmp_path: Path) -> None:
    file = OrdersFile(tmp_path / "orders", POLICY)
    with LogWriter(tmp_path / "log", NoteSigner("test/log", LOG), create=True) as log:
        assert record_orders(file, log, POLICY).indices == ()
        log.append([b"something else"])
        file.append(override(5))
        assert record_orders(file, log, POLICY).indices == (1,)
        file.append(lift(5))
        file.append(override(8, "kind", "memory"))
        assert record_orders(file, log, POLICY).indices == (2, 3)
        assert record_orders(file, log, POLICY).indices == ()
        reader = LogReader(log.source, [POLICY.log_key])
        assert list(Registry.replay(reader.entries(), POLICY).overrides) == [8]
        again = record_orders(file, log, POLICY)
        assert (again.indices, again.refused, list(again.registry.overrides)) == ((), (), [8])
        assert again.registry.position == 4


def test_an_order_that_the_log_refuses_is_said(tmp_path: Path) -> None:
    """Two files, one log: the lower number comes too late."""
    one, other = OrdersFile(tmp_path / "one", POLICY), OrdersFile(tmp_path / "other", POLICY)
    one.append(override(5))
    other.append(override(8))
    with LogWriter(tmp_path / "log", NoteSigner("test/log", LOG), create=True) as log:
        assert record_orders(other, log, POLICY).indices == (0,)
        recorded = record_orders(one, log, POLICY)
        assert recorded.indices == ()
        (refused,) = recorded.refused
        assert "(number)" in refused
