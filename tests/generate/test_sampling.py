"""Drawing on the device against the sampler, row by row."""

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from fieldprint.generate.sampling import Sampler, draw_rows  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
samplers = st.builds(
    Sampler,
    st.sampled_from([0.0, 0.05, 0.7, 1.0, 20.0]),
    st.sampled_from([1e-9, 0.1, 0.5, 0.95, 1.0]),
    st.integers(0, 2**53 - 1),
)


@settings(deadline=None)
@given(st.lists(samplers, min_size=1, max_size=4), st.integers(0, 2**31), st.integers(0, 10**6))
def test_rows_are_drawn_as_one_by_one(rows: list[Sampler], seed: int, position: int) -> None:
    logits = torch.randn(len(rows), 307, generator=torch.Generator().manual_seed(seed)) * 4
    logits[:, 11] = logits[:, 200] = logits.max() + 1  # a tie: the lowest id wins
    expected = [s.draw(logits[i], position + i) for i, s in enumerate(rows)]

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=DEVICE)

    got = draw_rows(
        logits.to(DEVICE),
        column([s.temperature for s in rows]),
        column([s.top_p for s in rows]),
        column([s.uniform(position + i) for i, s in enumerate(rows)]),
    )
    assert got.tolist() == expected


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logits_that_are_not_numbers_give_some_token(temperature: float) -> None:
    """Damaged pages give such logits; the token is provisional and will be taken back, and must not end the batch."""
    for logits in (torch.full((50,), float("nan")), torch.full((50,), float("inf"))):
        assert 0 <= Sampler(temperature, 0.9, 5).draw(logits, 3) < 50
        drawn = draw_rows(
            logits.unsqueeze(0),
            torch.tensor([temperature], dtype=torch.float64),
            torch.tensor([0.9], dtype=torch.float64),
            torch.tensor([0.5], dtype=torch.float64),
        )
        assert 0 <= int(drawn) < 50
