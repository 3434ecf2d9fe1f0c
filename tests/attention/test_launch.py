"""The decode step as an operator of torch: its schema holds, and `torch.compile` keeps it whole."""

import dataclasses
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from torch import Tensor  # noqa: E402

from fieldprint.attention import paged_fieldprint_attention  # noqa: E402
from fieldprint.attention.decode import DecodePlan, plan_decode  # noqa: E402
from fieldprint.attention.launch import paged_decode  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make(anchor: int = 5, **options: Any) -> tuple[DecodePlan, dict[str, Tensor]]:
    torch.manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape).to(DEVICE, torch.float16)

    table = torch.tensor([[0, 2, 4], [5, 1, 3]], dtype=torch.int32, device=DEVICE)
    lens = torch.tensor([19, 40], dtype=torch.int32, device=DEVICE)
    plan = plan_decode(
        table, lens, page_size=16, num_pages=6, num_q_heads=4, num_kv_heads=2, head_dim=64, dtype=torch.float16,
        num_anchor=anchor, num_programs=3, **options,
    )  # fmt: skip
    tensors = {
        "q": normal(2, 4, 64),
        "k_pages": normal(6, 16, 2, 64),
        "v_pages": normal(6, 16, 2, 64),
        "anchor_k": normal(2, anchor, 64),
        "anchor_v": normal(2, anchor, 64),
        "g": torch.tensor([0.0, 0.2, 0.9, 1.0], device=DEVICE),
    }
    return plan, tensors


def attend(plan: DecodePlan, t: dict[str, Tensor], **options: Any) -> tuple[Tensor | None, ...]:
    found = paged_fieldprint_attention(
        t["q"], t["k_pages"], t["v_pages"], plan, anchor_k=t["anchor_k"], anchor_v=t["anchor_v"], g=t["g"], **options
    )  # fmt: skip
    return found.out, found.lse, found.mass, found.weight


@pytest.mark.parametrize("invariant", [False, True], ids=["stream-K", "batch invariant"])
def test_opcheck(invariant: bool) -> None:
    plan, t = make(batch_invariant=invariant)
    rows = torch.zeros(2, 4, device=DEVICE)
    config = dataclasses.astuple(plan.config)
    arguments = (
        t["q"], t["k_pages"], t["v_pages"], plan.page_table, plan.work, t["anchor_k"], t["anchor_v"], None, t["g"],
        None, None, torch.empty_like(t["q"]), rows, rows.clone(), rows.clone(), plan.parts_o.zero_(),
        plan.parts_lse.zero_(), plan.arrivals, False, 0.125, 0.0, 1, 0, 0, plan.num_ranges,
        *config[:3], *config[4:6],
    )  # fmt: skip
    torch.library.opcheck(paged_decode, arguments)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch 2.11's own compiler
@pytest.mark.parametrize("operator", ["floor", "mixture"])
@pytest.mark.parametrize("with_mass", [False, True])
def test_compile_keeps_the_call_whole(operator: str, with_mass: bool) -> None:
    plan, t = make()
    backend = "inductor" if DEVICE == "cuda" else "aot_eager"

    def doubled(plan: DecodePlan, t: dict[str, Tensor]) -> tuple[Tensor | None, ...]:
        out, *others = attend(plan, t | {"q": t["q"] * 2}, operator=operator, with_mass=with_mass)
        return out + 1, *others

    expected = doubled(plan, t)
    torch._dynamo.reset()
    got = torch.compile(doubled, backend=backend, fullgraph=True)(plan, t)
    for a, b in zip(expected, got, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(b, a)
