"""One made-up batch and everything that attends over it on a GPU: ours, the peers, and a pure read.

Every function here that takes a `World` gives a call without arguments that returns the output; what a step plans once
for all layers is done before, so it is not in the call. Peers get the anchor as pages in front of their page tables, which
is what concat equals.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fieldprint.attention import AttentionPlan, paged_fieldprint_attention, plan_attention
from fieldprint.attention.decode import plan_decode

DEVICE = "cuda"
MIB = 2**20
FLASH3, FLASHINFER, VLLM = "flash-attention 3", "flashinfer 0.7.2", "vllm triton"
Run = Callable[[], Tensor]


@dataclass
class World:
    """Queries, shuffled pages and an anchor; the anchor's pages lie in the pool too, for the peers.

    fp8: also holds the pages in e4m3 (`k8`, `v8`, scales of one, so that no peer spends a launch on them); `k` and `v`
    then hold the same numbers, so both must give the same output.
    """

    lens: list[int]
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    num_anchor: int = 128
    page_size: int = 16
    fp8: bool = False

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        counts = [-(-n // self.page_size) for n in self.lens]
        total = sum(counts) + -(-self.num_anchor // self.page_size)
        self.k, self.v = self._normal(total), self._normal(total)
        if self.fp8:
            self.k8, self.v8 = (x.to(torch.float8_e4m3fn) for x in (self.k, self.v))
            self.k.copy_(self.k8)
            self.v.copy_(self.v8)
        order = torch.randperm(total, device=DEVICE, dtype=torch.int32)
        at = total - sum(counts)
        self.front = order[:at]
        self.table = torch.zeros(len(self.lens), max(counts), device=DEVICE, dtype=torch.int32)
        for row, count in enumerate(counts):
            self.table[row, :count] = order[at : at + count]
            at += count
        self.prepended = torch.cat([self.front.expand(len(self.lens), -1), self.table], 1).contiguous()
        self.seq_lens = _int32(self.lens)
        shape = (len(self.lens), self.num_q_heads, self.head_dim)
        self.q = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)
        self.out = torch.empty_like(self.q)
        self.anchor_k, self.anchor_v = self._anchor(self.k), self._anchor(self.v)
        self.scale = self.head_dim**-0.5

    def _normal(self, pages: int) -> Tensor:
        shape = (pages, self.page_size, self.num_kv_heads, self.head_dim)
        return torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)

    def _anchor(self, pages: Tensor) -> Tensor:
        tokens = pages[self.front.long()].reshape(-1, self.num_kv_heads, self.head_dim)
        return tokens[: self.num_anchor].transpose(0, 1).contiguous()

    def page_lists(self, table: Tensor, extra: int) -> tuple[Tensor, Tensor, Tensor]:
        """(first index of each sequence, pages of all, slots used of each last page), with `extra` tokens in front."""
        lens = [n + extra for n in self.lens]
        counts = [-(-n // self.page_size) for n in lens]
        starts = _int32([0, *torch.tensor(counts).cumsum(0).tolist()])
        pages = torch.cat([table[row, :count] for row, count in enumerate(counts)])
        return starts, pages, _int32([(n - 1) % self.page_size + 1 for n in lens])


def _int32(values: list[int]) -> Tensor:
    return torch.tensor(values, device=DEVICE, dtype=torch.int32)


def ours(
    world: World,
    *,
    g: float | None = None,
    operator: str = "floor",
    mass: bool = False,
    invariant: bool = False,
    anchor: bool = True,
    window: int | None = None,
    fp8: bool = False,
) -> Run:
    """Our kernel, with a fresh plan."""
    k_pages, v_pages = (world.k8, world.v8) if fp8 else (world.k, world.v)
    plan = plan_decode(
        world.table,
        world.seq_lens,
        page_size=world.page_size,
        num_pages=k_pages.shape[0],
        num_q_heads=world.num_q_heads,
        num_kv_heads=world.num_kv_heads,
        head_dim=world.head_dim,
        dtype=k_pages.dtype,
        num_anchor=world.num_anchor if anchor else 0,
        window=window,
        batch_invariant=invariant,
    )
    weight = None if g is None else torch.full((world.num_q_heads,), g, device=DEVICE)
    factor = torch.ones(world.num_kv_heads, device=DEVICE) if fp8 else None
    anchor_k, anchor_v = (world.anchor_k, world.anchor_v) if anchor and world.num_anchor else (None, None)
    return lambda: paged_fieldprint_attention(
        world.q, k_pages, v_pages, plan, anchor_k=anchor_k, anchor_v=anchor_v, g=weight, operator=operator,
        k_scale=factor, v_scale=factor, with_mass=mass, out=world.out,
    ).out  # fmt: skip


def _flash3(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, q_bounds: Tensor, k_bounds: Tensor | None, lens: Tensor | None,
    longest_q: int, longest_k: int, table: Tensor | None, scale: float, causal: bool, left: int = -1, splits: int = 0,
) -> Run:  # fmt: skip
    """FlashAttention-3's one entry, with its many arguments that are not used here."""
    call = torch.ops._vllm_fa3_C.fwd

    def run() -> Tensor:
        call(
            q, k, v, None, None, None, out, q_bounds, k_bounds, None, None, lens, longest_q, longest_k, table, None, None,
            None, None, None, None, None, None, scale, causal, left, -1, 0.0, True, None, splits, None, 0, None, 1, 0, None,
        )  # fmt: skip
        return out

    return run


def flash3(world: World, *, splits: int = 0, anchor: bool = True, window: int | None = None) -> Run:
    """FlashAttention-3 over the page table; `splits` 0 lets it choose."""
    extra = world.num_anchor if anchor else 0
    return _flash3(
        world.q, world.k, world.v, world.out, _int32(list(range(len(world.lens) + 1))), None, world.seq_lens + extra, 1,
        max(world.lens) + extra, world.prepended if anchor else world.table, world.scale, True,
        -1 if window is None else window - 1, splits,
    )  # fmt: skip


def flash3_two_calls(world: World, g: float) -> Run:
    """The only way to a weight of one's own today: two calls and a lerp."""
    batch, anchor = len(world.lens), world.num_anchor
    k, v = (x.transpose(0, 1).contiguous() for x in (world.anchor_k, world.anchor_v))
    context = flash3(world, anchor=False)
    second = _flash3(
        world.q, k, v, torch.empty_like(world.q), _int32([0, batch]), _int32([0, anchor]), None, batch, anchor, None,
        world.scale, False,
    )  # fmt: skip
    return lambda: torch.lerp(context(), second(), g)


def flashinfer(world: World, *, fp8: bool = False) -> Run:
    """FlashInfer's paged decode with tensor cores; its plan is made on the host."""
    starts, pages, last = world.page_lists(world.prepended, world.num_anchor)
    kv = (world.k8, world.v8) if fp8 else (world.k, world.v)
    wrapper = importlib.import_module("flashinfer").BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(256 * MIB, dtype=torch.uint8, device=DEVICE),
        "NHD",
        use_cuda_graph=True,
        use_tensor_cores=True,
        paged_kv_indptr_buffer=torch.empty_like(starts),
        paged_kv_indices_buffer=torch.empty_like(pages),
        paged_kv_last_page_len_buffer=torch.empty_like(last),
        backend="fa2",
    )
    sizes = (world.num_q_heads, world.num_kv_heads, world.head_dim, world.page_size)
    wrapper.plan(starts.cpu(), pages, last.cpu(), *sizes, q_data_type=world.q.dtype, kv_data_type=kv[0].dtype)

    def run() -> Tensor:
        wrapper.run(world.q, kv, out=world.out)
        return world.out

    return run


def flashinfer_cascade(world: World) -> Run:
    """FlashInfer's cascade: the anchor's pages as a level that all share, each context as a level of its own."""
    batch = len(world.lens)
    starts, pages, last = world.page_lists(world.table, 0)
    module = importlib.import_module("flashinfer")
    wrapper = module.MultiLevelCascadeAttentionWrapper(
        2, torch.empty(256 * MIB, dtype=torch.uint8, device=DEVICE), "NHD"
    )
    wrapper.plan(
        [_int32([0, batch]), _int32(list(range(batch + 1)))],
        [_int32([0, len(world.front)]), starts],
        [world.front, pages],
        [_int32([(world.num_anchor - 1) % world.page_size + 1]), last],
        *(world.num_q_heads, world.num_kv_heads, world.head_dim, world.page_size),
        q_data_type=world.q.dtype,
        kv_data_type=world.k.dtype,
    )

    def run() -> Tensor:
        result: Tensor = wrapper.run(world.q, (world.k, world.v))
        return result

    return run


def vllm_triton(world: World) -> Run:
    """vLLM's unified attention in Triton."""
    module = importlib.import_module("vllm.v1.attention.ops.triton_unified_attention")
    batch, segments = len(world.lens), 16
    lens, longest = world.seq_lens + world.num_anchor, max(world.lens) + world.num_anchor
    bounds = _int32(list(range(batch + 1)))
    shape = (batch, world.num_q_heads, segments)
    output = torch.empty(*shape, triton.next_power_of_2(world.head_dim), device=DEVICE)
    top, total = torch.empty(shape, device=DEVICE), torch.empty(shape, device=DEVICE)

    def run() -> Tensor:
        module.unified_attention(
            world.q, world.k, world.v, world.out, bounds, 1, lens, longest, world.scale, True, (-1, -1),
            world.prepended, 0.0, None, None, None, seq_threshold_3D=128 // world.num_kv_heads,
            num_par_softmax_segments=segments, softmax_segm_output=output, softmax_segm_max=top,
            softmax_segm_expsum=total,
        )  # fmt: skip
        return world.out

    return run


PEERS: dict[str, Callable[[World], Run]] = {FLASH3: flash3, FLASHINFER: flashinfer, VLLM: vllm_triton}


def load_peers(site: str | None) -> list[str]:
    """The names of the peers that are in the folder `site`; what is missing is said."""
    if site is None:
        return []
    sys.path.insert(0, site)
    loads: dict[str, Callable[[], Any]] = {
        FLASH3: lambda: torch.ops.load_library(f"{site}/vfa/_vllm_fa3_C.abi3.so"),
        FLASHINFER: lambda: importlib.import_module("flashinfer"),
        VLLM: lambda: importlib.import_module("vllm.v1.attention.ops.triton_unified_attention"),
    }
    found = []
    for peer, load in loads.items():
        try:
            load()
            found.append(peer)
        except (OSError, ImportError) as error:
            print(f"left out: {peer} ({error})")  # noqa: T201
    return found


@triton.jit  # type: ignore[untyped-decorator]
def read_kernel(k, v, out, blocks, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Read both buffers once: what any kernel over them takes at least."""
    top = tl.zeros([BLOCK], tl.float32)
    for index in tl.range(tl.program_id(0), blocks, tl.num_programs(0), num_stages=4):
        where = index.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        top = tl.maximum(top, tl.load(k + where, eviction_policy="evict_first").to(tl.float32))
        top = tl.maximum(top, tl.load(v + where, eviction_policy="evict_first").to(tl.float32))
    tl.store(out + tl.program_id(0), tl.max(top, 0))


def pure_read(world: World) -> Run:
    """A read of K and V and nothing else: the roof."""
    k, v = world.k.view(-1).view(torch.int32), world.v.view(-1).view(torch.int32)
    programs = torch.cuda.get_device_properties(0).multi_processor_count * 8
    out = torch.empty(programs, device=DEVICE)

    def run() -> Tensor:
        read_kernel[(programs,)](k, v, out, k.numel() // 2048, BLOCK=2048, num_warps=4)
        return out

    return run


# What follows is a whole prompt at once: q [N, H, D]; k, v [N, H, D]; anchor_k, anchor_v [H, A, D]; g [H] float32.
PROMPT_PAGE = 16
Prefill = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, str, float], Tensor]


def prefill_materialized(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    anchor_k: Tensor,
    anchor_v: Tensor,
    g: Tensor,
    operator: str,
    scale: float,
) -> Tensor:
    """The output by three steps with every score in memory: softmax(Q K') V twice, then the operator; [N, H, D]."""
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    context = (q @ k.transpose(1, 2) * scale).masked_fill(_future(q.shape[1], q.device), float("-inf"))
    anchor = q @ anchor_k.transpose(1, 2) * scale
    lses = (context.logsumexp(-1), anchor.logsumexp(-1)) if operator == "floor" else None
    return _inject(context.softmax(-1) @ v, anchor.softmax(-1) @ anchor_v, lses, g).transpose(0, 1)


def prefill_flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    anchor_k: Tensor,
    anchor_v: Tensor,
    g: Tensor,
    operator: str,
    scale: float,
) -> Tensor:
    """The output by three steps, torch's flash attention twice, then the operator; [N, H, D]."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    o_c, lse_c, *_ = flash(q, k, v, 0.0, True, scale=scale)
    o_a, lse_a, *_ = flash(q, anchor_k[None], anchor_v[None], 0.0, False, scale=scale)
    lses = (lse_c[0], lse_a[0]) if operator == "floor" else None
    return _inject(o_c[0], o_a[0], lses, g).transpose(0, 1)


def prefill_ours(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    anchor_k: Tensor,
    anchor_v: Tensor,
    g: Tensor,
    operator: str,
    scale: float,
) -> Tensor:
    """The output of the engine's own way: pages of 16, a plan that all layers share; [N, H, D]."""
    pages = (k.view(-1, PROMPT_PAGE, *k.shape[1:]), v.view(-1, PROMPT_PAGE, *v.shape[1:]))
    return paged_fieldprint_attention(
        q, *pages, _plan_of_prompt(len(q), q.device), anchor_k=anchor_k, anchor_v=anchor_v, g=g, operator=operator,
        softmax_scale=scale,
    ).out  # fmt: skip


@cache
def _plan_of_prompt(tokens: int, device: torch.device) -> AttentionPlan:
    """One sequence in neighbouring pages; made once a step, so it is not in the time."""
    count = tokens // PROMPT_PAGE
    return plan_attention(
        [range(count)], [tokens], [0, tokens], page_size=PROMPT_PAGE, num_pages=count, device=device
    )


@cache
def _future(tokens: int, device: torch.device) -> Tensor:
    """The causal mask, made once so that it is not in the time."""
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).triu(1)


def _inject(o_c: Tensor, o_a: Tensor, lses: Sequence[Tensor] | None, g: Tensor) -> Tensor:
    """Floor where there are lses (context, anchor), else mixture; all [H, N, ...]."""
    w = g[:, None] if lses is None else torch.maximum(g[:, None], torch.sigmoid(lses[1] - lses[0]))
    return torch.lerp(o_c, o_a, w[..., None].to(o_c.dtype))
