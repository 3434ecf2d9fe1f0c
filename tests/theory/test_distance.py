"""Distances between distributions over tokens: R21 of docs/theory.md."""

import math
from collections.abc import Callable

import pytest
from hypothesis import strategies as st

from fieldprint.theory import distance as theory
from tests.theory.refuting import for_all, refuted

SLACK = 1e-7  # arcsin near its end magnifies rounding
rows = st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any)
distributions = rows.map(lambda row: [n / sum(row) for n in row])
pairs = st.tuples(distributions, distributions)
triples = st.tuples(distributions, distributions, distributions)
Distance = Callable[[list[float], list[float]], float]


def overlap(p: list[float], q: list[float]) -> float:
    return math.fsum(math.sqrt(a * b) for a, b in zip(p, q, strict=True))


@for_all(pairs)
def test_it_is_twice_the_angle_of_the_roots(case: tuple[list[float], list[float]]) -> None:
    assert theory.fisher_rao(*case) == pytest.approx(2 * math.acos(min(1.0, overlap(*case))), abs=1e-6)
    assert math.cos(theory.fisher_rao(*case) / 2) == pytest.approx(overlap(*case), abs=1e-12)


def is_metric(distance: Distance, case: tuple[list[float], list[float], list[float]]) -> bool:
    p, q, r = case
    return (
        distance(p, p) <= 1e-12
        and (p == q or distance(p, q) > 1e-12)
        and abs(distance(p, q) - distance(q, p)) <= 1e-12
        and distance(p, r) <= distance(p, q) + distance(q, r) + SLACK
    )


@for_all(triples)
def test_it_is_a_metric(case: tuple[list[float], list[float], list[float]]) -> None:
    assert is_metric(theory.fisher_rao, case)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda p, q: 1 - overlap(p, q),
        lambda p, q: sum(a * math.log((a + 1e-9) / (b + 1e-9)) for a, b in zip(p, q, strict=True)),
        lambda p, q: max(p) - max(q),
    ],
    ids=["no arccos", "Kullback-Leibler", "top probabilities"],
)
def test_what_is_no_metric_is_refuted(mutant: Distance) -> None:
    assert refuted(triples, lambda case: is_metric(mutant, case))


def test_its_range_is_from_zero_to_pi() -> None:
    assert theory.fisher_rao([1.0, 0.0], [0.0, 1.0]) == pytest.approx(math.pi, rel=1e-15)
    assert theory.fisher_rao([0.3, 0.7], [0.3, 0.7]) == 0


def test_it_keeps_its_digits_where_arccos_loses_them() -> None:
    """p and q of two tokens that differ by 2h: the distance is 2 h / sqrt(p (1 - p)) and terms of h^3."""
    h = 1e-10
    exact = 4 * h
    p, q = [0.5 + h, 0.5 - h], [0.5 - h, 0.5 + h]
    assert theory.fisher_rao(p, q) == pytest.approx(exact, rel=1e-5)
    assert abs(2 * math.acos(min(1.0, overlap(p, q))) - exact) > 0.1 * exact


@for_all(distributions, st.lists(st.floats(min_value=-1, max_value=1), min_size=4, max_size=4))
def test_it_is_the_length_of_the_path_over_the_sphere(p: list[float], direction: list[float]) -> None:
    """Its local form is Fisher's metric: the sum of dp_i^2 / p_i, along a short tilt."""
    h = 1e-4
    raw = [a * math.exp(h * d) for a, d in zip(p, direction, strict=True)]
    q = [a / math.fsum(raw) for a in raw]
    center = math.fsum(a * d for a, d in zip(p, direction, strict=True))
    fisher = math.fsum(a * (d - center) ** 2 for a, d in zip(p, direction, strict=True))
    assert theory.fisher_rao(p, q) == pytest.approx(h * math.sqrt(fisher), rel=1e-3, abs=1e-8)


# Pairs near each limit: mirrored ones, and ones of which the second lacks what the first has alone.
shares = st.integers(1, 99).map(lambda n: n / 100)
edges = shares.map(lambda a: ([a, 1 - a], [1 - a, a])) | shares.map(
    lambda a: ([a, 1 - a, 0.0], [a, 0.0, 1 - a])
)


def variation_is_limited(
    limits: Callable[[float], tuple[float, float]], case: tuple[list[float], list[float]]
) -> bool:
    low, high = limits(theory.fisher_rao(*case))
    return low - SLACK <= theory.total_variation(*case) <= high + SLACK


@for_all(pairs | edges)
def test_total_variation_lies_between_the_limits(case: tuple[list[float], list[float]]) -> None:
    assert variation_is_limited(theory.total_variation_limits, case)


@pytest.mark.parametrize(
    "mutant",
    [
        lambda d: (0.0, 1 - math.cos(d / 2)),
        lambda d: (math.sin(d / 2), 1.0),
        lambda d: (0.0, 0.99 * math.sin(d / 2)),
        lambda d: (1.01 * (1 - math.cos(d / 2)), 1.0),
    ],
    ids=["upper by cos", "lower by sin", "upper less a hundredth", "lower more a hundredth"],
)
def test_other_limits_are_refuted(mutant: Callable[[float], tuple[float, float]]) -> None:
    assert refuted(edges, lambda case: variation_is_limited(mutant, case))


@for_all(st.floats(min_value=0.001, max_value=0.999))
def test_both_limits_are_reached(a: float) -> None:
    """Above by mirrored pairs, below by pairs of which the second lacks what the first has alone."""
    for (p, q), side in ((([a, 1 - a], [1 - a, a]), 1), (([a, 1 - a, 0.0], [a, 0.0, 1 - a]), 0)):
        limit = theory.total_variation_limits(theory.fisher_rao(p, q))[side]
        assert theory.total_variation(p, q) == pytest.approx(limit, abs=1e-9)


def test_what_is_no_distribution_is_refused() -> None:
    for p in ([0.5, 0.6], [1.5, -0.5], [math.nan, 1.0]):
        for distance in (theory.fisher_rao, theory.total_variation):
            with pytest.raises(ValueError, match="distribution"):
                distance(p, [0.5, 0.5])
    with pytest.raises(ValueError, match="1 and 2 tokens"):
        theory.fisher_rao([1.0], [0.5, 0.5])
