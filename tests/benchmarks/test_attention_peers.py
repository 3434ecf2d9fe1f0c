"""The unfused ways of a whole prompt that the benchmark compares with, against `naive_attention`."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from benchmarks.attention_peers import (  # noqa: E402
    Prefill,
    prefill_flash,
    prefill_materialized,
    prefill_ours,
)
from fieldprint.attention.naive import naive_attention  # noqa: E402


@pytest.mark.parametrize("operator", ["floor", "mixture"])
@pytest.mark.parametrize(
    ("way", "device", "dtype", "tolerance"),
    [
        (prefill_materialized, "cpu", torch.float32, 1e-6),
        (prefill_ours, "cpu", torch.float32, 1e-6),
        pytest.param(prefill_ours, "cuda", torch.float16, 2e-3, marks=pytest.mark.gpu),
        pytest.param(prefill_flash, "cuda", torch.float16, 2e-3, marks=pytest.mark.gpu),
    ],
)
def test_unfused_prefill_equals_naive(
    way: Prefill, device: str, dtype: torch.dtype, tolerance: float, operator: str
) -> None:
    tokens, heads, anchor, dim = 48, 2, 5, 16
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(tokens, heads, dim, generator=draw).to(dtype) for _ in range(3))
    anchor_k, anchor_v = (torch.randn(heads, anchor, dim, generator=draw).to(dtype) for _ in range(2))
    g = torch.tensor([0.05, 0.6])
    want, *_ = naive_attention(
        q, k[None], v[None], torch.zeros(1, 1, dtype=torch.int32), torch.tensor([tokens]),
        torch.tensor([0, tokens]), anchor_k=anchor_k, anchor_v=anchor_v, g=g, operator=operator,
    )  # fmt: skip
    got = way(*(x.to(device) for x in (q, k, v, anchor_k, anchor_v, g)), operator, dim**-0.5).double().cpu()
    assert (got - want).norm() <= tolerance * want.norm()
