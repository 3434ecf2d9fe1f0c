"""The worker's part: anchors in pinned blocks, digests bound to what was written, and whether it is still so.

Two digests, because two things are asked:

- of a slot, bound right after the step that wrote it, over its K and V layer by layer in the order of heads: the
  canonical bytes, the same for every backend. Leaves are made of these.
- of a whole block, over its memory as it lies, taken at its first check together with one of its slots: the cheap one, with
  which all that a request depends on is checked before any of it is final.

Both are taken beside the engine, by a thread or on a stream of their own, and reported in a later step. What a step has
written is bound before the next step writes.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from blake3 import blake3 as new_hash
from numpy.typing import NDArray
from torch import Tensor

from fieldprint import blake3
from fieldprint.adapters.vllm.layout import BlockLayout, flat_view
from fieldprint.adapters.vllm.messages import Digests, Slots, Span
from fieldprint.errors import IntegrityError

T = TypeVar("T")
ROWS = 1024  # slots that are gathered at once: a GPU's memory for it is some 100 MB
NO_DAMAGE: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Installed:
    """An anchor in blocks of this worker: its values [A, num_layers, 2, heads, dim] for repairs, and its slots' digests [A, 32]."""

    root: str
    blocks: tuple[int, ...]
    values: Tensor
    digests: Digests

    def span(self, block_size: int) -> Span:
        """All of it, for a check."""
        return Span(self.blocks, len(self.blocks) * block_size)


class Asked(Generic[T]):
    """Something that was asked for: `ready` once a thread has found it, or an event has happened on a GPU."""

    def __init__(self, found: "Future[Tensor] | OnDevice", read: Callable[[NDArray[np.uint8]], T]) -> None:
        self._found, self._read = found, read

    def ready(self) -> bool:
        """Whether `result` would not wait."""
        return self._found.done()

    def result(self) -> T:
        """What was found; waits for it."""
        return self._read(self._found.result().numpy())

    def before(self, device: torch.device) -> None:
        """Let what is computed from now on wait for it: on a GPU its stream does, not the host."""
        if isinstance(self._found, OnDevice):
            self._found.before(device)
        else:
            self._found.result()


class OnDevice:
    """A tensor on its way to page-locked memory, behind what `stream` does before."""

    def __init__(self, found: Tensor, stream: torch.cuda.Stream) -> None:
        self._host = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
        self._host.copy_(found, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(stream)

    def before(self, device: torch.device) -> None:
        """Let the current stream wait for it."""
        torch.cuda.current_stream(device).wait_event(self._event)

    def done(self) -> bool:
        """Whether it is there."""
        return bool(self._event.query())

    def result(self) -> Tensor:
        """It, when it is there."""
        self._event.synchronize()
        return self._host


class Residency:
    """Digests of the blocks of one worker.

    Args:
        caches: of each layer, [num_blocks, ...], all alike.
        layout: of their blocks.
        use_kernel: gather slots by our Triton kernel; None: on a GPU.
    """

    def __init__(
        self, caches: Sequence[Tensor], layout: BlockLayout, *, use_kernel: bool | None = None
    ) -> None:
        self.layout, self.size = layout, layout.block_size
        self._flats = [flat_view(cache) for cache in caches]
        self.device = caches[0].device
        blocks = caches[0].shape[0]
        self.bound = torch.zeros(blocks * self.size, 32, dtype=torch.uint8, device=self.device)
        self._of_block = torch.zeros(blocks, 32, dtype=torch.uint8, device=self.device)
        self._whole = np.zeros(blocks, dtype=bool)  # whether `_of_block` holds
        self._written = np.zeros(blocks, dtype=np.int64)  # how often it was written to
        self._use_kernel = self.device.type != "cpu" if use_kernel is None else use_kernel
        addresses = [flat.data_ptr() for flat in self._flats]
        self._addresses = torch.tensor(addresses, dtype=torch.int64, device=self.device)
        self._stream: torch.cuda.Stream | None = None
        self._thread: ThreadPoolExecutor | None = None
        if self.device.type == "cpu":
            self._thread = ThreadPoolExecutor(1, "fieldprint-residency")
        else:
            self._stream = torch.cuda.Stream(self.device)
            shape = (blocks, layout.elements)
            self._blocks = [flat.as_strided(shape, (layout.stride, 1)) for flat in self._flats]

    # What lies there now

    def rows(self, slots: Tensor) -> Tensor:
        """The canonical values of `slots` [n] int64, [n, num_layers, 2, heads, dim]."""
        shape = (len(slots), len(self._flats), *self.layout.offsets.shape[1:])
        if not self._use_kernel:
            where = self.layout.indices(slots).flatten()
            chosen = [flat.index_select(0, where).view(len(slots), -1) for flat in self._flats]
            return torch.stack(chosen, 1).view(shape)
        from fieldprint.adapters.vllm.gather_kernel import gather_kernel

        out = torch.empty(shape, dtype=self._flats[0].dtype, device=self.device)
        each = self.layout.offsets[0].numel()
        gather_kernel[(len(slots), len(self._flats))](
            self._addresses,
            slots,
            self.layout.offsets,
            out,
            len(self._flats),
            self.size,
            self.layout.stride,
            E=each,
            BLOCK=min(1024, 1 << (each - 1).bit_length()),
        )
        return out

    def slot_digests(self, slots: Tensor) -> Tensor:
        """BLAKE3 of the canonical bytes of `slots`, [n, 32]."""
        parts = [digests_of(self.rows(slots[start : start + ROWS])) for start in range(0, len(slots), ROWS)]
        return torch.cat(parts) if parts else self.bound[:0]

    def block_digests(self, blocks: Tensor) -> Tensor:
        """Digests of the memory of `blocks` [n] int64 as it lies, [n, 32].

        On a CPU BLAKE3 over all layers; on a GPU over the layers' own digests, which one launch a layer takes in place.
        """
        if self._stream is not None:
            from fieldprint.blake3.pages import hash_pages

            layers = torch.stack([hash_pages(layer, blocks) for layer in self._blocks], 1)
            return hash_pages(layers)
        found = torch.empty(len(blocks), 32, dtype=torch.uint8)
        memories = [flat.view(torch.uint8).numpy() for flat in self._flats]
        width = self._flats[0].element_size()
        length = self.layout.elements * width
        for row, block in enumerate(blocks.tolist()):
            start = block * self.layout.stride * width
            hasher = new_hash()
            for memory in memories:
                hasher.update(memory[start : start + length].data)
            found[row] = torch.frombuffer(bytearray(hasher.digest()), dtype=torch.uint8)
        return found

    # What is bound to it

    def bind(self, slots: Slots) -> Asked[Digests]:
        """Bind what the step before this call has written to `slots`; the digests [n, 32] are what leaves are made of."""
        touched = np.unique(slots // self.size)
        self._whole[touched] = False
        self._written[touched] += 1

        def compute() -> Tensor:
            where = self._there(slots)
            found = self.slot_digests(where)
            self.bound.index_copy_(0, where, found)
            return found

        return self._ask(compute, lambda digests: digests)

    def damaged(self, spans: Sequence[Span]) -> Asked[tuple[tuple[int, ...], ...]]:
        """By span: which of its blocks are not what is bound to them, by their number in the span."""
        full = {block for span in spans for block in span.blocks[: span.count // self.size]}
        known = np.array(sorted(block for block in full if self._whole[block]), dtype=np.int64)
        fresh = np.array(sorted(block for block in full if not self._whole[block]), dtype=np.int64)
        tails = sorted(
            {
                (span.blocks[span.count // self.size], span.count % self.size)
                for span in spans
                if span.count % self.size
            }
        )
        written = self._written[fresh]

        def compute() -> Tensor:
            flags = [self._bad_known(known), self._bad_fresh(fresh), self._bad_tails(tails)]
            return torch.cat(flags).to(torch.uint8)

        def read(bad: NDArray[np.uint8]) -> tuple[tuple[int, ...], ...]:
            first, second, third = np.split(bad != 0, [len(known), len(known) + len(fresh)])
            same = fresh[~second & (self._written[fresh] == written)]
            self._whole[same] = True
            blocks = {*known[first].tolist(), *fresh[second].tolist()}
            ends = {tail for tail, wrong in zip(tails, third, strict=True) if wrong}
            return tuple(self._numbers(span, blocks, ends) for span in spans)

        return self._ask(compute, read)

    def _numbers(self, span: Span, blocks: set[int], tails: set[tuple[int, int]]) -> tuple[int, ...]:
        whole = span.count // self.size
        found = [number for number, block in enumerate(span.blocks[:whole]) if block in blocks]
        if span.count % self.size and (span.blocks[whole], span.count % self.size) in tails:
            found.append(whole)
        return tuple(found)

    def _bad_known(self, known: NDArray[np.int64]) -> Tensor:
        where = self._there(known)
        if not len(known):
            return where.bool()
        return (self.block_digests(where) != self._of_block[where]).any(1)

    def _bad_fresh(self, fresh: NDArray[np.int64]) -> Tensor:
        where = self._there(fresh)
        if not len(fresh):
            return where.bool()
        self._of_block.index_copy_(
            0, where, self.block_digests(where)
        )  # first: what changes then, a later check finds
        slots = (where[:, None] * self.size + torch.arange(self.size, device=self.device)).flatten()
        return self._differ(slots).view(-1, self.size).any(1)

    def _bad_tails(self, tails: list[tuple[int, int]]) -> Tensor:
        if not tails:
            return self.bound[:0, 0].bool()
        slots = np.concatenate(
            [np.arange(count, dtype=np.int64) + block * self.size for block, count in tails]
        )
        differ = self._differ(self._there(slots))
        return torch.stack([part.any() for part in differ.split([count for _, count in tails])])

    def _differ(self, slots: Tensor) -> Tensor:
        return (self.slot_digests(slots) != self.bound[slots]).any(1)

    def copied(self, values: Tensor) -> Asked[NDArray[np.float32]]:
        """These float32 values on the host; nothing may be written to them afterwards."""
        if self._stream is not None:
            values.record_stream(self._stream)  # its memory is not given away before it is copied
        return self._ask(lambda: values.view(torch.uint8), lambda found: found.view(np.float32).copy())

    # Anchors

    def install(self, anchor: Installed) -> None:
        """Write the anchor into its blocks, read it back, bind it.

        Raises:
            IntegrityError: the blocks do not keep what is written to them.
        """
        slots = (np.array(anchor.blocks, dtype=np.int64)[:, None] * self.size + np.arange(self.size)).reshape(
            -1
        )
        where = self.layout.indices(torch.from_numpy(slots).to(self.device)).flatten()
        for number, flat in enumerate(self._flats):
            flat.index_copy_(0, where, anchor.values[:, number].to(flat).flatten())
        if (self.bind(slots).result() != anchor.digests).any():
            raise IntegrityError(
                "the anchor's blocks do not keep what is written to them",
                remedy="Test the memory of this machine",
            )

    def order(self) -> None:
        """Let what is computed from now on wait for all that was asked for."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
        elif self._thread is not None:
            self._thread.submit(int).result()

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown()

    def _ask(self, compute: Callable[[], Tensor], read: Callable[[NDArray[np.uint8]], T]) -> Asked[T]:
        """On a GPU on the stream of checks, behind what is queued on the current one; on a CPU in the one thread."""
        if self._thread is not None:
            return Asked(self._thread.submit(compute), read)
        if self._stream is None:
            raise RuntimeError("neither a thread nor a stream to compute on")
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            return Asked(OnDevice(compute(), self._stream), read)

    def _there(self, values: NDArray[np.int64]) -> Tensor:
        host = torch.from_numpy(values)
        return host if self._stream is None else host.pin_memory().to(self.device, non_blocking=True)


def digests_of(rows: Tensor) -> Tensor:
    """BLAKE3 of each row's bytes, [n, 32] where they are."""
    if rows.device.type != "cpu":
        from fieldprint.blake3.pages import hash_pages

        return hash_pages(rows)
    flat = rows.reshape(len(rows), -1).contiguous().view(torch.uint8).numpy()
    found = b"".join(blake3.digest(row.data) for row in flat)
    return (
        torch.frombuffer(bytearray(found), dtype=torch.uint8).view(-1, 32)
        if found
        else torch.empty(0, 32, dtype=torch.uint8)
    )
