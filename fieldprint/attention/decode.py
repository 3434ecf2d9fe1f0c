"""Decode on a GPU: the device-side plan of a step, and the call that every layer makes with it."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from fieldprint.attention.launch import paged_decode
from fieldprint.attention.paged import MAX_ANCHOR_TOKENS
from fieldprint.attention.plan_kernel import LONG, LONG_GROWTH, MEDIUM, PLAN_RECORD, PLAN_ROW, plan_kernel
from fieldprint.errors import CapacityError

MAX_Q_LEN = 8
MAX_ROWS = 128  # queries of a sequence times query heads of a KV head
SPLIT_TOKENS = 256  # of a split with batch_invariant, of a sequence up to MEDIUM
SEPARATE_FROM = 8  # ranges for each sequence from which on the anchor has parts of its own
MAX_WAVES = 16  # of programs of a batch-invariant launch; where there are more splits, a program has several
PAGE_SIZES = (1, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How the kernel is built and launched.

    block_n: keys of a tile. num_stages: of the software pipeline; the tiles in flight are one fewer. num_warps: of a
    program. programs_per_sm: programs of a launch for each multiprocessor. merge_width: partial results that a merge
    reads at once. merge_apart: whether merging is a launch of its own, which pays where few sequences are cut into many
    parts. min_tokens: keys that a program has at least, if there are so many.
    """

    block_n: int
    num_stages: int
    num_warps: int
    programs_per_sm: int
    merge_width: int = 8
    merge_apart: bool = False
    min_tokens: int = 64


def config_for(
    head_dim: int,
    element_size: int,
    rows: int,
    heads: int,
    *,
    page_size: int = 16,
    batch_invariant: bool = False,
) -> DecodeConfig:
    """The measured choice (docs/kernel.md) for a head size, bytes of a K/V element, rows of a tile, and KV heads of a batch.

    A program streams its own tiles; many small ones on a multiprocessor hide each other's waits. With `batch_invariant`
    the choice does not depend on `heads`, since another tile would give other bits.
    """
    width = triton.next_power_of_2(head_dim)
    if rows > 32:
        wide = rows > 64
        return DecodeConfig(32 if page_size >= 32 else 16, 3, 8 if wide else 4, 1 if wide else 2, 1)
    if rows > 16 or width > 128:
        return DecodeConfig(16, 3, 2, 4, 2)
    few = heads <= 32 and not batch_invariant  # each is cut into many parts
    if few and width * element_size == 256:
        return DecodeConfig(16, 4, 1, 4, merge_apart=True)
    return DecodeConfig(16, 3, 1, 8, 8 if rows <= 4 else 4, merge_apart=few)


@dataclass(frozen=True, slots=True, eq=False)
class DecodePlan:
    """What all layers of a decode step share: the page table, the lengths, and how the work is cut.

    All of it lies on the device. Between steps write new lengths into `seq_lens`, new pages into `page_table`, and call
    `update`, or capture that call in a CUDA graph (test_graph_replay_follows_the_lengths).
    """

    page_table: Tensor
    seq_lens: Tensor
    q_len: int
    page_size: int
    num_pages: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    num_anchor: int
    window: int | None
    num_sinks: int
    batch_invariant: bool
    config: DecodeConfig
    num_ranges: int
    num_records: int
    work: Tensor
    parts_o: Tensor
    parts_lse: Tensor
    arrivals: Tensor

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.page_table.shape[0]

    @property
    def total_q(self) -> int:
        """Queries."""
        return self.batch * self.q_len

    @property
    def num_slots(self) -> int:
        """Slots of the pool."""
        return self.num_pages * self.page_size

    @property
    def aligned(self) -> bool:
        """Whether every sequence begins with a program of its own."""
        return 2 * self.batch <= self.num_ranges

    def update(self) -> None:
        """Cut the work anew for the present `seq_lens` and pages; no allocation, no synchronization."""
        config = self.config
        block_b = max(64, triton.next_power_of_2(self.batch))
        block_i = max(16, min(256, 16384 // block_b))
        plan_kernel[(triton.cdiv(self.num_records, block_i),)](
            self.seq_lens,
            self.page_table,
            self.work,
            self.batch,
            self.num_ranges,
            self.num_records,
            max(1, config.min_tokens // config.block_n),
            -(-self.num_anchor // config.block_n),
            self.page_table.stride(0),
            Q_LEN=self.q_len,
            WINDOW=self.window or 0,
            NUM_SINKS=self.num_sinks,
            BLOCK_N=config.block_n,
            PAGE=self.page_size,
            SPLIT=SPLIT_TOKENS // config.block_n if self.batch_invariant else 0,
            ALIGNED=self.aligned,
            SEPARATE=SEPARATE_FROM * self.batch <= self.num_ranges,
            BLOCK_B=block_b,
            BLOCK_I=block_i,
        )


def plan_decode(
    page_table: Tensor,
    seq_lens: Tensor,
    *,
    page_size: int,
    num_pages: int,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype = torch.bfloat16,
    q_len: int = 1,
    num_anchor: int = 0,
    window: int | None = None,
    num_sinks: int = 0,
    batch_invariant: bool = False,
    max_length: int | None = None,
    config: DecodeConfig | None = None,
    num_programs: int | None = None,
) -> DecodePlan:
    """The plan of a decode step on the device of `page_table`, with the workspace that its layers share.

    Args:
        page_table: [batch, max_pages] int32; entries behind a sequence's last page may be anything.
        seq_lens: [batch] int32, the new tokens included; 0 is a padding row whose output is zero (or the anchor's).
        page_size: slots of a page: 1, 16, 32, 64 or 128.
        num_pages: pages of the pool.
        num_q_heads: query heads.
        num_kv_heads: KV heads.
        head_dim: 64, 96, 128 or 256.
        dtype: of k_pages and v_pages.
        q_len: new tokens of each sequence, 1 to 8, causal among themselves.
        num_anchor: A, 0 to 512.
        window: a query at position p sees positions above p - window; None means all.
        num_sinks: positions below this one are seen whatever the window.
        batch_invariant: whether a sequence gets the same bits whatever else is in the batch.
        max_length: the longest sequence to come; the table's width unless given. Sizes the workspace.
        config: the kernel's shape; the measured choice unless given.
        num_programs: programs of a launch; the device's multiprocessors times those of the config unless given.

    Raises:
        ValueError: an argument does not fit; the text names it.
        CapacityError: no memory for the workspace.
    """
    _check_plan(page_table, seq_lens, page_size, q_len, num_anchor, window, num_sinks)
    if num_kv_heads < 1 or num_q_heads % num_kv_heads:
        raise ValueError(f"num_q_heads {num_q_heads} is no multiple of num_kv_heads {num_kv_heads}")
    rows = num_q_heads // num_kv_heads * q_len
    if rows > MAX_ROWS:
        raise ValueError(
            f"q_len {q_len} times {num_q_heads // num_kv_heads} query heads a KV head is above {MAX_ROWS}"
        )
    batch = page_table.shape[0]
    config = config or config_for(
        head_dim,
        dtype.itemsize,
        rows,
        batch * num_kv_heads,
        page_size=page_size,
        batch_invariant=batch_invariant,
    )
    programs = num_programs or _multiprocessors(page_table.device) * config.programs_per_sm
    ranges = max(1, programs // num_kv_heads)
    records = ranges if 2 * batch <= ranges else ranges + batch
    if batch_invariant:
        length = max_length or page_table.shape[1] * page_size
        records = batch * _splits_of_a_sequence(length, q_len, window, num_sinks, num_anchor)
        ranges = min(records, MAX_WAVES * ranges)
    parts = records * num_kv_heads * 2 * triton.next_power_of_2(rows)
    try:
        parts_o = seq_lens.new_empty(parts * triton.next_power_of_2(head_dim), dtype=torch.float32)
    except RuntimeError as error:
        raise CapacityError(
            f"no memory for {records} partial results", remedy="Give max_length, or a smaller batch"
        ) from error
    plan = DecodePlan(
        page_table=page_table,
        seq_lens=seq_lens,
        q_len=q_len,
        page_size=page_size,
        num_pages=num_pages,
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        num_anchor=num_anchor,
        window=window,
        num_sinks=num_sinks,
        batch_invariant=batch_invariant,
        config=config,
        num_ranges=ranges,
        num_records=records,
        work=seq_lens.new_empty(PLAN_ROW.value * batch + PLAN_RECORD.value * records),
        parts_o=parts_o,
        parts_lse=seq_lens.new_empty(parts, dtype=torch.float32),
        arrivals=seq_lens.new_zeros(batch * num_kv_heads),
    )
    plan.update()
    return plan


def check_pages(plan: DecodePlan) -> None:
    """Raise ValueError if a page that a query can see lies outside the pool; synchronizes, for debugging.

    The kernel itself trusts the table: what it would read there is memory of somebody else.
    """
    lens, table = plan.seq_lens.tolist(), plan.page_table.cpu()
    for row, length in enumerate(lens):
        if length > table.shape[1] * plan.page_size:
            raise ValueError(f"seq_lens[{row}] is {length}, more than page_table has room for")
        first = 0 if plan.window is None else max(0, length - plan.q_len - plan.window + 1)
        sinks = -(-min(first, plan.num_sinks) // plan.page_size)
        used = torch.cat(
            [table[row, :sinks], table[row, first // plan.page_size : -(-length // plan.page_size)]]
        )
        if used.numel() and not 0 <= int(used.min()) <= int(used.max()) < plan.num_pages:
            raise ValueError(f"page_table[{row}] names a page outside the pool of {plan.num_pages}")


def decode(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    plan: DecodePlan,
    *,
    anchor_k: Tensor | None,
    anchor_v: Tensor | None,
    q_anchor: Tensor | None,
    g: Tensor | None,
    mixture: bool,
    scale: float,
    soft_cap: float = 0.0,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    with_mass: bool = False,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(out, lse, mass, weight) of a decode step; arguments as the entry's, checked."""
    out = torch.empty_like(q) if out is None else out
    if mixture and g is None:
        g = torch.zeros(q.shape[1], dtype=torch.float32, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device) if with_mass else None
    mass = torch.empty_like(lse) if lse is not None and anchor_k is not None else None
    weight = torch.empty_like(lse) if lse is not None and anchor_k is not None else None
    config = plan.config
    paged_decode(
        q,
        k_pages,
        v_pages,
        plan.page_table,
        plan.work,
        anchor_k,
        anchor_v,
        q_anchor,
        g,
        k_scale,
        v_scale,
        out,
        lse,
        mass,
        weight,
        plan.parts_o,
        plan.parts_lse,
        plan.arrivals,
        mixture,
        scale,
        soft_cap,
        plan.q_len,
        plan.window or 0,
        plan.num_sinks,
        plan.num_ranges,
        config.block_n,
        config.num_stages,
        config.num_warps,
        config.merge_width,
        config.merge_apart,
    )
    return out, lse, mass, weight


def _splits_of_a_sequence(
    length: int, q_len: int, window: int | None, num_sinks: int, num_anchor: int
) -> int:
    """The most splits that a sequence of up to `length` can have, anchor and sinks among them."""
    if window is not None:
        splits = (
            -(-min(length, window + q_len + SPLIT_TOKENS) // SPLIT_TOKENS) + -(-num_sinks // SPLIT_TOKENS) + 2
        )
    else:
        sizes = ((MEDIUM.value, 1), (LONG.value, 2), (length, LONG_GROWTH.value))
        splits = max(1, *(-(-min(length, longest) // (SPLIT_TOKENS * grown)) for longest, grown in sizes))
    return splits + -(-num_anchor // SPLIT_TOKENS)


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4  # under Triton's interpreter
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _check_plan(
    page_table: Tensor,
    seq_lens: Tensor,
    page_size: int,
    q_len: int,
    num_anchor: int,
    window: int | None,
    num_sinks: int,
) -> None:
    if page_table.device.type == "cpu" and not isinstance(plan_kernel, InterpretedFunction):
        raise ValueError(
            "page_table is on the CPU: the decode kernel needs a GPU, or TRITON_INTERPRET=1 set before Python starts"
        )
    if page_table.dim() != 2 or page_table.dtype != torch.int32 or page_table.stride(1) != 1:
        raise ValueError("page_table must be [batch, max_pages] int32 with neighbouring columns")
    if seq_lens.shape != page_table.shape[:1] or seq_lens.dtype != torch.int32:
        raise ValueError(f"seq_lens must be [{page_table.shape[0]}] int32")
    if seq_lens.device != page_table.device:
        raise ValueError("seq_lens and page_table must be on one device")
    if page_table.shape[0] < 1:
        raise ValueError("page_table must have at least one row")
    if page_table.shape[1] < 1:
        raise ValueError("page_table must have at least one column")
    if page_size not in PAGE_SIZES:
        raise ValueError(f"page_size must be one of {PAGE_SIZES}, not {page_size}")
    if not 1 <= q_len <= MAX_Q_LEN:
        raise ValueError(f"q_len must be 1 to {MAX_Q_LEN}, not {q_len}")
    if not 0 <= num_anchor <= MAX_ANCHOR_TOKENS:
        raise ValueError(f"num_anchor must be 0 to {MAX_ANCHOR_TOKENS}, not {num_anchor}")
    if (window is not None and window < 1) or num_sinks < 0:
        raise ValueError("window must be at least 1 or None, num_sinks at least 0")
