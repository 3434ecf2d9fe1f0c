"""The CPU path against `naive_attention` in float64, on odd shapes, with NaN wherever nothing may be read."""

import math
import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fieldprint.attention import AttentionOutput, paged_fieldprint_attention, plan_attention
from fieldprint.attention.naive import naive_attention

GARBAGE = 987654321  # a page number behind the last page


@dataclass
class Case:
    """A batch over a shuffled pool, NaN in every slot that holds no position."""

    q: Tensor
    k_pages: Tensor
    v_pages: Tensor
    table: list[list[int]]
    lens: list[int]
    cu: list[int]

    def plan_args(self) -> dict[str, int]:
        return {"page_size": self.k_pages.shape[1], "num_pages": self.k_pages.shape[0]}


def make_case(
    seed: int,
    lens: list[int],
    queries: list[int],
    *,
    page_size: int,
    kv: int,
    group: int,
    dim: int,
    shuffle: bool = True,
) -> Case:
    torch.manual_seed(seed)
    counts = [-(-n // page_size) for n in lens]
    pages = list(range(sum(counts) + 3))
    if shuffle:
        random.Random(seed).shuffle(pages)
    k = torch.full((len(pages), page_size, kv, dim), math.nan)
    v = k.clone()
    table = []
    for length, count in zip(lens, counts, strict=True):
        own = [pages.pop() for _ in range(count)]
        for position in range(length):
            k[own[position // page_size], position % page_size] = torch.randn(kv, dim)
            v[own[position // page_size], position % page_size] = torch.randn(kv, dim)
        table.append([*own, GARBAGE])
    cu = [sum(queries[:i]) for i in range(len(queries) + 1)]
    return Case(torch.randn(cu[-1], kv * group, dim) * 2, k, v, table, lens, cu)


def naive(case: Case, **kwargs: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width = max(len(row) for row in case.table)
    table = torch.tensor([row + [GARBAGE] * (width - len(row)) for row in case.table])
    return naive_attention(
        case.q,
        case.k_pages,
        case.v_pages,
        table,
        torch.tensor(case.lens),
        torch.tensor(case.cu),
        **kwargs,  # type: ignore[arg-type]
    )


def assert_equals(
    got: AttentionOutput, want: tuple[Tensor, Tensor, Tensor, Tensor], tolerance: float = 2e-5
) -> None:
    assert got.lse is not None and got.mass is not None and got.weight is not None
    for ours, truth in zip((got.out, got.lse, got.mass, got.weight), want, strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=tolerance, atol=tolerance)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Case, dict[str, object], dict[str, object]]:
    lens = draw(st.lists(st.sampled_from([0, 1, 5, 16, 63, 300, 513]), min_size=1, max_size=3))
    queries = [1 if n == 0 else draw(st.sampled_from(sorted({1, min(n, 7), min(n, 64)}))) for n in lens]
    case = make_case(
        draw(st.integers(0, 1000)),
        lens,
        queries,
        page_size=draw(st.sampled_from([1, 3, 16, 32])),
        kv=draw(st.sampled_from([1, 2, 3])),
        group=draw(st.sampled_from([1, 3, 4])),
        dim=draw(st.sampled_from([8, 16, 64])),
        shuffle=draw(st.booleans()),
    )
    heads, dim = case.q.shape[1:]
    kv = case.k_pages.shape[2]
    num_anchor = draw(st.sampled_from([0, 1, 5, 100]))
    options: dict[str, object] = {}
    if num_anchor:
        options["anchor_k"], options["anchor_v"] = (
            torch.randn(kv, num_anchor, dim),
            torch.randn(kv, num_anchor, dim),
        )
        options["operator"] = draw(st.sampled_from(["floor", "mixture"]))
        if options["operator"] == "mixture" or draw(st.booleans()):
            options["g"] = torch.rand(heads) * torch.randint(0, 2, (heads,))
        if draw(st.booleans()):
            options["q_anchor"] = torch.randn_like(case.q)
    sight: dict[str, object] = {
        "window": draw(st.sampled_from([None, 1, 4, 50])),
        "num_sinks": draw(st.sampled_from([0, 1, 4])),
    }
    return case, options, sight


@settings(max_examples=60, deadline=None)
@given(batches())
def test_equals_naive(drawn: tuple[Case, dict[str, object], dict[str, object]]) -> None:
    case, options, sight = drawn
    plan = plan_attention(case.table, case.lens, case.cu, **case.plan_args(), **sight)  # type: ignore[arg-type]
    want = naive(case, **options, **sight)
    got = paged_fieldprint_attention(case.q, case.k_pages, case.v_pages, plan, with_mass=True, **options)  # type: ignore[arg-type]
    assert_equals(got, want)
    bare = paged_fieldprint_attention(case.q, case.k_pages, case.v_pages, plan, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(bare.out.double(), want[0], rtol=2e-5, atol=2e-5)


def test_concat_is_one_softmax_over_anchor_and_context() -> None:
    case = make_case(1, [40], [1], page_size=16, kv=2, group=3, dim=16)
    anchor_k, anchor_v = torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    plan = plan_attention(case.table, case.lens, case.cu, **case.plan_args())
    out = paged_fieldprint_attention(
        case.q, case.k_pages, case.v_pages, plan, anchor_k=anchor_k, anchor_v=anchor_v
    ).out
    slots = [(case.table[0][i // 16], i % 16) for i in range(40)]
    for head in range(6):
        keys = torch.cat([anchor_k[head // 3], torch.stack([case.k_pages[s][head // 3] for s in slots])])
        values = torch.cat([anchor_v[head // 3], torch.stack([case.v_pages[s][head // 3] for s in slots])])
        joint = torch.softmax(keys @ case.q[0, head] / 4, 0) @ values
        torch.testing.assert_close(out[0, head], joint, rtol=1e-5, atol=1e-5)


def test_the_weight_never_falls_under_the_floor_nor_under_the_natural_mass() -> None:
    case = make_case(2, [300], [1], page_size=16, kv=1, group=4, dim=8)
    anchor_k, anchor_v = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    g = torch.tensor([0.0, 0.1, 0.5, 1.0])
    plan = plan_attention(case.table, case.lens, case.cu, **case.plan_args())
    got = paged_fieldprint_attention(
        case.q, case.k_pages, case.v_pages, plan, anchor_k=anchor_k, anchor_v=anchor_v, g=g, with_mass=True
    )
    assert got.weight is not None and got.mass is not None
    assert bool((got.weight >= g).all()) and bool((got.weight >= got.mass).all())


def test_an_empty_context_gives_the_anchors_output() -> None:
    case = make_case(3, [0], [1], page_size=16, kv=1, group=2, dim=8)
    anchor_k, anchor_v = torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    plan = plan_attention(case.table, case.lens, case.cu, **case.plan_args())
    for operator, g in (("floor", None), ("mixture", torch.tensor([0.1, 0.2]))):
        got = paged_fieldprint_attention(
            case.q,
            case.k_pages,
            case.v_pages,
            plan,
            anchor_k=anchor_k,
            anchor_v=anchor_v,
            g=g,
            operator=operator,
        )
        want = torch.softmax(case.q[0] @ anchor_k[0].T / math.sqrt(8), -1) @ anchor_v[0]
        torch.testing.assert_close(got.out[0], want, rtol=1e-5, atol=1e-5)


def test_sinks_enter_once_when_the_window_reaches_them() -> None:
    case = make_case(4, [6], [1], page_size=4, kv=1, group=1, dim=8)
    with_sinks = plan_attention(case.table, case.lens, case.cu, **case.plan_args(), window=5, num_sinks=4)
    whole = plan_attention(case.table, case.lens, case.cu, **case.plan_args())
    a = paged_fieldprint_attention(case.q, case.k_pages, case.v_pages, with_sinks).out
    b = paged_fieldprint_attention(case.q, case.k_pages, case.v_pages, whole).out
    torch.testing.assert_close(a, b)


def test_same_bits_for_any_batch() -> None:
    alone = make_case(5, [517], [1], page_size=16, kv=3, group=3, dim=64, shuffle=False)
    anchor_k, anchor_v = torch.randn(3, 37, 64), torch.randn(3, 37, 64)
    crowd = make_case(6, [517, 1000, 33], [1, 1, 1], page_size=16, kv=3, group=3, dim=64, shuffle=False)
    for position in range(517):
        for mine, theirs in ((alone.k_pages, crowd.k_pages), (alone.v_pages, crowd.v_pages)):
            theirs[crowd.table[0][position // 16], position % 16] = mine[
                alone.table[0][position // 16], position % 16
            ]
    crowd.q[0] = alone.q[0]
    outs = [
        paged_fieldprint_attention(
            case.q,
            case.k_pages,
            case.v_pages,
            plan_attention(case.table, case.lens, case.cu, **case.plan_args()),
            anchor_k=anchor_k,
            anchor_v=anchor_v,
            g=torch.full((9,), 0.1),
        ).out[0]
        for case in (alone, crowd)
    ]
    assert torch.equal(*outs)


def test_same_bits_wherever_the_pages_lie() -> None:
    lens, queries = [600, 2600, 90], [1, 1, 33]
    results = []
    for shuffle in (False, True):
        case = make_case(11, lens, queries, page_size=16, kv=3, group=3, dim=64, shuffle=shuffle)
        plan = plan_attention(case.table, case.lens, case.cu, **case.plan_args(), window=2100, num_sinks=4)
        results.append(paged_fieldprint_attention(case.q, case.k_pages, case.v_pages, plan).out)
    assert torch.equal(*results)


def test_torch_flash_returns_natural_lse() -> None:
    q, k, v = torch.randn(1, 2, 3, 16), torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=0.3)
    logits = 0.3 * q @ k.transpose(-1, -2)
    torch.testing.assert_close(lse, torch.logsumexp(logits, -1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out, torch.softmax(logits, -1) @ v, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    case = make_case(7, [70, 300], [3, 1], page_size=16, kv=1, group=3, dim=64)
    case.q, case.k_pages, case.v_pages = case.q.to(dtype), case.k_pages.to(dtype), case.v_pages.to(dtype)
    anchor_k, anchor_v = torch.randn(1, 20, 64).to(dtype), torch.randn(1, 20, 64).to(dtype)
    plan = plan_attention(case.table, case.lens, case.cu, **case.plan_args())
    got = paged_fieldprint_attention(
        case.q, case.k_pages, case.v_pages, plan, anchor_k=anchor_k, anchor_v=anchor_v
    ).out
    want = naive(case, anchor_k=anchor_k, anchor_v=anchor_v)[0]
    relative = (got.double() - want).norm() / want.norm()
    assert relative < (5e-3 if dtype == torch.bfloat16 else 1e-3)


REFUSED: list[tuple[str, dict[str, object]]] = [
    ("g is above 0 but there is no anchor", {"g": torch.full((6,), 0.1)}),
    (
        "g must lie",
        {"g": torch.full((6,), 1.5), "anchor_k": torch.zeros(2, 1, 16), "anchor_v": torch.zeros(2, 1, 16)},
    ),
    (
        "g must lie",
        {
            "g": torch.full((6,), math.nan),
            "anchor_k": torch.zeros(2, 1, 16),
            "anchor_v": torch.zeros(2, 1, 16),
        },
    ),
    (
        "g must be",
        {"g": torch.zeros(2), "anchor_k": torch.zeros(2, 1, 16), "anchor_v": torch.zeros(2, 1, 16)},
    ),
    ("more than 512", {"anchor_k": torch.zeros(2, 513, 16), "anchor_v": torch.zeros(2, 513, 16)}),
    ("anchor_k and anchor_v", {"anchor_k": torch.zeros(2, 1, 16)}),
    ("anchor_k must be", {"anchor_k": torch.zeros(3, 1, 16), "anchor_v": torch.zeros(3, 1, 16)}),
    ("anchor_v must be", {"anchor_k": torch.zeros(2, 1, 16), "anchor_v": torch.zeros(2, 2, 16)}),
    (
        "anchor_k must be",
        {"anchor_k": torch.zeros(2, 1, 16).half(), "anchor_v": torch.zeros(2, 1, 16).half()},
    ),
    ("operator", {"operator": "average"}),
    ("q_anchor", {"q_anchor": torch.zeros(1, 6, 8)}),
]


@pytest.mark.parametrize(("match", "options"), REFUSED, ids=[name for name, _ in REFUSED])
def test_bad_arguments_are_named(match: str, options: dict[str, object]) -> None:
    case = make_case(8, [5], [1], page_size=4, kv=2, group=3, dim=16)
    plan = plan_attention(case.table, case.lens, case.cu, **case.plan_args())
    with pytest.raises(ValueError, match=match):
        paged_fieldprint_attention(case.q, case.k_pages, case.v_pages, plan, **options)  # type: ignore[arg-type]


def test_bad_tensors_are_named() -> None:
    case = make_case(9, [5], [1], page_size=4, kv=2, group=3, dim=16)
    plan = plan_attention(case.table, case.lens, case.cu, **case.plan_args())
    q, k, v = case.q, case.k_pages, case.v_pages
    bad: list[tuple[str, tuple[Tensor, Tensor, Tensor]]] = [
        ("q must", (q.double(), k, v)),
        ("k_pages must", (q, k.half(), v)),
        ("v_pages must", (q, k, v[:1])),
        ("equally spaced", (q, k.transpose(1, 2).contiguous().transpose(1, 2), v)),
        ("not a multiple", (q[:, :5], k, v)),
        ("plan was made", (torch.cat([q, q]), k, v)),
    ]
    for match, tensors in bad:
        with pytest.raises(ValueError, match=match):
            paged_fieldprint_attention(*tensors, plan)


def test_a_plan_refuses_what_does_not_fit() -> None:
    sizes = {"page_size": 4, "num_pages": 3}
    for match, table, lens, cu in [
        ("no page of the pool", [[0, 7]], [5], [0, 1]),
        ("no page of the pool", [[0, -1]], [5], [0, 1]),
        ("no page of the pool", [[0]], [5], [0, 1]),
        ("do not fit", [[0]], [1], [0, 2]),
        ("same batch", [[0]], [1, 1], [0, 1]),
    ]:
        with pytest.raises(ValueError, match=match):
            plan_attention(table, lens, cu, **sizes)
    with pytest.raises(ValueError, match="window"):
        plan_attention([[0]], [1], [0, 1], **sizes, window=0)
    assert plan_attention([[-1, 2]], [8], [0, 1], **sizes, window=4).sequences[0].runs[0].first_slot == 8
