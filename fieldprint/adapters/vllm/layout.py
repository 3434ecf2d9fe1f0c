"""Where a token's K and V lie in a block of one layer's cache, whatever the backend's packing.

The CPU kernels lay K in another order than V, and another for each instruction set; FlashAttention lays heads inside of tokens, or
tokens inside of heads. All are permutations of a block's elements, so one is learned from the writer itself: elements
are numbered, the numbers are written, and a look at the block says where each went.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fieldprint.errors import CompatibilityError

BASE = 128  # digits of an element's number: exact in every serving dtype

Write = Callable[[Tensor, Tensor, Tensor], None]  # K and V [block_size, heads, dim], slots


@dataclass(frozen=True, slots=True, eq=False)
class BlockLayout:
    """The elements of a block, in the order in which slots are hashed.

    offsets: int64 [block_size, 2 (K, V), heads, dim], of elements from the block's first on.
    stride: elements from one block to the next.
    """

    offsets: Tensor
    stride: int

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self.offsets.shape[0]

    @property
    def elements(self) -> int:
        """Elements of a block, of one layer."""
        return self.offsets.numel()

    def indices(self, slots: Tensor) -> Tensor:
        """int64 [n, 2, heads, dim]: where in a layer's cache, seen by `flat_view`, the elements of `slots` lie."""
        blocks = torch.div(slots, self.block_size, rounding_mode="floor")
        return self.offsets[slots % self.block_size] + (blocks * self.stride).view(-1, 1, 1, 1)


def flat_view(cache: Tensor) -> Tensor:
    """All elements of a layer's cache [num_blocks, ...] in the order of memory, as one row.

    Raises:
        CompatibilityError: the elements of a block are not one run of memory.
    """
    inside = sorted(
        (stride, size) for size, stride in zip(cache.shape[1:], cache.stride()[1:], strict=True) if size > 1
    )
    run = 1
    for stride, size in inside:
        if stride != run:
            raise CompatibilityError(
                f"the blocks of the cache are not runs of memory: strides {cache.stride()}"
            )
        run *= size
    if cache.stride(0) < run:
        raise CompatibilityError(f"the blocks of the cache overlap: strides {cache.stride()}")
    return torch.as_strided(cache, ((cache.shape[0] - 1) * cache.stride(0) + run,), (1,))


def learn_layout(
    cache: Tensor, block: int, block_size: int, heads: int, dim: int, write: Write
) -> BlockLayout:
    """The layout that `write` has, learned in `block`, which is zero afterwards.

    Args:
        cache: of one layer, [num_blocks, ...].
        block: that nobody uses.
        block_size: tokens of a block.
        heads: KV heads of this worker.
        dim: of a head.
        write: puts K and V into slots as the engine does.

    Raises:
        CompatibilityError: a block holds anything but each element once.
    """
    flat, stride = flat_view(cache), cache.stride(0)
    count = 2 * block_size * heads * dim
    numbers = torch.arange(count, device=cache.device)
    slots = torch.arange(block_size, device=cache.device) + block * block_size
    run = flat[block * stride : block * stride + count]
    found = torch.zeros(count, dtype=torch.int64, device=cache.device)
    fits = cache[0].numel() == count
    scale = 1
    while fits and scale < count:
        digits = (numbers // scale % BASE).view(block_size, 2, heads, dim).to(cache.dtype)
        write(digits[:, 0].contiguous(), digits[:, 1].contiguous(), slots)
        found += run.to(torch.int64) * scale
        scale *= BASE
    zero = torch.zeros(block_size, heads, dim, dtype=cache.dtype, device=cache.device)
    if fits:
        write(zero, zero, slots)
    if not fits or not torch.equal(found.sort().values, numbers) or bool(run.any()):
        raise CompatibilityError(
            f"the blocks of the cache ({cache.dtype}, {tuple(cache.shape)}) hold something else than each element of K and V once",
            remedy="Choose another attention backend",
        )
    return BlockLayout(found.argsort().view(block_size, 2, heads, dim), stride)
