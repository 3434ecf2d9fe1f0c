"""A small crash campaign; the whole one is `make crash-log`. And that the campaign notices writers that are wrong."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import crash_log
from benchmarks.crash_log import BrokenPromiseError, real, simulated
from benchmarks.faulty_disk import FaultyDisk
from fieldprint.note import sign_note
from fieldprint.tlog import Checkpoint
from fieldprint.tlog.history import History


def test_faults_at_calls_lose_nothing(tmp_path: Path) -> None:
    broken: list[str] = []
    done = simulated(tmp_path, every=23, broken=broken, step=lambda _: None)
    assert not broken
    assert done["faults"] > 100 and done["ends"] > 200


def test_killed_processes_lose_nothing(tmp_path: Path) -> None:
    broken: list[str] = []
    done = real(tmp_path, kills=40, broken=broken, step=lambda _: None)
    assert not broken
    assert done["kills"] >= 40 and done["two writers"] and done["at a call"] and done["clock backwards"]
    assert done["at a swap of the record"]


def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FaultyDisk, "sync", lambda self, descriptor: None)


def _unsynced_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FaultyDisk, "sync_folder", lambda self, path: None)


def _published_before_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def sign(self: Any, edge: Any) -> None:
        checkpoint = Checkpoint(self._signer.name, edge.tree.tree_size, edge.tree.root())
        signed = sign_note(checkpoint.to_text(), [self._signer])
        self._storage.publish("checkpoint", signed, self._lying)
        self._lying = signed
        self._record.swap(self._log, self._recorded, signed)
        self._recorded, self._edge = signed, edge

    monkeypatch.setattr(History, "_sign", sign)


def _tiles_after_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def extend(self: Any, entries: Any, reached: Any) -> None:
        self.settle()
        edge = self._edge.copy()
        objects = edge.extend(entries)
        self._settled = False
        self._sign(edge)
        self._storage.write(objects)
        self._publish()
        self._settled = True

    monkeypatch.setattr(History, "extend", extend)


def _forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(History, "settle", lambda self: None)


@pytest.mark.parametrize(
    "wrong",
    [_unsynced, _unsynced_names, _published_before_recorded, _tiles_after_the_checkpoint, _forgetful],
    ids=lambda function: function.__name__.strip("_"),
)
def test_the_campaign_notices_a_writer_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Any
) -> None:
    monkeypatch.setattr(crash_log, "SCENES", ((None, (2,)), (3, (2, 2))))
    wrong(monkeypatch)
    broken: list[str] = []
    simulated(tmp_path, every=4, broken=broken, step=lambda _: None)
    assert broken


def test_broken_promises_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command, in what it records: simulated writers that do not settle, processes after which entries are lost."""
    recorded: list[dict[str, Any]] = []
    monkeypatch.setattr(crash_log, "SCENES", ((3, (2, 2)),))
    monkeypatch.setattr(crash_log, "write_results", lambda _name, rows, **_: recorded.extend(rows))
    monkeypatch.setattr("sys.argv", ["crash_log", "--kills", "4", "--every", "4"])
    found = {}
    for wrong in (False, True):
        if wrong:
            _forgetful(monkeypatch)
            monkeypatch.setattr(crash_log, "noted", _lost)
        recorded.clear()
        code = crash_log.main()
        found[wrong] = next(row["ours"] for row in recorded if row["metric"] == "broken promises")
        assert code == int(wrong)
    assert found[False] == 0 and found[True] > 4


def _lost(path: Path, lines: Any, seen: Any) -> None:
    raise BrokenPromiseError(f"{path.name}: an entry is lost")
