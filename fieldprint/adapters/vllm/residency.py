"""The worker's part: anchors in pinned blocks, digests bound to what was written, and whether it is still so.

Two digests, because two things are asked:

- of a slot, bound right after the step that wrote it, over its K and V layer by layer in the order of heads: the
  canonical bytes, the same for every backend. Leaves are made of these.
- of a whole block, over its memory as it lies, taken when its last slot is bound and after its slots were found to be
  what was bound to them: the cheap one, with which all that a request depends on is checked before any of it is final.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from blake3 import blake3 as new_hash
from torch import Tensor

from fieldprint import blake3
from fieldprint.adapters.vllm.layout import BlockLayout, flat_view
from fieldprint.adapters.vllm.messages import Digests, Slots, Span
from fieldprint.errors import IntegrityError

NO_BLOCKS: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Installed:
    """An anchor in blocks of this worker: its values [A, num_layers, 2, heads, dim] for repairs, and its slots' digests [A, 32]."""

    root: str
    blocks: tuple[int, ...]
    values: Tensor
    digests: Digests


class Residency:
    """Digests of the blocks of one worker, on the CPU or on a GPU.

    Args:
        caches: of each layer, [num_blocks, ...], all alike.
        layout: of their blocks.
    """

    def __init__(self, caches: Sequence[Tensor], layout: BlockLayout) -> None:
        self.layout, self.size = layout, layout.block_size
        self._flats = [flat_view(cache) for cache in caches]
        blocks = caches[0].shape[0]
        self.bound = np.zeros((blocks * self.size, 32), dtype=np.uint8)
        self._of_block = np.zeros((blocks, 32), dtype=np.uint8)
        self._whole = np.zeros(blocks, dtype=bool)

    def rows(self, slots: Slots) -> Tensor:
        """The canonical values of `slots`, [n, num_layers, 2, heads, dim]."""
        where = self.layout.indices(torch.from_numpy(slots).to(self._flats[0].device))
        flat = where.flatten()
        chosen = [layer.index_select(0, flat).view(where.shape) for layer in self._flats]
        return torch.stack(chosen, 1)

    def slot_digests(self, slots: Slots) -> Digests:
        """BLAKE3 of the canonical bytes of `slots` as they are now, [n, 32]."""
        found = np.empty((len(slots), 32), dtype=np.uint8)
        for start in range(0, len(slots), 256):  # a gather's memory stays small
            part = slots[start : start + 256]
            found[start : start + len(part)] = digests_of(self.rows(part))
        return found

    def block_digests(self, blocks: Sequence[int]) -> Digests:
        """BLAKE3 of the memory of `blocks` as it is now, layer by layer, [n, 32]."""
        found = np.empty((len(blocks), 32), dtype=np.uint8)
        memories = [layer.view(torch.uint8).numpy() for layer in self._flats]
        width = self._flats[0].element_size()
        length = self.layout.elements * width
        for row, block in enumerate(blocks):
            start = block * self.layout.stride * width
            hasher = new_hash()
            for memory in memories:
                hasher.update(memory[start : start + length].data)
            found[row] = np.frombuffer(hasher.digest(), dtype=np.uint8)
        return found

    def bind(self, slots: Slots) -> Digests:
        """Bind what a step has written to `slots`; the digests are also what leaves are made of, [n, 32]."""
        found = self.slot_digests(slots)
        self.bound[slots] = found
        touched = slots // self.size
        self._whole[touched] = False
        full = np.unique(touched[slots % self.size == self.size - 1])
        self._of_block[full] = self.block_digests(full.tolist())
        self._whole[full] = True
        fresh = np.isin(np.arange(self.size) + full[:, None] * self.size, slots)
        for block, known in zip(full.tolist(), fresh, strict=True):
            before = (np.arange(self.size) + block * self.size)[~known]
            if len(before) and self._differ(before):
                self._whole[block] = False  # its slots tell at the next check
        return found

    def _differ(self, slots: Slots) -> bool:
        return bool((self.slot_digests(slots) != self.bound[slots]).any())

    def damaged(self, spans: Sequence[Span]) -> tuple[tuple[int, ...], ...]:
        """By span: which of its blocks are not what is bound to them, by their number in the span."""
        whole: set[int] = set()
        for span in spans:
            whole.update(block for block in span.blocks[: span.count // self.size] if self._whole[block])
        asked = sorted(whole)
        bad = {
            block
            for block, same in zip(
                asked, (self.block_digests(asked) == self._of_block[asked]).all(1), strict=True
            )
            if not same
        }
        found = []
        for span in spans:
            held = []
            for number, block in enumerate(span.blocks[: -(-span.count // self.size)]):
                count = min(self.size, span.count - number * self.size)
                if block in bad or (
                    block not in whole and self._differ(np.arange(count, dtype=np.int64) + block * self.size)
                ):
                    held.append(number)
            found.append(tuple(held))
        return tuple(found)

    def install(self, anchor: Installed) -> None:
        """Write the anchor into its blocks, read it back, bind it.

        Raises:
            IntegrityError: the blocks do not keep what is written to them.
        """
        slots = self.slots_of(anchor)
        where = self.layout.indices(torch.from_numpy(slots).to(self._flats[0].device)).flatten()
        for number, layer in enumerate(self._flats):
            layer.index_copy_(0, where, anchor.values[:, number].to(layer).flatten())
        found = self.slot_digests(slots)
        if (found != anchor.digests).any():
            raise IntegrityError(
                "the anchor's blocks do not keep what is written to them",
                remedy="Test the memory of this machine",
            )
        self.bind(slots)

    def is_whole(self, anchor: Installed) -> bool:
        """Whether the anchor's blocks are still what was installed."""
        span = Span(anchor.blocks, len(anchor.blocks) * self.size)
        same = (self.bound[self.slots_of(anchor)] == anchor.digests).all()
        return bool(same) and self.damaged([span]) == (NO_BLOCKS,)

    def slots_of(self, anchor: Installed) -> Slots:
        """Its slots, [A]."""
        blocks = np.array(anchor.blocks, dtype=np.int64)
        return (blocks[:, None] * self.size + np.arange(self.size)).reshape(-1)


def digests_of(rows: Tensor) -> Digests:
    """BLAKE3 of each row's bytes on the host, [n, 32]."""
    flat = rows.reshape(len(rows), -1).contiguous().view(torch.uint8).cpu().numpy()
    found = np.empty((len(rows), 32), dtype=np.uint8)
    for number, row in enumerate(flat):
        found[number] = np.frombuffer(blake3.digest(row.data), dtype=np.uint8)
    return found
