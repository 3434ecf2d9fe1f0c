"""Slot digests: against the bytes themselves, on a CPU at once and by a thread, and on a GPU behind a stream."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import blake3
import numpy as np
import pytest
import torch

from fieldprint.kvcache import PagePool, SlotHasher
from fieldprint.kvcache.pool import PageLayout
from tests.synchronizing import no_synchronization

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LAYOUT = PageLayout(num_layers=3, num_kv_heads=2, head_dim=16, page_size=4)


def naive(pool: PagePool, slot: int) -> bytes:
    """BLAKE3 over layer by layer, K before V."""
    page, offset = divmod(slot, pool.layout.page_size)
    parts = [(layer, part) for layer in range(pool.layout.num_layers) for part in range(2)]
    raw = [
        pool.storage[layer, part, page, offset].cpu().view(torch.uint8).numpy().tobytes()
        for layer, part in parts
    ]
    return blake3.blake3(b"".join(raw)).digest()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slots", [[0], [7, 6, 5], [4, 5, 6, 7, 8, 9, 10], [2, 2, 39, 0], []], ids=str)
def test_slot_digests_are_blake3_of_the_bytes_in_order(
    device: str, dtype: torch.dtype, slots: list[int]
) -> None:
    pool = PagePool(PageLayout(3, 2, 16, page_size=4, dtype=dtype), 10, device=device)
    pool.storage.normal_()
    found = SlotHasher(pool).now(np.array(slots, dtype=np.int64))
    assert found.shape == (len(slots), 32)
    assert [row.tobytes() for row in found] == [naive(pool, slot) for slot in slots]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_any_flipped_bit_changes_the_digest_of_its_slot_and_no_other(dtype: torch.dtype) -> None:
    pool = PagePool(PageLayout(1, 1, 2, page_size=2, dtype=dtype), 1)
    hasher, slots = SlotHasher(pool), np.arange(2)
    before = hasher.now(slots)
    raw = pool.storage.view(torch.uint8).view(2, 2, -1)
    for part, slot, index in np.ndindex(*raw.shape):
        for bit in range(8):
            raw[part, slot, index] ^= 1 << bit
            differs = (hasher.now(slots) != before).any(1)
            assert differs[slot] and not differs[1 - slot]
            raw[part, slot, index] ^= 1 << bit
    assert np.array_equal(hasher.now(slots), before)


def test_a_thread_gives_the_same_digests() -> None:
    pool = PagePool(LAYOUT, 10)
    pool.storage.normal_()
    slots = np.arange(40)[::-1].copy()
    with ThreadPoolExecutor(1) as executor:
        hashing = SlotHasher(pool, executor).later(slots)
        assert np.array_equal(hashing.digests(), SlotHasher(pool).now(slots))
        assert hashing.ready()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [[-1], [40], [3, 2**40]], ids=str)
def test_slots_outside_the_pool_are_refused(device: str, bad: list[int]) -> None:
    hasher = SlotHasher(PagePool(LAYOUT, 10, device=device))
    with pytest.raises(ValueError, match="slot"):
        hasher.now(np.array(bad, dtype=np.int64))


@pytest.mark.gpu
def test_hashing_on_a_gpu_waits_for_what_was_queued_before_and_for_nothing_after() -> None:
    pool = PagePool(LAYOUT, 10, device="cuda")
    hasher, slots = SlotHasher(pool), np.arange(40)
    for value in range(20):
        torch.cuda._sleep(2_000_000)
        pool.storage.fill_(value)
        with no_synchronization():
            hashing = hasher.later(slots)
        found = hashing.digests()
        assert hashing.ready() and found[0].tobytes() == naive(pool, 0), value


class Killed(ThreadPoolExecutor):
    """A thread that takes the work and dies: before it begins, or of it."""

    def __init__(self, *, of_it: bool) -> None:
        super().__init__(1)
        self.of_it = of_it

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **options: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        if self.of_it:
            future.set_running_or_notify_cancel()
            future.set_exception(SystemExit())
        return future


@pytest.mark.parametrize("of_it", [False, True])
def test_digests_come_although_the_thread_has_died(of_it: bool) -> None:
    pool = PagePool(LAYOUT, 10)
    pool.storage.normal_()
    slots = np.arange(40)
    with Killed(of_it=of_it) as executor:
        later = SlotHasher(pool, executor).later(slots)
        assert np.array_equal(later.digests(), SlotHasher(pool).now(slots))
