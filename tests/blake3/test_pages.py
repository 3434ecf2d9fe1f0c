"""BLAKE3 of pages against the `blake3` package: the kernel on a GPU, else under Triton's interpreter on small shapes."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import blake3
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import numpy as np  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor  # noqa: E402

from fieldprint.blake3 import pages as module  # noqa: E402
from fieldprint.blake3.pages import (  # noqa: E402
    PLAIN,
    Mode,
    hash_pages,
    merge_subtrees,
    subtree_values,
    verify_pages,
)
from tests.synchronizing import no_synchronization  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ONES = b"\xff" * 32
KEY, CONTEXT = bytes(range(100, 132)), "fieldprint test of pages"
OFFICIAL = json.loads((Path(__file__).parent / "test_vectors.json").read_text())  # see test_blake3.py
KEYWORDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "keyed": {"key": KEY},
    "derive": {"derive_key_context": CONTEXT},
}
MODES = {"plain": PLAIN, "keyed": Mode.keyed(KEY), "derive": Mode.derive_key(CONTEXT)}


def drawn(*shape: int, device: str = DEVICE, seed: int = 0) -> Tensor:
    """Random bytes."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw).to(device)


def content(page: Tensor) -> bytes:
    """Its bytes in the order of its elements."""
    return page.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes()


def reference(pages: Tensor, indices: Sequence[int] | None = None, mode: str = "plain") -> list[bytes]:
    """Digests by the package; ones where there is no page."""
    return [
        blake3.blake3(content(pages[i]), **KEYWORDS[mode]).digest() if 0 <= i < len(pages) else ONES
        for i in (range(len(pages)) if indices is None else indices)
    ]


def rows(digests: Tensor) -> list[bytes]:
    assert digests.dtype == torch.uint8
    return [row.tobytes() for row in digests.cpu().numpy()]


def as_tensor(digests: Sequence[bytes], device: str = DEVICE) -> Tensor:
    return torch.tensor([list(digest) for digest in digests], dtype=torch.uint8, device=device)


def set_bits(bitmap: Tensor, count: int) -> list[int]:
    """Which of `count` bits are set; none behind them may be."""
    assert bitmap.dtype == torch.int32 and bitmap.shape == (-(-count // 32),)
    found = [32 * w + b for w, word in enumerate(bitmap.tolist()) for b in range(32) if word >> b & 1]
    assert all(bit < count for bit in found)
    return found


def check(
    pages: Tensor, indices: Sequence[int] | None = None, mode: str = "plain", dtype: Any = None
) -> None:
    """Digests of the kernel are the package's."""
    given = None if indices is None else torch.tensor(indices, dtype=dtype or torch.int64, device=DEVICE)
    found = rows(hash_pages(pages, given, mode=MODES[mode], use_kernel=True))
    assert found == reference(pages, indices, mode)


def slots_of(pool: Tensor) -> Tensor:
    """A pool [layers, 2, pages, slots, heads, dim] slot by slot."""
    return pool.flatten(2, 3).permute(2, 0, 1, 3, 4)


def pages_of(pool: Tensor) -> Tensor:
    """A pool [layers, 2, pages, slots, heads, dim] page by page."""
    return pool.permute(2, 0, 1, 3, 4, 5)


# The first four run everywhere: one call of the kernel each, or two.


def test_pages_equal_package_under_a_key_with_indices_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Six chunks a page, in runs of 1,024 bytes, read in words; one program merges all pages."""
    monkeypatch.setattr(module, "SPREAD", 1)
    pool = drawn(3, 2, 5, 16, 2, 32)
    pages = pages_of(pool)
    assert module._unit(pages, module._runs(pages)) == 4
    check(pages, [4, -1, 0, 5, 2, 2, -(2**31), 2**31 - 1], "keyed", torch.int32)


def test_pages_equal_package_at_odd_places() -> None:
    """Two chunks a page, the second not full, in runs of 77 bytes from byte 3 on: heads lie before slots."""
    memory = drawn(3 + 7 * 3 * 5 * 77)
    check(memory[3:].view(7, 3, 5, 77).permute(0, 2, 1, 3), mode="derive")


def test_pages_equal_what_is_expected_but_where_bits_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """In two slices of the bitmap; index 999 is not there, and ones are expected of it."""
    monkeypatch.setattr(module, "SCRATCH", 1)
    pages, count = drawn(33, 100), 45
    indices = [i % 33 for i in range(count)]
    indices[38] = 999
    expected = as_tensor(reference(pages, indices))
    for wrong, byte in ((0, 0), (31, 31), (32, 16), (44, 5)):
        expected[wrong, byte] ^= 1
    given = torch.tensor(indices, device=DEVICE)
    bitmap = verify_pages(pages, expected, given, use_kernel=True)
    assert set_bits(bitmap, count) == [0, 31, 32, 38, 44]


def test_pages_equal_subtrees_of_their_concatenation() -> None:
    """An append hashes new pages only: values of the old ones are reused as they are."""
    old, new = drawn(3, 2048), drawn(1, 1500, seed=1)
    mode = MODES["keyed"]
    values = subtree_values(old, torch.arange(0, 6, 2, device=DEVICE), mode=mode, use_kernel=True)
    before = blake3.blake3(content(old), key=KEY).digest()
    assert rows(merge_subtrees(values, mode=mode)[None]) == [before]
    appended = subtree_values(new, torch.tensor([6], device=DEVICE), mode=mode, use_kernel=True)
    after = blake3.blake3(content(old) + content(new), key=KEY).digest()
    assert rows(merge_subtrees(torch.cat([values, appended]), mode=mode)[None]) == [after]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["hash", "keyed_hash", "derive_key"])
def test_kernel_passes_the_official_vectors(name: str) -> None:
    mode = {
        "hash": PLAIN,
        "keyed_hash": Mode.keyed(OFFICIAL["key"].encode()),
        "derive_key": Mode.derive_key(OFFICIAL["context_string"]),
    }[name]
    for case in OFFICIAL["cases"]:
        message = (torch.arange(case["input_len"], device=DEVICE) % 251).to(torch.uint8)
        (found,) = rows(hash_pages(message[None], mode=mode))
        assert found.hex() == case[name][:64], case["input_len"]


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_kernel_equals_package_at_random_lengths(mode: str) -> None:
    draw = np.random.default_rng(7)
    memory = drawn(2 * 2**20 + 7)
    for length in [2**20, 2**20 - 1, *draw.integers(0, 2**20, 30).tolist()]:
        at = int(draw.integers(0, 8))
        check(memory[at : at + 2 * length].view(2, length), mode=mode)


@pytest.mark.gpu
def test_kernel_equals_package_for_every_number_of_chunks() -> None:
    """Odd counts carry a node up; behind 128 a second launch merges."""
    memory = drawn(2, 2**18 + 1024)
    for chunks in [*range(1, 40), 63, 65, 127, 128, 129, 130, 191, 255, 257]:
        check(memory[:, : chunks * 1024])
        check(memory[:, : chunks * 1024 - 1000])


POOLS = {
    "demo": ((30, 2, 9, 16, 3, 64), torch.float32),
    "8B": ((32, 2, 9, 16, 8, 128), torch.bfloat16),
    "fp8": ((3, 2, 9, 16, 1, 64), torch.float8_e4m3fn),
    "odd": ((3, 2, 9, 5, 3, 7), torch.float16),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "slots": slots_of,
    "pages": pages_of,
    "K of a layer": lambda pool: pool[1, 0],
    "V of all layers": lambda pool: pool[:, 1].transpose(0, 1),
    "heads first": lambda pool: pool[2, 1].permute(0, 2, 1, 3),
    "from the second page on": lambda pool: pages_of(pool)[1:],
    "every second slot": lambda pool: slots_of(pool)[1::2],
    "half a page": lambda pool: pages_of(pool)[:, :, :, : pool.shape[3] // 2],
}


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("pool", "layout"),
    [
        *(("8B", layout) for layout in LAYOUTS),
        *((pool, layout) for pool in ("demo", "odd") for layout in ("slots", "pages")),
        ("odd", "heads first"),
        ("fp8", "slots"),
    ],
)
def test_kernel_equals_package_in_every_layout(pool: str, layout: str) -> None:
    """With indices in any order, some twice and some of pages that are not there."""
    shape, dtype = POOLS[pool]
    view = LAYOUTS[layout](drawn(*shape[:-1], shape[-1] * dtype.itemsize).view(dtype))
    order = torch.randperm(len(view), generator=torch.Generator().manual_seed(1)).tolist()
    check(view, [*order[:20], -1, len(view), 2**40, order[0]])


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["slots", "pages"])
def test_kernel_hashes_all_pages_without_indices(layout: str) -> None:
    shape, dtype = POOLS["8B"]
    check(LAYOUTS[layout](drawn(*shape[:-1], shape[-1] * dtype.itemsize).view(dtype)))


@pytest.mark.gpu
def test_kernel_reads_pages_that_lie_gigabytes_apart() -> None:
    """The last layer is over 2^31 words from the first: 12 GiB, of which 64 slots are filled."""
    if torch.cuda.mem_get_info()[0] < 14 * 2**30:
        pytest.skip("needs 14 GiB of the GPU's memory")
    storage = torch.empty(64, 98304, 2048, dtype=torch.uint8, device=DEVICE)
    storage[:, -64:] = drawn(64, 64, 2048)
    slots = storage.transpose(0, 1)
    assert 63 * storage.stride(0) // 4 > 2**31
    last = list(range(98304 - 64, 98304))
    check(slots, last)
    check(slots[:, :, 1:], last[:3])  # in bytes


@pytest.mark.gpu
@pytest.mark.parametrize("length", [1000, 5120])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 200])
def test_kernel_sets_the_bits_of_what_is_not_expected(
    length: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SCRATCH", 64 * 160)  # slices of 160 messages and of 32
    pages = drawn(count, length)
    expected = hash_pages(pages)
    assert rows(expected) == reference(pages)
    assert set_bits(verify_pages(pages, expected), count) == []
    wrong = sorted({0, 31, 32, count - 1} & set(range(count)))
    for at in wrong:
        pages[at, (at * 7) % length] ^= 1 << at % 8
    assert set_bits(verify_pages(pages, expected), count) == wrong
    outside = torch.full((count,), count, device=DEVICE)
    ones = torch.full_like(expected, 255)
    assert set_bits(verify_pages(pages, ones, outside), count) == list(range(count))


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_subtrees_have_the_root_of_the_whole_message(mode: str) -> None:
    """A sequence grows page by page in a shuffled pool; only what is new is hashed, the last page in part."""
    chunks, count = 32, 13
    pool = drawn(40, chunks * 1024)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))[:count].to(DEVICE)
    values = torch.empty(0, 32, dtype=torch.uint8, device=DEVICE)
    for n in range(1, count):
        first = torch.tensor([(n - 1) * chunks], device=DEVICE)
        values = torch.cat([values, subtree_values(pool, first, order[n - 1 : n], mode=MODES[mode])])
        message = b"".join(content(pool[i]) for i in order[:n].tolist())
        if n > 1:
            found = merge_subtrees(values, mode=MODES[mode])
            assert rows(found[None]) == [blake3.blake3(message, **KEYWORDS[mode]).digest()]
        for length in (1, 1024, 5000, chunks * 1024 - 1):
            part = subtree_values(pool[:, :length], first + chunks, order[n : n + 1], mode=MODES[mode])
            whole = message + content(pool[order[n], :length])
            found = merge_subtrees(torch.cat([values, part]), mode=MODES[mode])
            assert rows(found[None]) == [blake3.blake3(whole, **KEYWORDS[mode]).digest()]


@pytest.mark.gpu
def test_counters_of_chunks_go_past_32_bits() -> None:
    """Against the twin's compression of one chunk at that place."""
    from fieldprint.blake3.naive import CHUNK_END, CHUNK_START, IV, _compress

    page = drawn(1, 1024)
    for first in (1, 2**32 - 1, 2**32, 2**40 + 5):
        cv: Sequence[int] = IV
        for i in range(16):
            flags = (CHUNK_START if i == 0 else 0) | (CHUNK_END if i == 15 else 0)
            cv = _compress(cv, content(page[0, 64 * i : 64 * i + 64]), first, flags)
        found = subtree_values(page, torch.tensor([first], device=DEVICE))
        assert found[0].cpu().numpy().view("<u4").tolist() == cv


@pytest.mark.gpu
@pytest.mark.parametrize("length", [1000, 200_000])
def test_graph_replay_follows_pages_indices_and_what_is_expected(length: int) -> None:
    pages, indices = drawn(50, length), torch.arange(40, device=DEVICE)
    expected = hash_pages(pages, indices)
    verify_pages(pages, expected, indices)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = hash_pages(pages, indices)
        bitmap = verify_pages(pages, expected, indices)
    for turn in range(3):
        pages.copy_(drawn(50, length, seed=10 + turn))
        chosen = [(7 * i + turn) % 52 for i in range(40)]  # 50 and 51 are not there
        indices.copy_(torch.tensor(chosen))
        want = reference(pages, chosen)
        expected.copy_(as_tensor(want))
        expected[5 + turn, 3] ^= 1
        graph.replay()
        assert rows(found) == want
        absent = [i for i, index in enumerate(chosen) if index >= 50]
        assert set_bits(bitmap, 40) == sorted({5 + turn, *absent})


@pytest.mark.gpu
def test_hashing_does_not_synchronize() -> None:
    pages = drawn(64, 4096)
    expected, first = hash_pages(pages), torch.arange(0, 256, 4, device=DEVICE)
    torch.cuda.synchronize()
    with no_synchronization():
        hash_pages(pages)
        verify_pages(pages, expected)
        merge_subtrees(subtree_values(pages, first))


# What needs no kernel.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", [0, 1, 1024, 5000])
def test_package_hashes_and_compares_the_same(mode: str, length: int) -> None:
    pages, indices = drawn(35, length, device="cpu"), [*range(35), -1, 35, 3, -(2**40)]
    given = torch.tensor(indices)
    found = hash_pages(pages, given, mode=MODES[mode])
    assert rows(found) == reference(pages, indices, mode)
    assert rows(hash_pages(pages, mode=MODES[mode])) == reference(pages, None, mode)
    found[31, 0] ^= 128
    bitmap = verify_pages(pages, found, given, mode=MODES[mode])
    assert set_bits(bitmap, 39) == [31, 35, 36, 38]


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float8_e4m3fn, torch.complex64])
def test_package_hashes_bytes_of_any_dtype(dtype: Any) -> None:
    pages = drawn(4, 3, 16, device="cpu")
    pages = (pages & 1 if dtype == torch.bool else pages).view(dtype).transpose(1, 2)
    assert rows(hash_pages(pages)) == reference(pages)


def test_no_pages_have_no_digests() -> None:
    pages, none = drawn(4, 7, device="cpu"), torch.empty(0, dtype=torch.int32)
    for use_kernel in (False, True):
        digests = hash_pages(pages, none, use_kernel=use_kernel)
        assert digests.shape == (0, 32) and digests.dtype == torch.uint8
        assert verify_pages(pages[:0], digests, use_kernel=use_kernel).shape == (0,)


def test_parameters_that_need_gradients_are_hashed_too() -> None:
    pages = torch.nn.Parameter(torch.arange(12.0).view(3, 4))
    assert rows(hash_pages(pages)) == reference(pages.detach())


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_runs_name_the_bytes_in_the_order_of_the_elements(data: st.DataObject) -> None:
    """Any permutation, slices and repetition: refused, or every byte's place is what torch's own order gives."""
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    dtype = data.draw(st.sampled_from([torch.uint8, torch.int16, torch.float32]))
    size = int(np.prod(shape)) * dtype.itemsize
    memory = torch.arange(size, dtype=torch.int32).to(torch.uint8).view(dtype).view(shape)
    places = torch.arange(size // dtype.itemsize).view(shape)  # of the elements
    order = data.draw(st.permutations(range(len(shape))))
    cuts = [data.draw(st.tuples(st.integers(0, 1), st.integers(1, 2))) for _ in shape]
    cut = tuple(
        slice(start if n > start else 0, None, step) for n, (start, step) in zip(shape, cuts, strict=True)
    )
    repeat = data.draw(st.integers(1, 3))

    def view(x: Tensor) -> Tensor:
        x = x[cut].permute(*order)
        return x.unsqueeze(1).expand(x.shape[0], repeat, *x.shape[1:])

    pages, places = view(memory), view(places)
    try:
        runs = module._runs(pages)
    except ValueError as error:
        assert "more than two strides" in str(error)  # noqa: PT017
        return
    first = places[0].reshape(-1)
    want = [int(p - first[0]) * dtype.itemsize + b for p in first for b in range(dtype.itemsize)]
    steps = itertools.product(range(runs.outer), range(runs.inner), range(runs.run))
    assert [o * runs.outer_stride + i * runs.inner_stride + b for o, i, b in steps] == want


def test_pages_at_any_address_are_read_in_bytes() -> None:
    """A storage that begins at an odd address, and an offset that makes up for it."""
    memory = np.zeros(4096 + 32, dtype=np.uint8)
    base = 15 + -memory.ctypes.data % 16  # 15 bytes behind a multiple of 16
    pages = torch.from_numpy(memory[base : base + 4001])[1:].view(2, 2000)[:, :1984]
    assert pages.data_ptr() % 16 == 0 and pages.stride(0) % 16 == 0 and pages.shape[1] % 64 == 0
    assert module._unit(pages, module._runs(pages)) == 1
    whole = torch.zeros(2, 2000, dtype=torch.uint8)[:, :1984]
    assert module._unit(whole, module._runs(whole)) == 4


def test_what_cannot_be_hashed_is_refused() -> None:
    pages = drawn(4, 3, 5, 7, 2, device="cpu")
    for bad, says in (
        (pages.permute(0, 3, 1, 4, 2), "more than two strides"),
        (pages[0, 0, 0, 0, 0], "num_pages"),
        (torch.zeros(1, dtype=torch.uint8).expand(2, 2**30 + 1), "longer than"),
    ):
        for use_kernel in (False, True):
            with pytest.raises(ValueError, match=says):
                hash_pages(bad, use_kernel=use_kernel)


@pytest.mark.parametrize(
    "indices",
    [
        torch.zeros(2),
        torch.zeros(2, dtype=torch.uint8),
        torch.zeros(2, 1, dtype=torch.int64),
        torch.zeros(4, dtype=torch.int64)[::2],
        torch.zeros(2, dtype=torch.int64, device="meta"),
    ],
)
def test_indices_of_another_kind_are_refused(indices: Tensor) -> None:
    pages = drawn(4, 7, device="cpu")
    with pytest.raises(ValueError, match="indices must be int32 or int64"):
        hash_pages(pages, indices)
    with pytest.raises(ValueError, match=r"first_chunks must be int64 \[n\]"):
        subtree_values(pages[:2], indices if indices.dtype != torch.int64 else indices.int(), use_kernel=True)


@pytest.mark.parametrize(
    "expected",
    [
        torch.zeros(3, 32, dtype=torch.uint8),
        torch.zeros(4, 32, dtype=torch.int8),
        torch.zeros(4, 64, dtype=torch.uint8)[:, ::2],
        torch.zeros(130, dtype=torch.uint8)[2:].view(4, 32),
        torch.zeros(4, 32, dtype=torch.uint8, device="meta"),
    ],
)
def test_expected_digests_of_another_kind_are_refused(expected: Tensor) -> None:
    with pytest.raises(ValueError, match="expected must be"):
        verify_pages(drawn(4, 7, device="cpu"), expected)


def test_subtrees_need_the_kernel_and_two_values() -> None:
    pages = drawn(4, 1024, device="cpu")
    with pytest.raises(ValueError, match="by the kernel only"):
        subtree_values(pages, torch.arange(4))
    with pytest.raises(ValueError, match="first_chunks must have 4 numbers"):
        subtree_values(pages, torch.arange(3), use_kernel=True)
    for bad in (torch.zeros(1, 32), torch.zeros(2, 31), torch.zeros(64)):
        with pytest.raises(ValueError, match="n of at least 2"):
            merge_subtrees(bad.byte())
    with pytest.raises(ValueError, match="n of at least 2"):
        merge_subtrees(torch.zeros(2, 32))


def test_a_key_has_32_bytes_and_is_not_printed() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Mode.keyed(bytes(31))
    mode = Mode.keyed(KEY)
    assert repr(KEY)[2:-1] not in repr(mode) and str(mode.words[0]) not in repr(mode)
