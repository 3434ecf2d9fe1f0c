"""Slot digests: BLAKE3 of one token's K/V where it lies, layer by layer, K before V.

A slot's digest is bound to it right after the pass that wrote it; whoever checks the slot later compares with that. On a
GPU the hashing is queued on a stream of its own, behind what was queued before it, and asked for later; on a CPU it is
done by whoever asks, or by a thread.
"""

import threading
from concurrent.futures import Executor, Future
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fieldprint import blake3
from fieldprint.kvcache.pool import PagePool

Digests = NDArray[np.uint8]  # [n, 32]
Slots = NDArray[np.int64]  # page * page_size + offset


class Hashing(Protocol):
    """Digests that were asked for."""

    def ready(self) -> bool:
        """Whether `digests` would not wait."""

    def digests(self) -> Digests:
        """The digests [n, 32], when they are there."""


class SlotHasher:
    """Hashes slots of a pool; the same calls on a CPU and on a GPU.

    Args:
        pool: of the slots.
        executor: a thread for `later` on a CPU; without one the work is done when its result is asked for.
        urgent: whether a GPU gives this hasher's kernels the priority of a decode step's, for few slots that must not wait.
    """

    def __init__(self, pool: PagePool, executor: Executor | None = None, *, urgent: bool = False) -> None:
        self._pool, self._executor = pool, executor
        self._staging = threading.local()  # where each thread lays a slot's bytes in a row
        device = pool.storage.device
        self._stream = (
            None if device.type == "cpu" else torch.cuda.Stream(device, priority=-1 if urgent else 0)
        )

    def now(self, slots: Slots) -> Digests:
        """The digests of `slots` as they are at this moment.

        Raises:
            ValueError: a slot is outside the pool.
        """
        self._check(slots)
        return self.on_host(slots) if self._stream is None else self.later(slots).digests()

    def later(self, slots: Slots, *, behind_queue: bool = True) -> Hashing:
        """The digests of `slots` as they are once everything queued on the device before this call has run.

        Args:
            slots: [n].
            behind_queue: False lets a GPU begin at once, beside what is queued, for slots that nothing queued writes.

        Raises:
            ValueError: a slot is outside the pool.
        """
        self._check(slots)
        if self._stream is not None:
            return _OnDevice(self._pool, slots, self._stream, behind_queue=behind_queue)
        if self._executor is not None:
            return _InThread(self, slots, self._executor.submit(self.on_host, slots))
        return _WhenAsked(self, slots)

    def _check(self, slots: Slots) -> None:
        count = self._pool.num_pages * self._pool.layout.page_size
        if len(slots) and not 0 <= slots.min() <= slots.max() < count:
            raise ValueError(f"slots {slots.min()} to {slots.max()} are not all within the pool of {count}")

    def on_host(self, slots: Slots) -> Digests:
        """Reads the memory itself, without torch's threads, so that a thread may call it while others compute."""
        source = self._pool.storage.flatten(2, 3).flatten(0, 1).flatten(2).view(torch.uint8).numpy()
        size = self._pool.layout.page_size
        # A fresh array each time would be mapped, zeroed and unmapped.
        if not hasattr(self._staging, "bytes"):
            self._staging.bytes = np.empty((size, source.shape[0], source.shape[2]), dtype=np.uint8)
        staged = self._staging.bytes
        found = np.empty((len(slots), 32), dtype=np.uint8)
        for start in range(0, len(slots), size):
            part = slots[start : start + size]
            first, count = int(part[0]), len(part)
            in_a_row = np.array_equal(part, np.arange(first, first + count))
            chosen = source[:, first : first + count] if in_a_row else source[:, part]
            np.copyto(staged[:count], chosen.transpose(1, 0, 2))
            for offset in range(count):
                found[start + offset] = np.frombuffer(blake3.digest(staged[offset].data), dtype=np.uint8)
        return found


class _WhenAsked:
    """On a CPU: hashed by whoever asks."""

    def __init__(self, hasher: SlotHasher, slots: Slots) -> None:
        self._hasher, self._slots = hasher, slots

    def ready(self) -> bool:
        return True

    def digests(self) -> Digests:
        return self._hasher.on_host(self._slots)


class _InThread:
    """On a CPU: hashed by a thread, or by whoever asks if the thread did not come to it or has died."""

    def __init__(self, hasher: SlotHasher, slots: Slots, future: "Future[Digests]") -> None:
        self._hasher, self._slots, self._future = hasher, slots, future

    def ready(self) -> bool:
        return self._future.done()

    def digests(self) -> Digests:
        if self._future.cancel() or self._future.exception() is not None:
            return self._hasher.on_host(self._slots)
        return self._future.result()


class _OnDevice:
    """On a GPU: hashed on a side stream, and copied to page-locked memory of the host behind an event."""

    def __init__(
        self, pool: PagePool, slots: Slots, stream: torch.cuda.Stream, *, behind_queue: bool
    ) -> None:
        from fieldprint.blake3.pages import hash_pages

        if behind_queue:
            stream.wait_stream(torch.cuda.current_stream(pool.storage.device))
        host = torch.from_numpy(np.ascontiguousarray(slots)).pin_memory()
        with torch.cuda.stream(stream):
            indices = host.to(pool.storage.device, non_blocking=True)
            found = hash_pages(pool.slots(), indices)
            self._host = torch.empty(found.shape, dtype=torch.uint8, pin_memory=True)
            self._host.copy_(found, non_blocking=True)
            self._event = torch.cuda.Event(blocking=True)
            self._event.record(stream)

    def ready(self) -> bool:
        return bool(self._event.query())

    def digests(self) -> Digests:
        self._event.synchronize()
        return self._host.numpy()
