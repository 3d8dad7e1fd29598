"""The window score: means against the baseline, in their own spread."""

import math

import numpy as np
import pytest

from sidecar.fold.drift.moments import Moments
from sidecar.fold.drift.score import Reference, Score, between_variance


def moments_of(*values: float) -> Moments:
    moments = Moments(1)
    if values:
        moments.update(np.array(values)[:, None])
    return moments


def reference(mu: float, sigma2: float, tau2: float = 0.0) -> Reference:
    return Reference(*(np.array([x]) for x in (mu, sigma2, tau2)), np.array([False]))


def scored(*strata: tuple[float, float, Reference]) -> float:
    score = Score((1,))
    for mean, n, ref in strata:
        score.update(np.array([mean]), np.array([n]), ref)
    return float(score.get()[0])


def test_it_is_the_formula() -> None:
    """D = sum r/v / sqrt(sum 1/v) with v = sigma2/n + tau2, by hand for two strata."""
    first, second = reference(3.0, 4.0, 0.5), reference(1.0, 9.0, 0.1)
    v = (4 / 10 + 0.5, 9 / 20 + 0.1)
    expected = (0.7 / v[0] - 0.2 / v[1]) / math.sqrt(1 / v[0] + 1 / v[1])

    assert scored((3.7, 10, first), (0.8, 20, second)) == pytest.approx(expected, rel=1e-14)


def test_one_stratum_is_a_z_score() -> None:
    """Without spread between windows, D is the usual z of a mean."""
    assert scored((3.5, 16, reference(3.0, 4.0))) == pytest.approx(0.5 / math.sqrt(4 / 16))


@pytest.mark.parametrize(("n", "said"), [(0, False), (4, False), (5, True)])
def test_a_stratum_of_few_says_nothing(n: int, *, said: bool) -> None:
    """Fewer than five values are left out; nothing at all is NaN, not 0."""
    assert math.isnan(scored((9.0, n, reference(3.0, 4.0)))) is not said


def test_a_stratum_without_a_reference_says_nothing() -> None:
    """A mean of one value, or of none, has no spread to compare in."""
    for moments in (moments_of(), moments_of(3.0)):
        assert math.isnan(scored((9.0, 50, Reference.of(moments, "bfloat16"))))


def test_the_mix_does_not_move_the_score() -> None:
    """Whatever the shares of the strata, at their own means the score is 0."""
    first, second = reference(3.0, 4.0, 0.1), reference(30.0, 9.0, 0.1)

    assert scored((3.0, 500, first), (30.0, 5, second)) == 0.0
    assert scored((3.0, 5, first), (30.0, 500, second)) == 0.0


def test_spread_between_windows_tames_large_ones() -> None:
    """With tau2 a shift of half its sd stays half, however many requests there are."""
    assert scored((3.05, 10**6, reference(3.0, 4.0))) > 20
    assert scored((3.05, 10**6, reference(3.0, 4.0, 0.01))) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("dtype", "step"),
    [("bfloat16", 2**-8), ("torch.float32", 2**-23), ("float16", 2**-10), ("", 2**-8)],
)
def test_a_constant_has_the_spread_of_a_rounding_step(dtype: str, step: float) -> None:
    """sigma2 = 0 becomes the square of a step of the model's dtype, and is marked."""
    found = Reference.of(moments_of(*[4.0] * 300), dtype)

    assert found.degenerate.tolist() == [True]
    assert found.sigma2.tolist() == [(4.0 * step) ** 2]


def test_a_constant_zero_has_a_spread_too() -> None:
    """Where a step of the mean is 0, a step of float32 at 1 stands in: no division by 0."""
    found = Reference.of(moments_of(*[0.0] * 300), "bfloat16")

    assert found.sigma2.tolist() == [(2.0**-23) ** 2]
    assert scored((0.0, 50, found)) == 0.0
    assert scored((1.0, 50, found)) > 1e6


def test_real_spread_is_left_alone() -> None:
    """However small against the mean, spread above the rounding of float32 is believed."""
    found = Reference.of(moments_of(*[3.0, 3.0 + 1e-5] * 100), "bfloat16")

    assert found.degenerate.tolist() == [False]
    assert found.sigma2[0] == pytest.approx(25e-12, rel=0.05)


def test_spread_between_windows_is_found() -> None:
    """tau2 of simulated windows is the one they were drawn with, and 0 where there was none."""
    rng = np.random.default_rng(1)
    n = rng.integers(20, 200, (4000, 1)).astype(float)
    sampling = rng.standard_normal((4000, 1)) * 2.0 / np.sqrt(n)
    moving = sampling + 0.5 * rng.standard_normal((4000, 1))
    sigma2 = np.array([4.0])

    assert between_variance(moving, n, sigma2)[0] == pytest.approx(0.25, rel=0.1)
    assert between_variance(sampling, n, sigma2)[0] < 0.005


def test_spread_between_windows_is_the_formula() -> None:
    """max(0, Var(means) - mean(sigma2 / n)), over windows of at least five values."""
    mean, n = np.array([[1.0], [3.0], [8.0], [99.0]]), np.array([[5.0], [10.0], [20.0], [4.0]])
    expected = np.var([1, 3, 8], ddof=1) - np.mean([0.2 / 5, 0.2 / 10, 0.2 / 20])

    assert between_variance(mean, n, np.array([0.2]))[0] == pytest.approx(expected, rel=1e-14)
    assert between_variance(mean, n, np.array([1e6])).tolist() == [0.0]


@pytest.mark.parametrize("num", [0, 1])
def test_too_few_windows_have_no_spread_between_them(num: int) -> None:
    """None or one window give 0, never NaN."""
    empty = np.full((num, 1), 3.0)

    assert between_variance(empty, np.full((num, 1), 50.0), np.array([1.0])).tolist() == [0.0]
