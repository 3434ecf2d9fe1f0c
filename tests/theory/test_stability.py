"""The error as a diffusion: R18 to R20 of docs/theory.md, against simulations with fixed seeds."""

import math

import pytest
from hypothesis import strategies as st

from fieldprint.theory import stability as theory
from tests.theory.refuting import for_all

np = pytest.importorskip("numpy")

DEVIATIONS = 4.5  # of a sample mean: one run in 100,000 would be further off
rates = st.floats(min_value=-2, max_value=2)
noises = st.floats(min_value=0.05, max_value=2)


def multiplicative(
    rate: float, noise: float, *, until: float, steps: int, paths: int, seed: int
) -> "np.ndarray":
    """ln|e| at the end of each path of the Euler scheme, from e = 1."""
    draw, dt = np.random.default_rng(seed), until / steps
    logs = np.zeros(paths)
    for _ in range(steps):
        logs += np.log(np.abs(1 - rate * dt + noise * math.sqrt(dt) * draw.standard_normal(paths)))
    return logs


def additive(
    rate: float, noise: float, dimension: int, *, until: float, steps: int, paths: int, seed: int
) -> "np.ndarray":
    """|X|^2 at the end of each path, from X = 0, by the exact transition of the process."""
    draw, dt = np.random.default_rng(seed), until / steps
    keep, spread = math.exp(-rate * dt), noise * math.sqrt(-math.expm1(-2 * rate * dt) / (2 * rate))
    x = np.zeros((paths, dimension))
    for _ in range(steps):
        x = keep * x + spread * draw.standard_normal(x.shape)
    return (x**2).sum(axis=1)


def is_mean(samples: "np.ndarray", value: float, allowance: float = 0.0) -> bool:
    """Whether `value` lies in the confidence interval of the samples' mean, widened by `allowance`."""
    width = DEVIATIONS * samples.std() / math.sqrt(len(samples))
    return bool(abs(samples.mean() - value) <= width + allowance)


# R18


@pytest.mark.parametrize(
    ("rate", "noise"),
    [(0.5, 0.6), (0.1, 0.6), (0.18, 0.6), (0.0, 0.5)],
    ids=["stable", "unstable", "border", "no pull"],
)
def test_the_moments_grow_as_said(rate: float, noise: float) -> None:
    until, steps = 1.0, 200
    logs = multiplicative(rate, noise, until=until, steps=steps, paths=40_000, seed=1)
    for power in (1.0, 2.0):
        expected = math.exp(theory.moment_exponent(rate, noise, power) * until)
        bias = 2 * expected * (rate**2 + noise**4 + rate * noise**2) * until / steps  # of Euler, first order
        samples = np.exp(power * logs)
        assert is_mean(samples, expected, bias)
    wrong = math.exp(2 * (-rate + noise**2) * until)  # Stratonovich's reading of the same equation
    assert not is_mean(np.exp(2 * logs), wrong, bias)
    assert not is_mean(np.exp(2 * logs), math.exp(2 * theory.path_exponent(rate, noise) * until), bias)


@pytest.mark.parametrize(
    ("rate", "noise"), [(0.3, 0.8), (-0.2, 1.0), (-0.5, 0.5)], ids=["both", "paths only", "neither"]
)
def test_paths_die_out_at_the_path_exponent(rate: float, noise: float) -> None:
    until, steps = 40.0, 4000
    slopes = multiplicative(rate, noise, until=until, steps=steps, paths=400, seed=2) / until
    assert is_mean(slopes, theory.path_exponent(rate, noise), 0.01)
    assert not is_mean(slopes, -rate, 0.01), "the mean's exponent"
    assert not is_mean(slopes, -rate + noise**2 / 2, 0.01), "the other sign"
    assert (slopes.mean() < 0) == theory.is_almost_surely_stable(rate, noise)


def test_almost_every_path_dies_out_while_the_mean_square_explodes() -> None:
    rate, noise = -0.2, 1.0
    assert theory.is_almost_surely_stable(rate, noise) and not theory.is_mean_square_stable(rate, noise)
    assert theory.moment_exponent(rate, noise, 1) > 0 and theory.moment_exponent(
        rate, noise
    ) == pytest.approx(1.4)
    logs = multiplicative(rate, noise, until=40.0, steps=4000, paths=400, seed=3)
    assert (logs < 0).mean() > 0.95
    early = np.exp(2 * multiplicative(rate, noise, until=0.5, steps=100, paths=40_000, seed=4))
    assert is_mean(early, math.exp(1.4 * 0.5), 0.05) and early.mean() > 1.5


@for_all(rates, noises)
def test_mean_square_stability_implies_the_other_and_not_conversely(rate: float, noise: float) -> None:
    assert theory.is_mean_square_stable(rate, noise) == (rate > noise**2 / 2)
    assert theory.is_almost_surely_stable(rate, noise) == (rate > -(noise**2) / 2)
    if theory.is_mean_square_stable(rate, noise):
        assert theory.is_almost_surely_stable(rate, noise)
        assert theory.moment_exponent(rate, noise, 1) < 0
    between = noise**2 / 4
    for rate_between in (between, -between):
        assert theory.is_almost_surely_stable(rate_between, noise)
        assert not theory.is_mean_square_stable(rate_between, noise)


def test_on_the_border_nothing_dies_out() -> None:
    """k = s^2 / 2 keeps E e^2 as it is, k = -s^2 / 2 makes ln|e| a martingale: stable in neither sense."""
    assert theory.moment_exponent(0.5, 1.0) == 0 and not theory.is_mean_square_stable(0.5, 1.0)
    assert theory.path_exponent(-0.5, 1.0) == 0 and not theory.is_almost_surely_stable(-0.5, 1.0)
    ends = multiplicative(-0.5, 1.0, until=30.0, steps=3000, paths=400, seed=5)
    assert 0.35 < (ends < 0).mean() < 0.65


@for_all(rates, noises, st.floats(min_value=0.01, max_value=1))
def test_small_moments_die_out_with_the_paths(rate: float, noise: float, share: float) -> None:
    """For k > -s^2 / 2 the moments of powers below 1 + 2 k / s^2 die out, those above grow."""
    edge = 1 + 2 * rate / noise**2
    if edge > 0:
        assert theory.moment_exponent(rate, noise, share * edge * 0.999) < 0
        assert theory.moment_exponent(rate, noise, edge * (1 + share)) > 0


# R19


@pytest.mark.parametrize("dimension", [1, 2, 3, 8])
def test_the_additive_error_settles_at_d_s2_over_2k(dimension: int) -> None:
    rate, noise = 0.8, 0.5
    squares = additive(rate, noise, dimension, until=12.0, steps=60, paths=20_000, seed=dimension)
    expected = theory.stationary_mean_square(rate, noise, dimension)
    assert is_mean(squares, expected)
    for wrong in (
        expected / dimension if dimension > 1 else 0,
        expected * 2,
        expected / 2,
        dimension * noise / rate,
    ):
        assert not is_mean(squares, wrong)


def test_the_additive_mean_square_by_eulers_scheme_too() -> None:
    """Straight from the equation, with its own step error: dt k / 2, relative."""
    draw, dt, rate, noise, dimension = np.random.default_rng(11), 0.02, 0.8, 0.5, 3
    x = np.zeros((10_000, dimension))
    for _ in range(500):
        x = x - rate * x * dt + noise * math.sqrt(dt) * draw.standard_normal(x.shape)
    expected = theory.stationary_mean_square(rate, noise, dimension)
    assert is_mean((x**2).sum(axis=1), expected, expected * dt * rate)


def test_without_a_pull_there_is_no_stationary_state() -> None:
    for rate in (0.0, -1.0):
        with pytest.raises(ValueError, match="pull"):
            theory.stationary_mean_square(rate, 0.5, 3)


# R20


def test_in_one_dimension_zero_is_reached_and_in_more_it_is_not() -> None:
    """The chance to fall to `low` before rising to 1: in one dimension it tends to a number above zero, else to zero."""
    lows = [10.0**-n for n in (2, 4, 8, 16, 32)]
    chances = {
        d: [theory.hitting_probability(low, 0.5, 1.0, rate=0.8, noise=0.7, dimension=d) for low in lows]
        for d in (1, 2, 3, 4)
    }
    assert theory.reaches_zero(1) and chances[1][-1] > 0.3
    assert chances[1][-1] == pytest.approx(chances[1][-2], rel=1e-6)
    for d in (2, 3, 4):
        assert not theory.reaches_zero(d)
        assert all(after < before for before, after in zip(chances[d], chances[d][1:], strict=False))
        assert chances[d][-1] < 0.03
        # At least as fast as 1 / ln(1 / low): the integral diverges.
        assert all(chance <= 2 / math.log(1 / low) for chance, low in zip(chances[d], lows, strict=True))


def test_without_drift_the_chance_is_that_of_bessels_process() -> None:
    for d, s in ((1, lambda x: x), (2, math.log), (3, lambda x: -1 / x), (5, lambda x: -(x**-3))):
        exact = (s(2.0) - s(0.7)) / (s(2.0) - s(0.1))
        got = theory.hitting_probability(0.1, 0.7, 2.0, rate=0.0, noise=0.9, dimension=d)
        assert got == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_the_chance_is_that_of_simulated_paths(dimension: int) -> None:
    rate, noise, low, start, high, dt = 0.8, 0.7, 0.3, 0.6, 1.0, 4e-4
    draw = np.random.default_rng(20 + dimension)
    x = np.zeros((2_000, dimension))
    x[:, 0] = start
    fallen, paths = 0, len(x)
    # A path that is looked at every dt overshoots by 0.5826 s sqrt(dt) in the mean (Broadie, Glasserman, Kou).
    reach = 0.5826 * noise * math.sqrt(dt)
    while len(x):
        x = x - rate * x * dt + noise * math.sqrt(dt) * draw.standard_normal(x.shape)
        e = np.sqrt((x**2).sum(axis=1))
        fallen += int((e <= low).sum())
        x = x[(e > low) & (e < high)]
    expected = theory.hitting_probability(
        low - reach, start, high + reach, rate=rate, noise=noise, dimension=dimension
    )
    assert abs(fallen / paths - expected) <= DEVIATIONS * math.sqrt(expected * (1 - expected) / paths) + 0.005
    for other in {1, 2, 3} - {dimension}:
        wrong = theory.hitting_probability(
            low - reach, start, high + reach, rate=rate, noise=noise, dimension=other
        )
        assert abs(fallen / paths - wrong) > 0.03


def test_one_dimension_changes_its_sign() -> None:
    """X passes through zero, again and again; in one dimension |X| therefore is zero there."""
    draw, dt = np.random.default_rng(31), 0.05
    x = np.full(2_000, 0.5)
    crossed = np.zeros(2_000, dtype=bool)
    for _ in range(400):
        after = math.exp(-0.8 * dt) * x + 0.7 * math.sqrt(
            -math.expm1(-1.6 * dt) / 1.6
        ) * draw.standard_normal(2_000)
        crossed |= (after > 0) != (x > 0)
        x = after
    assert crossed.mean() > 0.999


def test_the_radial_error_comes_as_near_to_zero_as_one_waits_for() -> None:
    """It never is zero in two dimensions, and yet no level above zero is a floor: most paths fall below a tenth of the mean."""
    draw, dt = np.random.default_rng(41), 0.01
    keep, spread = math.exp(-0.8 * dt), 0.7 * math.sqrt(-math.expm1(-1.6 * dt) / 1.6)
    x = np.zeros((500, 2))
    x[:, 0] = 0.5
    nearest = np.full(500, np.inf)
    for _ in range(4000):
        x = keep * x + spread * draw.standard_normal(x.shape)
        nearest = np.minimum(nearest, np.sqrt((x**2).sum(axis=1)))
    level = math.sqrt(theory.stationary_mean_square(0.8, 0.7, 2))
    assert (nearest < level / 10).mean() > 0.9 and nearest.min() > 0


def test_limits_that_are_out_of_order_are_refused() -> None:
    for low, start, high in ((0.0, 0.5, 1.0), (0.6, 0.5, 1.0), (0.1, 2.0, 1.0), (0.5, 0.5, 0.5)):
        with pytest.raises(ValueError, match="low"):
            theory.hitting_probability(low, start, high, rate=1.0, noise=1.0, dimension=2)
