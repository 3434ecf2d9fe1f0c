"""The decode kernel against `naive_attention`: on a GPU, else under Triton's interpreter on small shapes.

NaN lies in every slot that holds no visible position and in the output; page tables end in garbage.
"""

import math
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor  # noqa: E402

from fieldprint.attention import AttentionOutput, paged_fieldprint_attention  # noqa: E402
from fieldprint.attention.decode import (  # noqa: E402
    DecodeConfig,
    DecodePlan,
    check_pages,
    config_for,
    plan_decode,
)
from fieldprint.attention.naive import naive_attention  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GARBAGE = 2**31 - 1
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}


@dataclass
class Case:
    """What a launch is made of; `world` fills the pool."""

    lens: tuple[int, ...] = (5, 40, 0, 33)
    group: int = 2
    num_kv_heads: int = 2
    head_dim: int = 16
    page_size: int = 16
    anchor: int = 5
    q_len: int = 1
    window: int | None = None
    num_sinks: int = 0
    dtype: torch.dtype = torch.float32
    with_q_anchor: bool = False
    g: float | None = None
    operator: str = "floor"
    soft_cap: float = 0.0
    with_mass: bool = True
    batch_invariant: bool = False
    programs: int = 3
    block_n: int = 16
    merge_apart: bool = False
    seed: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def num_q_heads(self) -> int:
        return self.group * self.num_kv_heads

    def world(self) -> "Case":
        draw = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw).to(self.dtype)

        size, kv, dim, rows = self.page_size, self.num_kv_heads, self.head_dim, len(self.lens)
        counts = [-(-n // size) for n in self.lens]
        total = sum(counts) + 3
        order = torch.randperm(total, generator=draw).tolist()
        table = torch.full((rows, max(counts) + 2), GARBAGE, dtype=torch.int32)
        k = torch.full((total, size, kv, dim), math.nan, dtype=self.dtype)
        v = k.clone()
        for row, length in enumerate(self.lens):
            oldest = 0 if self.window is None else max(0, length - self.q_len - self.window + 1)
            for index in range(counts[row]):
                end = min(size, length - index * size)
                seen = index * size + end > oldest or index * size < self.num_sinks
                if seen:  # else evicted: -1 in the table
                    page = order.pop()
                    k[page, :end], v[page, :end] = normal(end, kv, dim) * 1.5, normal(end, kv, dim)
                table[row, index] = page if seen else -1
        t = {
            "k_pages": k,
            "v_pages": v,
            "table": table,
            "q": normal(rows * self.q_len, self.num_q_heads, dim),
        }
        if self.anchor:
            t |= {"anchor_k": normal(kv, self.anchor, dim), "anchor_v": normal(kv, self.anchor, dim)}
        if self.with_q_anchor:
            t["q_anchor"] = normal(*t["q"].shape)
        if self.g is not None:
            t["g"] = torch.rand(self.num_q_heads, generator=draw) * self.g
        return replace(self, tensors={name: tensor.to(DEVICE) for name, tensor in t.items()})

    def plan(self, rows: slice = slice(None)) -> DecodePlan:
        return plan_decode(
            self.tensors["table"][rows].contiguous(),
            torch.tensor(self.lens, dtype=torch.int32, device=DEVICE)[rows].contiguous(),
            page_size=self.page_size,
            num_pages=self.tensors["k_pages"].shape[0],
            num_q_heads=self.num_q_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            q_len=self.q_len,
            num_anchor=self.anchor,
            window=self.window,
            num_sinks=self.num_sinks,
            batch_invariant=self.batch_invariant,
            config=DecodeConfig(self.block_n, 2, 4, 1, 2, self.merge_apart, self.block_n),
            num_programs=self.programs,
        )

    def run(self, rows: slice = slice(None), plan: DecodePlan | None = None) -> AttentionOutput:
        plan = self.plan(rows) if plan is None else plan
        plan.parts_o.fill_(math.nan)
        plan.parts_lse.fill_(math.nan)
        flat = slice(None) if rows == slice(None) else slice(rows.start * self.q_len, rows.stop * self.q_len)
        q = self.tensors["q"][flat].contiguous()
        names = ("anchor_k", "anchor_v", "q_anchor", "g")
        given_ = {n: self.tensors[n][flat].contiguous() if n == "q_anchor" else self.tensors[n] for n in names if n in self.tensors}  # fmt: skip
        return paged_fieldprint_attention(
            q,
            self.tensors["k_pages"],
            self.tensors["v_pages"],
            plan,
            **given_,
            operator=self.operator,
            soft_cap=self.soft_cap,
            with_mass=self.with_mass,
            out=torch.full_like(q, math.nan),
        )

    def check(self) -> None:
        t = {name: tensor.cpu() for name, tensor in self.tensors.items()}
        got = self.run()
        bounds = torch.arange(len(self.lens) + 1) * self.q_len
        out, lse, mass, weight = naive_attention(
            t["q"],
            t["k_pages"],
            t["v_pages"],
            t["table"],
            torch.tensor(self.lens),
            bounds,
            anchor_k=t.get("anchor_k"),
            anchor_v=t.get("anchor_v"),
            q_anchor=t.get("q_anchor"),
            g=t.get("g", 0.0),
            operator=self.operator,
            window=self.window,
            num_sinks=self.num_sinks,
            soft_cap=self.soft_cap,
        )
        tolerance = TOLERANCE[self.dtype]
        assert (got.out.cpu().double() - out).norm() <= tolerance * out.norm() + 1e-30
        if self.with_mass:
            assert got.lse is not None and got.mass is not None and got.weight is not None
            for one, other in ((got.lse, lse), (got.mass, mass), (got.weight, weight)):
                torch.testing.assert_close(
                    one.cpu().double(), other, rtol=20 * tolerance, atol=20 * tolerance
                )


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(anchor=0),
        Case(anchor=40, with_mass=False),
        Case(g=0.7),
        Case(g=0.7, with_mass=False),
        Case(g=0.7, operator="mixture"),
        Case(operator="mixture"),
        Case(with_q_anchor=True),
        Case(with_q_anchor=True, with_mass=False),
        Case(q_len=3, lens=(5, 40, 3, 33)),
        Case(page_size=1),
        Case(page_size=32),
        Case(page_size=64, lens=(100, 3, 64)),
        Case(window=20),
        Case(window=20, num_sinks=4, lens=(90, 40, 3)),
        Case(window=7, num_sinks=20, lens=(90, 140, 3, 0), page_size=1),
        Case(window=33, q_len=2, lens=(90, 40, 2)),
        Case(soft_cap=2.0),
        Case(group=3, num_kv_heads=1, head_dim=24),
        Case(group=16, num_kv_heads=1),
        Case(programs=1),
        Case(programs=50, lens=(300, 5, 0, 700)),
        Case(programs=50, lens=(300, 5, 0, 700), g=0.3),
        # The anchor in parts of its own.
        Case(programs=300, lens=(300, 5, 0, 700), anchor=100),
        Case(programs=300, lens=(300, 5, 0, 700), anchor=100, g=0.3, merge_apart=True),
        Case(programs=300, lens=(0, 5, 90), anchor=0),
        Case(programs=7, lens=(900, 5, 0, 700), anchor=100, g=0.3),
        Case(batch_invariant=True, lens=(5, 700, 0, 1100)),
        Case(batch_invariant=True, lens=(1200, 700), window=600, num_sinks=3, anchor=20),
        Case(batch_invariant=True, lens=(1100, 7), with_mass=False),
        # Splits grow with the length.
        Case(batch_invariant=True, lens=(8193, 300), num_kv_heads=1, anchor=300),
        Case(batch_invariant=True, lens=(8300,), window=700, num_sinks=300, num_kv_heads=1),
        Case(batch_invariant=True, lens=(65540,), num_kv_heads=1, group=1, block_n=64, page_size=64),
        Case(batch_invariant=True, lens=(1100, 7), g=0.5),
        Case(merge_apart=True, lens=(300, 5, 0, 700), programs=6),
        Case(merge_apart=True, lens=(300, 5, 0, 700), programs=6, g=0.3, with_mass=False),
        Case(merge_apart=True, lens=(300, 5, 3, 700), programs=6, anchor=0, q_len=3),
        Case(merge_apart=True, lens=(600, 5, 0), g=0.3, batch_invariant=True),
        Case(dtype=torch.float16),
        pytest.param(
            Case(dtype=torch.bfloat16, g=0.2), marks=pytest.mark.gpu
        ),  # the interpreter has no bfloat16
    ],
    ids=str,
)
def test_kernel_equals_naive(case: Case) -> None:
    case.world().check()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_random_shapes_equal_naive(data: st.DataObject) -> None:
    draw = data.draw
    q_len = draw(st.integers(1, 3))
    lens = draw(st.lists(st.one_of(st.just(0), st.integers(q_len, 90)), min_size=1, max_size=4))
    anchor = draw(st.integers(0, 40))
    window = draw(st.none() | st.integers(1, 60))
    Case(
        lens=tuple(lens),
        group=draw(st.integers(1, 5)),
        num_kv_heads=draw(st.integers(1, 3)),
        head_dim=draw(st.sampled_from([16, 24, 32])),
        page_size=draw(st.sampled_from([1, 16, 32])),
        anchor=anchor,
        q_len=q_len,
        window=window,
        num_sinks=0 if window is None else draw(st.integers(0, 20)),
        with_q_anchor=anchor > 0 and draw(st.booleans()),
        g=draw(st.none() | st.floats(0, 1)) if anchor else None,
        operator=draw(st.sampled_from(["floor", "mixture"])) if anchor else "floor",
        with_mass=draw(st.booleans()),
        batch_invariant=draw(st.booleans()),
        programs=draw(st.integers(1, 9)),
        block_n=draw(st.sampled_from([16, 32])),
        merge_apart=draw(st.booleans()),
        seed=draw(st.integers(0, 2**20)),
    ).world().check()


@pytest.mark.parametrize("g", [None, 0.4])
def test_batch_invariant_gives_the_same_bits_for_any_batch(g: float | None) -> None:
    """A sequence alone and among others, with few programs and with many."""
    lens = (600, 30, 1200, 0, 1100)
    base = Case(lens=lens, page_size=32, anchor=20, g=g, batch_invariant=True, programs=5, block_n=32).world()
    together = base.run()
    for row in range(5):
        for programs in (1, 3, 40):
            alone = replace(base, programs=programs).run(slice(row, row + 1))
            assert torch.equal(alone.out[0], together.out[row])
            assert alone.lse is not None and together.lse is not None
            assert torch.equal(alone.lse[0], together.lse[row])


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("rows", [1, 4, 8, 16, 24, 64])
def test_batch_invariant_takes_one_config_for_any_batch(head_dim: int, rows: int) -> None:
    made = {config_for(head_dim, 2, rows, heads, batch_invariant=True) for heads in (1, 8, 33, 64, 4096)}
    assert len(made) == 1


def test_a_launch_can_be_repeated_and_gives_the_same_bits() -> None:
    case = Case(lens=(300, 5, 0, 700), g=0.3, programs=6).world()
    plan = case.plan()
    first = case.run(plan=plan).out.clone()
    for _ in range(3):
        assert torch.equal(case.run(plan=plan).out, first)
    assert not plan.arrivals.any()


def test_update_follows_the_lengths() -> None:
    case = Case(lens=(300, 40, 5)).world()
    plan = case.plan()
    for lens in ((1, 40, 5), (299, 3, 0), (300, 40, 5)):
        plan.seq_lens.copy_(torch.tensor(lens, dtype=torch.int32))
        plan.update()
        assert torch.equal(case.run(plan=plan).out, replace(case, lens=lens).run().out)


def test_debug_check_finds_pages_outside_the_pool() -> None:
    case = Case(lens=(40, 5)).world()
    check_pages(case.plan())
    case.tensors["table"][0, 1] = case.tensors["k_pages"].shape[0]
    with pytest.raises(ValueError, match=r"page_table\[0\] names a page outside the pool"):
        check_pages(case.plan())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"q": torch.zeros(4, 4, 16, dtype=torch.float64)}, "q must be"),
        ({"k_pages": torch.zeros(3, 16, 2, 16, dtype=torch.float16)}, "k_pages must be"),
        ({"q": torch.zeros(3, 4, 16)}, "another number of queries"),
        ({"anchor_k": torch.zeros(2, 6, 16), "anchor_v": torch.zeros(2, 6, 16)}, "plan was made for 5"),
        ({"anchor_k": torch.zeros(2, 513, 16), "anchor_v": torch.zeros(2, 513, 16)}, "more than 512"),
        ({"anchor_v": torch.zeros(2, 5, 8)}, "anchor_v must be like"),
        ({"g": torch.zeros(3)}, "g must be"),
        ({"out": torch.zeros(4, 4, 16, dtype=torch.float16)}, "out must be"),
        ({"soft_cap": -1.0}, "soft_cap"),
        ({"k_scale": torch.ones(2)}, "k_scale and v_scale"),
        ({"k_scale": torch.ones(3), "v_scale": torch.ones(3)}, "k_scale must be"),
        ({"operator": "sum"}, "operator must be"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_arguments_are_named(change: dict[str, object], text: str) -> None:
    case = Case().world()
    named = {name: case.tensors[name] for name in ("q", "k_pages", "v_pages", "anchor_k", "anchor_v")}
    moved = {n: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for n, x in change.items()}
    arguments = named | moved
    with pytest.raises(ValueError, match=text):
        paged_fieldprint_attention(
            arguments.pop("q"), arguments.pop("k_pages"), arguments.pop("v_pages"), case.plan(), **arguments
        )


def test_g_without_an_anchor_is_an_error() -> None:
    case = Case(anchor=0).world()
    t = case.tensors
    with pytest.raises(ValueError, match="no anchor"):
        paged_fieldprint_attention(
            t["q"], t["k_pages"], t["v_pages"], case.plan(), g=torch.zeros(4).to(DEVICE)
        )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"page_size": 24}, "page_size"),
        ({"q_len": 9}, "q_len"),
        ({"num_anchor": 513}, "num_anchor"),
        ({"num_kv_heads": 3}, "multiple"),
        ({"window": 0}, "window"),
        ({"num_q_heads": 64, "num_kv_heads": 1, "q_len": 3}, "above 128"),
        ({"page_table": torch.zeros(2, 3, device=DEVICE)}, "page_table"),
        ({"page_table": torch.zeros(2, 0, dtype=torch.int32, device=DEVICE)}, "one column"),
        ({"seq_lens": torch.zeros(3, dtype=torch.int32, device=DEVICE)}, "seq_lens"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_plans_are_named(change: dict[str, object], text: str) -> None:
    good = {
        "page_table": torch.zeros(2, 3, dtype=torch.int32, device=DEVICE),
        "seq_lens": torch.zeros(2, dtype=torch.int32, device=DEVICE),
        "page_size": 16,
        "num_pages": 4,
        "num_q_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
    }
    arguments = good | change
    with pytest.raises(ValueError, match=text):
        plan_decode(arguments.pop("page_table"), arguments.pop("seq_lens"), **arguments)


def test_a_plan_on_a_cpu_without_the_interpreter_is_refused() -> None:
    source = (
        "import torch; from fieldprint.attention.decode import plan_decode; "
        "z = torch.zeros(1, 1, dtype=torch.int32); "
        "plan_decode(z, z[0], page_size=16, num_pages=1, num_q_heads=1, num_kv_heads=1, head_dim=64)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ValueError: page_table is on the CPU: the decode kernel needs a GPU" in done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_real_sizes_equal_naive(dtype: torch.dtype, head_dim: int, page_size: int) -> None:
    case = Case(lens=(700, 1, 0, 333), head_dim=head_dim, page_size=page_size, dtype=dtype, anchor=100, g=0.2)
    wide = replace(case, group=4, programs=264, block_n=32, with_mass=True).world()
    wide.check()


@pytest.mark.parametrize("with_mass", [False, True])
def test_scales_are_those_of_the_context_alone(with_mass: bool) -> None:
    case = Case(lens=(300, 5, 0, 40), anchor=40, with_mass=with_mass).world()
    t = case.tensors
    k_scale, v_scale = torch.tensor([0.5, 2.0], device=DEVICE), torch.tensor([3.0, 0.25], device=DEVICE)
    anchor = {"anchor_k": t["anchor_k"], "anchor_v": t["anchor_v"]}
    got = paged_fieldprint_attention(
        t["q"], t["k_pages"], t["v_pages"], case.plan(), **anchor, k_scale=k_scale, v_scale=v_scale,
        with_mass=with_mass,
    ).out  # fmt: skip
    want, *_ = naive_attention(
        t["q"].cpu(),
        (t["k_pages"] * k_scale[:, None]).cpu(),
        (t["v_pages"] * v_scale[:, None]).cpu(),
        t["table"].cpu(),
        torch.tensor(case.lens),
        torch.arange(5),
        **{name: tensor.cpu() for name, tensor in anchor.items()},
        g=0.0,
    )
    assert (got.cpu().double() - want).norm() <= TOLERANCE[case.dtype] * want.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("g", [None, 0.3])
def test_fp8_pages_with_a_bfloat16_anchor(g: float | None) -> None:
    """Keys and values in e4m3 with a scale a head, against float64 on what those bytes mean."""
    case = Case(lens=(700, 1, 0, 333), group=4, head_dim=128, dtype=torch.bfloat16, anchor=100, g=g).world()
    t = case.tensors
    k_scale, v_scale = torch.tensor([0.02, 0.03], device=DEVICE), torch.tensor([0.015, 0.03], device=DEVICE)
    k, v = (
        (t[n].float() / s[:, None]).to(torch.float8_e4m3fn)
        for n, s in (("k_pages", k_scale), ("v_pages", v_scale))
    )
    lens = torch.tensor(case.lens, dtype=torch.int32, device=DEVICE)
    sizes = {"page_size": 16, "num_pages": k.shape[0], "num_q_heads": 8, "num_kv_heads": 2, "head_dim": 128}
    plan = plan_decode(t["table"], lens, **sizes, dtype=k.dtype, num_anchor=100)
    anchor = {"anchor_k": t["anchor_k"], "anchor_v": t["anchor_v"]}
    got = paged_fieldprint_attention(
        t["q"], k, v, plan, **anchor, g=t.get("g"), k_scale=k_scale, v_scale=v_scale, with_mass=True
    )
    out, _, mass, _ = naive_attention(
        t["q"].cpu(),
        (k.double() * k_scale.double()[:, None]).cpu(),
        (v.double() * v_scale.double()[:, None]).cpu(),
        t["table"].cpu(),
        lens.cpu(),
        torch.arange(5),
        **{name: tensor.cpu() for name, tensor in anchor.items()},
        g=t["g"].cpu() if g else 0.0,
    )
    assert (got.out.cpu().double() - out).norm() <= 5e-3 * out.norm()
    assert got.mass is not None
    torch.testing.assert_close(got.mass.cpu().double(), mass, rtol=0.05, atol=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("merge_apart", [False, True], ids=["merge here", "merge apart"])
def test_graph_replay_follows_the_lengths(merge_apart: bool) -> None:
    case = Case(
        lens=(4000, 3, 900), head_dim=128, group=4, dtype=torch.bfloat16, programs=264, anchor=100,
        merge_apart=merge_apart,
    ).world()  # fmt: skip
    plan = case.plan()
    t = case.tensors
    out = torch.empty_like(t["q"])

    def step() -> None:
        plan.update()
        paged_fieldprint_attention(
            t["q"], t["k_pages"], t["v_pages"], plan, anchor_k=t["anchor_k"], anchor_v=t["anchor_v"], out=out
        )

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for lens in ((4000, 3, 900), (17, 0, 800), (3999, 2, 1)):
        plan.seq_lens.copy_(torch.tensor(lens, dtype=torch.int32))
        out.fill_(math.nan)
        graph.replay()
        assert torch.equal(out, replace(case, lens=lens, with_mass=False).run().out)
