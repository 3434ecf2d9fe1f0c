"""A step of vLLM's by our own kernel: which requests are one call of it, and the views of vLLM's blocks that it reads.

Requests under the same anchor are one part of a step. In concat a longer block table does without this
(`backend.py`); floor, mixture, a window that the anchor is exempt from, and the anchor's mass need both softmaxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fieldprint.adapters.vllm.layout import flat_view
from fieldprint.attention.paged import paged_fieldprint_attention
from fieldprint.attention.plan import AttentionPlan, plan_attention
from fieldprint.errors import CompatibilityError
from fieldprint.generate.request import AttentionSettings

if TYPE_CHECKING:
    from fieldprint.attention.decode import DecodePlan

DECODE_HEAD_DIMS = (64, 96, 128, 256)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What all layers of a worker have alike."""

    num_blocks: int
    block_size: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Requests of a step under one anchor.

    queries: of the step's, as a slice or as int64 indices. anchor: its number, 0 is none. blocks: where it lies, or None.
    """

    queries: slice | Tensor
    plan: "AttentionPlan | DecodePlan"
    anchor: int
    blocks: slice | Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class PagedStep:
    """What every layer of a step shares; vLLM's runner calls it attention metadata."""

    num_actual_tokens: int
    parts: tuple[Part, ...]


@dataclass(slots=True)
class MassSums:
    """Natural mass and weight of each anchor, summed over queries since they were last taken: what a mean is made of.

    Float32 has no room for the sums of weeks, so whoever takes them adds them up.

    sums: by anchor, [num_layers, 2 (mass, weight), num_q_heads] float32 on the device. queries: by anchor.
    """

    num_layers: int
    num_q_heads: int
    device: torch.device
    sums: dict[int, Tensor] = field(default_factory=dict)
    queries: dict[int, int] = field(default_factory=dict)

    def add(self, anchor: int, layer: int, mass: Tensor, weight: Tensor) -> None:
        """Add one layer's, [queries, num_q_heads] each."""
        if anchor not in self.sums:
            shape = (self.num_layers, 2, self.num_q_heads)
            self.sums[anchor] = torch.zeros(shape, dtype=torch.float32, device=self.device)
            self.queries[anchor] = 0
        self.sums[anchor][layer, 0] += mass.sum(0)
        self.sums[anchor][layer, 1] += weight.sum(0)
        if layer == 0:
            self.queries[anchor] += mass.shape[0]

    def take(self) -> tuple[dict[int, int], Tensor] | None:
        """Queries by anchor and their sums [anchors, num_layers, 2, num_q_heads], which begin anew; None if there are none."""
        if not self.sums:
            return None
        taken = self.queries, torch.stack(list(self.sums.values()))
        self.sums, self.queries = {}, {}
        return taken


def views(cache: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """K and V [num_blocks, block_size, num_kv_heads, head_dim] in a layer's cache, whatever shape vLLM gives it.

    A slot holds the K of its heads and then the V, so that slots are equally spaced over all blocks.

    Raises:
        CompatibilityError: a block is no run of memory of that size, or there is room between blocks.
    """
    flat = flat_view(cache)
    row = sizes.num_kv_heads * sizes.head_dim
    block = 2 * sizes.block_size * row
    if cache[0].numel() != block or cache.stride(0) != block:
        raise CompatibilityError(
            f"blocks of the cache have {cache[0].numel()} elements, {cache.stride(0)} apart; the kernel needs {block}",
            remedy="Serve without --g, --operator, --window and --mass, or choose another attention backend",
        )
    shape = (sizes.num_blocks, sizes.block_size, sizes.num_kv_heads, sizes.head_dim)
    strides = (block, 2 * row, sizes.head_dim, 1)
    return flat.as_strided(shape, strides), flat.as_strided(shape, strides, flat.storage_offset() + row)


def anchor_view(pages: Tensor, blocks: slice | Tensor) -> Tensor:
    """K or V [num_kv_heads, A, head_dim] of an anchor in `blocks`: the pinned memory itself where these are a slice."""
    return pages[blocks].reshape(-1, *pages.shape[2:]).transpose(0, 1)


def place_of(blocks: tuple[int, ...], device: torch.device) -> slice | Tensor | None:
    """A slice where the blocks lie together, else their numbers on the device; None of none."""
    if not blocks:
        return None
    first, stop = blocks[0], blocks[0] + len(blocks)
    return slice(first, stop) if blocks == tuple(range(first, stop)) else torch.tensor(blocks, device=device)


def parts_of(
    owners: Sequence[int],
    anchors: Sequence[tuple[int, ...]],
    table: Tensor,
    lengths: Tensor,
    counts: Sequence[int],
    starts: Sequence[int],
    sizes: Sizes,
    settings: AttentionSettings,
    *,
    decode_kernel: bool,
    batch_invariant: bool = False,
    max_length: int | None = None,
) -> tuple[Part, ...]:
    """The parts of a step.

    Args:
        owners: by request, the number of its anchor.
        anchors: by number, its blocks.
        table: int32 [requests, width], of context blocks, on the device.
        lengths: int32 [requests], new tokens included, on the device.
        counts: the same on the host.
        starts: prefix sums of the numbers of queries, [requests + 1].
        sizes: of the layers.
        settings: window and sinks.
        decode_kernel: whether requests with one new token are parts of their own, for the Triton kernel.
        batch_invariant: whether a request gets the same bits whatever else is in the step.
        max_length: of a request, which sizes the decode kernel's workspace.
    """
    chosen: dict[tuple[int, bool], list[int]] = {}
    decode_kernel = decode_kernel and _has_decode_kernel(sizes)
    for row, (owner, count) in enumerate(zip(owners, counts, strict=True)):
        queries = starts[row + 1] - starts[row]
        if count and queries:
            chosen.setdefault((owner, decode_kernel and queries == 1), []).append(row)
    return tuple(
        Part(
            _queries(rows, starts, table.device),
            _decode_plan(
                rows,
                table,
                lengths,
                sizes,
                settings,
                len(anchors[owner]) * sizes.block_size,
                batch_invariant,
                max_length,
            )
            if decode
            else _plan(rows, table, counts, starts, sizes, settings),
            owner,
            place_of(anchors[owner], table.device),
        )
        for (owner, decode), rows in chosen.items()
    )


def _has_decode_kernel(sizes: Sizes) -> bool:
    from fieldprint.attention.decode import PAGE_SIZES

    return sizes.head_dim in DECODE_HEAD_DIMS and sizes.block_size in PAGE_SIZES


def _queries(rows: list[int], starts: Sequence[int], device: torch.device) -> slice | Tensor:
    if rows[-1] - rows[0] + 1 == len(rows):
        return slice(starts[rows[0]], starts[rows[-1] + 1])
    ranges = [torch.arange(starts[row], starts[row + 1]) for row in rows]
    return torch.cat(ranges).to(device)


def _plan(
    rows: list[int],
    table: Tensor,
    counts: Sequence[int],
    starts: Sequence[int],
    sizes: Sizes,
    settings: AttentionSettings,
) -> AttentionPlan:
    used = -(-max(counts[row] for row in rows) // sizes.block_size)
    sums = [0]
    for row in rows:
        sums.append(sums[-1] + starts[row + 1] - starts[row])
    return plan_attention(
        table[rows, :used].tolist(),
        [counts[row] for row in rows],
        sums,
        page_size=sizes.block_size,
        num_pages=sizes.num_blocks,
        window=settings.window,
        num_sinks=settings.num_sinks,
        device=table.device,
    )


def _decode_plan(
    rows: list[int],
    table: Tensor,
    lengths: Tensor,
    sizes: Sizes,
    settings: AttentionSettings,
    num_anchor: int,
    batch_invariant: bool,
    max_length: int | None,
) -> "DecodePlan":
    from fieldprint.attention.decode import plan_decode

    own = table[rows[0] : rows[-1] + 1], lengths[rows[0] : rows[-1] + 1]
    if rows[-1] - rows[0] + 1 != len(rows):
        own = table[rows], lengths[rows]
    return plan_decode(
        own[0].contiguous(),
        own[1].contiguous(),
        page_size=sizes.block_size,
        num_pages=sizes.num_blocks,
        num_q_heads=sizes.num_q_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        dtype=sizes.dtype,
        num_anchor=num_anchor,
        window=settings.window,
        num_sinks=settings.num_sinks,
        batch_invariant=batch_invariant,
        max_length=max_length,
    )


def attend_parts(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    step: PagedStep,
    settings: AttentionSettings,
    g: Tensor,
    *,
    scale: float,
    out: Tensor,
    layer: int = 0,
    sums: MassSums | None = None,
) -> None:
    """Write the output of every query of a step.

    Args:
        q: [num_actual_tokens, num_q_heads, head_dim].
        k_pages: of `views`.
        v_pages: as k_pages.
        step: its parts.
        settings: the operator.
        g: [num_q_heads] float32.
        scale: of logits.
        out: like q.
        layer: its number, for `sums`.
        sums: where mass and weight are added, or None.
    """
    for part in step.parts:
        anchor = None
        if part.blocks is not None:
            anchor = (anchor_view(k_pages, part.blocks), anchor_view(v_pages, part.blocks))
        decode = not isinstance(part.plan, AttentionPlan)
        queries = q[part.queries]
        result = paged_fieldprint_attention(
            queries.contiguous() if decode else queries,
            k_pages,
            v_pages,
            part.plan,
            anchor_k=None if anchor is None else anchor[0],
            anchor_v=None if anchor is None else anchor[1],
            g=None if anchor is None else g,
            operator=settings.operator,
            softmax_scale=scale,
            with_mass=sums is not None and anchor is not None,
        )
        out[part.queries] = result.out
        if sums is not None and result.mass is not None and result.weight is not None:
            sums.add(part.anchor, layer, result.mass, result.weight)
