"""Rotating and storing in one kernel against torch's operators."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from fieldprint.kvcache.store import rotate_and_store  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("head_dim", [32, 96])
@pytest.mark.parametrize("second", [False, True], ids=["one", "with anchor positions"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernel_equals_torch(head_dim: int, second: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(head_dim)
    rows, q_heads, kv_heads, size = 5, 6, 2, 16
    heads = torch.randn(rows, q_heads + 2 * kv_heads, head_dim).to(DEVICE, dtype)
    angles = torch.randn(2, rows, 1, head_dim // 2).to(DEVICE)
    cos, sin = angles.cos().repeat(1, 1, 1, 2), torch.cat([-angles.sin(), angles.sin()], -1)
    rotations = [(c.to(dtype), s.to(dtype)) for c, s in zip(cos, sin, strict=True)]
    slots = torch.tensor([0, 17, 79, 33, 5], device=DEVICE)
    results = []
    for use_kernel in (False, True):
        k = torch.full((5, size, kv_heads, head_dim), float("nan"), device=DEVICE, dtype=dtype)
        v = k.clone()
        q, q_anchor = rotate_and_store(
            heads[:, : q_heads + kv_heads],
            heads[:, q_heads + kv_heads :],
            rotations[0],
            rotations[1] if second else None,
            slots,
            k,
            v,
            use_kernel=use_kernel,
        )
        assert (q_anchor is not None) == second
        results.append([q, k, v] + ([] if q_anchor is None else [q_anchor]))
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert int(torch.isnan(results[1][1]).sum()) == (5 * size - rows) * kv_heads * head_dim
