"""The benchmark of BLAKE3 on pages: its pool, what it compares, and its rows, on the CPU."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from benchmarks import blake3_gpu as benchmark  # noqa: E402
from fieldprint.blake3.pages import hash_pages  # noqa: E402


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> benchmark.Pool:
    """Four pages of the 8B shape."""
    monkeypatch.setattr(benchmark, "DEVICE", "cpu")
    monkeypatch.setattr(benchmark, "SIZES", {"8B": (4, 8)})
    return benchmark.Pool("8B")


def test_pool_has_slots_of_128_kib_and_pages_of_16_slots(pool: benchmark.Pool) -> None:
    assert [len(view) for view in pool.views.values()] == [64, 4]
    assert pool.count("slots", 4) == 32 and pool.count("pages", 4) == 2
    assert pool.words(4 * 2**20).nbytes == 4 * 2**20
    assert pool.words(8 * 2**20).data_ptr() == pool.storage.data_ptr()
    assert sorted(pool.orders["slots"].tolist()) == list(range(64))
    slot, page = pool.views["slots"][17], pool.views["pages"][1]
    assert torch.equal(slot.view(torch.uint8), page[:, :, 1].view(torch.uint8))


def test_digests_are_compared_with_the_package(pool: benchmark.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    view, order = pool.views["slots"], pool.orders["slots"][:5]
    benchmark.check_same(view, order)
    benchmark.check_same(view, None)
    monkeypatch.setattr(benchmark, "hash_pages", lambda pages, indices: hash_pages(pages, indices) ^ 1)
    with pytest.raises(RuntimeError, match="another digest"):
        benchmark.check_same(view, order)


def test_ratio_is_above_one_where_ours_is_better(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.row("a", "speed", "TB/s", 1.5, {}, 0.5)["ratio"] == 3
    assert benchmark.row("a", "time", "us", 10.0, {}, 25.0)["ratio"] == 2.5
    assert benchmark.row("a", "time", "us", 10.0, {}, None)["ratio"] is None
    assert capsys.readouterr().out.count("\n") == 3


def test_roof_is_the_one_of_the_documents() -> None:
    """456 operations a block and 1/16 more for the tree; at 1.98 GHz 132 multiprocessors give 2.21 TB/s."""
    assert round(benchmark.ROOF_OPERATIONS, 2) == 7.57
    assert round(64 * 132 * 1.98e9 / benchmark.ROOF_OPERATIONS / 1e12, 2) == 2.21
