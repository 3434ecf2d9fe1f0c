"""The decode kernel on one GPU beside its peers; `python -m benchmarks.attention_gpu --peers SITE`.

Every cell: cold L2 (flushed before each run), shuffled pages of 16, a CUDA graph, the median of many runs. Peers get the
anchor as pages in front of their page tables, which is what concat equals. SITE is a folder with FlashAttention-3 (out
of the vLLM 0.24 wheel), FlashInfer 0.7.2 and vLLM's Triton kernel; a peer that is not there is left out, and named.
"""

import argparse
import importlib
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.testing import do_bench

from benchmarks.record import ROOT, write_results
from fieldprint.attention import paged_fieldprint_attention
from fieldprint.attention.decode import plan_decode

PAGE = 16
ANCHOR = 128
MIB = 2**20
SHAPES = {"32/8 d128": (32, 8, 128), "64/8 d128": (64, 8, 128), "9/3 d64": (9, 3, 64)}
LIMIT = 20 * 2**30  # bytes of K/V of the largest cell


@dataclass
class World:
    """Queries, pages and an anchor; the anchor's pages lie in the pool too, for the peers."""

    lens: list[int]
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    num_anchor: int

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        counts = [-(-n // PAGE) for n in self.lens]
        self.anchor_pages = -(-self.num_anchor // PAGE)
        total = sum(counts) + self.anchor_pages
        shape = (total, PAGE, self.num_kv_heads, self.head_dim)
        self.k = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        self.v = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        order = torch.randperm(total, device="cuda", dtype=torch.int32)
        self.front = order[: self.anchor_pages]
        self.table = torch.zeros(len(self.lens), max(counts), device="cuda", dtype=torch.int32)
        at = self.anchor_pages
        for row, count in enumerate(counts):
            self.table[row, :count] = order[at : at + count]
            at += count
        self.prepended = torch.cat([self.front.expand(len(self.lens), -1), self.table], 1).contiguous()
        self.seq_lens = torch.tensor(self.lens, device="cuda", dtype=torch.int32)
        self.q = torch.randn(
            len(self.lens), self.num_q_heads, self.head_dim, device="cuda", dtype=torch.bfloat16
        )
        self.out = torch.empty_like(self.q)
        front = self.front.long()
        flat = (-1, self.num_kv_heads, self.head_dim)
        self.anchor_k = self.k[front].reshape(flat)[: self.num_anchor].transpose(0, 1).contiguous()
        self.anchor_v = self.v[front].reshape(flat)[: self.num_anchor].transpose(0, 1).contiguous()
        self.scale = self.head_dim**-0.5

    @property
    def kv_bytes(self) -> int:
        return 4 * sum(self.lens) * self.num_kv_heads * self.head_dim


def ours(
    world: World,
    *,
    g: float | None = None,
    operator: str = "floor",
    mass: bool = False,
    invariant: bool = False,
    anchor: bool = True,
) -> Callable[[], Any]:
    """Our kernel, bound to `world`; the plan is made once a step for all layers and is not timed here."""
    plan = plan_decode(
        world.table,
        world.seq_lens,
        page_size=PAGE,
        num_pages=world.k.shape[0],
        num_q_heads=world.num_q_heads,
        num_kv_heads=world.num_kv_heads,
        head_dim=world.head_dim,
        num_anchor=world.num_anchor if anchor else 0,
        batch_invariant=invariant,
    )
    weight = None if g is None else torch.full((world.num_q_heads,), g, device="cuda")
    k, v = (world.anchor_k, world.anchor_v) if anchor and world.num_anchor else (None, None)
    return lambda: paged_fieldprint_attention(
        world.q, world.k, world.v, plan, anchor_k=k, anchor_v=v, g=weight, operator=operator, with_mass=mass, out=world.out
    )  # fmt: skip


def flash3(world: World, *, splits: int = 0, prepend: bool = True) -> Callable[[], Any]:
    """FlashAttention-3 over the page table, the anchor's pages in front unless told not to."""
    batch = len(world.lens)
    bounds = torch.arange(batch + 1, device="cuda", dtype=torch.int32)
    extra = world.num_anchor if prepend else 0
    table = world.prepended if prepend else world.table
    lens = world.seq_lens + extra
    longest = max(world.lens) + extra
    call = torch.ops._vllm_fa3_C.fwd
    return lambda: call(
        world.q, world.k, world.v, None, None, None, world.out, bounds, None, None, None, lens, 1, longest, table,
        None, None, None, None, None, None, None, None, world.scale, True, -1, -1, 0.0, True, None, splits, None, 0,
        None, 1, 0, None,
    )  # fmt: skip


def flash3_two_calls(world: World) -> Callable[[], Any]:
    """The only way to a weight of one's own today: two calls and a lerp."""
    batch = len(world.lens)
    context = flash3(world, prepend=False)
    k, v = (x.transpose(0, 1).contiguous() for x in (world.anchor_k, world.anchor_v))
    q_bounds = torch.tensor([0, batch], device="cuda", dtype=torch.int32)
    k_bounds = torch.tensor([0, world.num_anchor], device="cuda", dtype=torch.int32)
    second = torch.empty_like(world.q)
    call = torch.ops._vllm_fa3_C.fwd

    def run() -> Tensor:
        context()
        call(
            world.q, k, v, None, None, None, second, q_bounds, k_bounds, None, None, None, batch, world.num_anchor, None,
            None, None, None, None, None, None, None, None, world.scale, False, -1, -1, 0.0, True, None, 0, None, 0,
            None, 1, 0, None,
        )  # fmt: skip
        return torch.lerp(world.out, second, 0.1)

    return run


def flashinfer(world: World) -> Callable[[], Any]:
    """FlashInfer's paged decode with tensor cores; its plan, made on the host, is not timed."""
    module = importlib.import_module("flashinfer")
    batch = len(world.lens)
    counts = [-(-(n + world.num_anchor) // PAGE) for n in world.lens]
    starts = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
    pages = torch.cat([world.prepended[row, :count] for row, count in enumerate(counts)])
    last = torch.tensor([(n + world.num_anchor - 1) % PAGE + 1 for n in world.lens], dtype=torch.int32)
    wrapper = module.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(256 * MIB, dtype=torch.uint8, device="cuda"),
        "NHD",
        use_cuda_graph=True,
        use_tensor_cores=True,
        paged_kv_indptr_buffer=torch.empty(batch + 1, dtype=torch.int32, device="cuda"),
        paged_kv_indices_buffer=torch.empty(sum(counts), dtype=torch.int32, device="cuda"),
        paged_kv_last_page_len_buffer=torch.empty(batch, dtype=torch.int32, device="cuda"),
        backend="fa2",
    )
    sizes = (world.num_q_heads, world.num_kv_heads, world.head_dim, PAGE)
    wrapper.plan(starts, pages, last, *sizes, q_data_type=world.q.dtype, kv_data_type=world.k.dtype)
    return lambda: wrapper.run(world.q, (world.k, world.v), out=world.out)


def vllm_triton(world: World) -> Callable[[], Any]:
    """vLLM's unified attention in Triton."""
    module = importlib.import_module("vllm.v1.attention.ops.triton_unified_attention")
    batch, segments = len(world.lens), 16
    lens, longest = world.seq_lens + world.num_anchor, max(world.lens) + world.num_anchor
    bounds = torch.arange(batch + 1, device="cuda", dtype=torch.int32)
    shape = (batch, world.num_q_heads, segments)
    output = torch.empty(*shape, triton.next_power_of_2(world.head_dim), device="cuda")
    top, total = torch.empty(shape, device="cuda"), torch.empty(shape, device="cuda")
    return lambda: module.unified_attention(
        world.q, world.k, world.v, world.out, bounds, 1, lens, longest, world.scale, True, (-1, -1), world.prepended,
        0.0, None, None, None, seq_threshold_3D=128 // world.num_kv_heads, num_par_softmax_segments=segments,
        softmax_segm_output=output, softmax_segm_max=top, softmax_segm_expsum=total,
    )  # fmt: skip


@triton.jit
def read_kernel(k, v, out, blocks, BLOCK: tl.constexpr):  # noqa: N803
    """Read both buffers once: what any kernel over them takes at least."""
    top = tl.zeros([BLOCK], tl.float32)
    for index in tl.range(tl.program_id(0), blocks, tl.num_programs(0), num_stages=4):
        where = index.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        top = tl.maximum(top, tl.load(k + where, eviction_policy="evict_first").to(tl.float32))
        top = tl.maximum(top, tl.load(v + where, eviction_policy="evict_first").to(tl.float32))
    tl.store(out + tl.program_id(0), tl.max(top, 0))


def roof(world: World) -> Callable[[], Any]:
    """A pure read of K and V."""
    k, v = world.k.view(-1).view(torch.int32), world.v.view(-1).view(torch.int32)
    programs = torch.cuda.get_device_properties(0).multi_processor_count * 8
    out = torch.empty(programs, device="cuda")
    return lambda: read_kernel[(programs,)](k, v, out, k.numel() // 2048, BLOCK=2048, num_warps=4)


def microseconds(run: Callable[[], Any]) -> float:
    """The median of a captured graph's replays, L2 flushed before each."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return float(do_bench(graph.replay, warmup=30, rep=100, return_mode="median")) * 1e3


PEERS: dict[str, Callable[[World], Callable[[], Any]]] = {
    "flash-attention 3": flash3,
    "flashinfer 0.7.2": flashinfer,
    "vllm triton": vllm_triton,
}


def measure_concat(name: str, world: World, peers: Sequence[str]) -> dict[str, Any]:
    """Our concat beside every peer, all checked against the first peer's output."""
    mine = ours(world)
    mine()
    result = world.out.clone()
    times: dict[str, float] = {}
    for peer in peers:
        run = PEERS[peer](world)
        world.out.fill_(math.nan)
        run()
        error = (world.out.double() - result.double()).norm() / result.double().norm()
        if not error < 1e-2:
            raise RuntimeError(f"{name}: {peer} and ours differ by {float(error):.2e}")
        times[peer] = microseconds(run)
    taken = microseconds(mine)
    best = min(times.values()) if times else math.nan
    times["pure read (roof)"] = microseconds(roof(world))
    return row(name, "concat", taken, times, best / taken)


def row(cell: str, metric: str, taken: float, peers: dict[str, float], ratio: float) -> dict[str, Any]:
    """One row of the results, printed."""
    rounded = {peer: round(value, 2) for peer, value in peers.items()}
    shown = "  ".join(f"{peer} {value:.1f}" for peer, value in rounded.items())
    print(f"{cell:<34} {metric:<24} {taken:9.1f} us  x{ratio:5.3f}   {shown}", flush=True)  # noqa: T201
    ours_ = {"cell": cell, "metric": f"time, {metric}", "unit": "us", "ours": round(taken, 2)}
    return ours_ | {"peers": rounded, "ratio": round(ratio, 3)}


def cells(quick: bool) -> list[tuple[str, tuple[list[int], int, int, int]]]:
    """Names, and what a World is made of."""
    found: list[tuple[str, tuple[list[int], int, int, int]]] = []
    for shape, (heads, kv, dim) in SHAPES.items():
        for batch in (1, 8, 32, 64, 256):
            for context in (4096, 32768, 131072):
                if 4 * batch * context * kv * dim <= LIMIT and not (quick and (batch, context) not in QUICK):
                    found.append(
                        (f"{shape} B{batch} L{context // 1024}k", ([context] * batch, heads, kv, dim))
                    )
    draw = torch.Generator().manual_seed(1)
    lognormal = torch.exp(torch.randn(32, generator=draw)).mul(8192).long().clamp(64, 131072).tolist()
    for name, lens in (("lognormal B32", lognormal), ("one 128k, 31 of 1k", [131072] + [1024] * 31)):
        found.append((f"32/8 d128 {name}", (lens, 32, 8, 128)))
    return found


QUICK = {(1, 4096), (8, 4096), (32, 4096), (1, 32768)}


def main() -> int:
    """0 when every measurement ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="folder with the peers' packages")
    parser.add_argument("--quick", action="store_true", help="few cells")
    parser.add_argument("--skip-tests", action="store_true", help="when they have just run")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)  # noqa: T201
        return 2
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "tests/attention"]
    if not options.skip_tests and subprocess.run(tests, cwd=ROOT, check=False).returncode:  # noqa: S603
        print("tests are red; nothing is measured", file=sys.stderr)  # noqa: T201
        return 1
    peers = load_peers(options.peers)
    rows: list[dict[str, Any]] = []
    for name, (lens, heads, kv, dim) in cells(options.quick):
        world = World(lens, heads, kv, dim, ANCHOR)
        rows.append(measure_concat(name, world, peers))
        if "flash-attention 3" in peers and heads == 32:
            rows += measure_operators(name, world)
        del world
        torch.cuda.empty_cache()
    rows += measure_anchors()
    ratios = [r["ratio"] for r in rows if r["metric"] == "time, concat" and math.isfinite(r["ratio"])]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"concat: geometric mean {mean:.3f}, worst {min(ratios):.3f}, best {max(ratios):.3f}")  # noqa: T201
    write_results(
        "attention_gpu",
        rows,
        device=torch.cuda.get_device_name(),
        command="python -m benchmarks.attention_gpu" + (" --peers SITE" if options.peers else ""),
        packages=("torch", "triton"),
    )
    return 0


def measure_operators(name: str, world: World) -> list[dict[str, Any]]:
    """Floor with mass beside two calls, and the batch-invariant mode beside FlashAttention-3 with one split."""
    two = microseconds(flash3_two_calls(world))
    floor = microseconds(ours(world, g=0.1, mass=True))
    one = microseconds(flash3(world, splits=1))
    invariant = microseconds(ours(world, invariant=True))
    default = microseconds(ours(world))
    return [
        row(name, "floor 0.1 with mass", floor, {"flash-attention 3, two calls and lerp": two}, two / floor),
        row(
            name,
            "batch invariant",
            invariant,
            {"flash-attention 3, one split": one, "ours, default": default},
            one / invariant,
        ),
    ]


def measure_anchors() -> list[dict[str, Any]]:
    """What an anchor adds."""
    found = []
    for batch in (1, 8, 64):
        for tokens in (8, 32, 128, 512):
            world = World([4096] * batch, 32, 8, 128, tokens)
            bare, taken = microseconds(ours(world, anchor=False)), microseconds(ours(world))
            cell = f"32/8 d128 B{batch} L4k A{tokens}"
            found.append(
                row(cell, "concat", taken, {"ours, no anchor": bare}, bare / taken)
                | {"metric": "time, anchor"}
            )
    return found


def load_peers(site: str | None) -> list[str]:
    """The peers that are there."""
    if site is None:
        return []
    sys.path.insert(0, site)
    found = []
    try:
        torch.ops.load_library(f"{site}/vfa/_vllm_fa3_C.abi3.so")
        found.append("flash-attention 3")
    except OSError as error:
        print(f"left out: flash-attention 3 ({error})")  # noqa: T201
    for peer, module in (
        ("flashinfer 0.7.2", "flashinfer"),
        ("vllm triton", "vllm.v1.attention.ops.triton_unified_attention"),
    ):
        try:
            importlib.import_module(module)
            found.append(peer)
        except ImportError as error:
            print(f"left out: {peer} ({error})")  # noqa: T201
    return found


if __name__ == "__main__":
    sys.exit(main())
