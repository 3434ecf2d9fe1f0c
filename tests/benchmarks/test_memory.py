"""The measurement of the memory measures what it says, on a store that is small enough for a test."""

from pathlib import Path

import pytest

for name in ("numpy", "sqlalchemy", "sqlite_vec", "wordllama"):
    pytest.importorskip(name, reason="needs the extra [memory]; this is the base install")

from benchmarks import memory  # noqa: E402


def test_every_cell_is_measured_and_a_small_store_is_searched_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("QUERIES", 10), ("EXACT", 10), ("WARM", 1)):
        monkeypatch.setattr(memory, name, value)
    rows = memory.measure(tmp_path, [200, 400])
    found = {(row["cell"], row["metric"]): row["ours"] for row in rows}
    assert len(found) == len(rows) == 2 * (2 + 5 * len(memory.FILTERS))
    for size in (200, 400):
        assert found[f"{size} memories", "size of the database"] > 1024  # of a vector alone
        for filter_, _ in memory.FILTERS:
            assert found[f"{size} memories, {filter_}", "recall@10"] == 1
    again = memory.measure(tmp_path, [400])  # nothing is added: the store is there
    assert not any(row["metric"] == "added" for row in again)


def test_texts_are_the_same_in_every_run() -> None:
    encoder = memory.default_encoder()
    assert memory.Texts(encoder)[7] == memory.Texts(encoder)[7] != memory.Texts(encoder)[8]
