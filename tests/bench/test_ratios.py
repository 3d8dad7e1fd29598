"""The statistics of interleaved turns, and when a target counts as met."""

import numpy as np
import pytest

from bench.ratios import MET, MISSED, UNRESOLVED, Ratio, Taken, compare, of_pairs, verdict


def turns(rate: float, noise: float = 0.0, num: int = 20, seed: int = 1) -> list[Taken]:
    """Turns of 8 steps at `rate` tokens a second, with relative noise."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num):
        own = rate * float(np.exp(noise * rng.standard_normal()))
        found.append(Taken(own, 2 / own, [1 / own] * 8))
    return found


def test_a_slower_arm_has_a_ratio_below_one_and_longer_times() -> None:
    """Rates fall by as much as times rise, with no uncertainty where there is no noise."""
    found = compare(turns(100.0), turns(80.0))
    assert found.rate == pytest.approx((0.8, 0.8, 0.8))
    assert found.token_p50 == found.token_p99 == pytest.approx((1.25, 1.25, 1.25))
    assert found.first == pytest.approx((1.25, 1.25, 1.25))


def test_noise_that_hits_both_of_a_pair_cancels() -> None:
    """That is what taking turns is for: rates that vary by half, and a ratio known to 1 %."""
    rng = np.random.default_rng(0)
    machine = np.exp(0.5 * rng.standard_normal(40))
    found = of_pairs((0.95 * machine).tolist(), machine.tolist())
    assert found.half_width < 0.01
    assert found.ratio == pytest.approx(0.95)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """95 %, here of 200 runs with noise that does not cancel."""
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        found = of_pairs(*np.exp(0.02 * rng.standard_normal((2, 20))).tolist())
        covered += found.low <= 1.0 <= found.high
    assert covered >= 170


def test_a_workload_without_steps_has_no_time_per_token() -> None:
    """As one that generates a single token."""
    bare = [Taken(1.0, 1.0, [])] * 3
    assert compare(bare, bare).token_p99 is None


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (Ratio(0.995, 0.985, 1.004), MET),
        (Ratio(0.990, 0.975, 1.004), UNRESOLVED),  # it may be below
        (Ratio(0.95, 0.94, 0.96), MISSED),
        (Ratio(1.05, 1.0, 1.10), UNRESOLVED),  # wider than the margin, though all of it above
        (Ratio(0.90, 0.80, 0.97), MISSED),  # wide too, but all of it below
    ],
)
def test_an_interval_wider_than_the_margin_is_not_met(found, told) -> None:
    """The margin of a target of 0.98 is 2 %."""
    assert verdict(found, least=0.98) == told


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (Ratio(1.01, 1.0, 1.015), MET),
        (Ratio(1.01, 1.0, 1.03), UNRESOLVED),
        (Ratio(1.05, 1.04, 1.06), MISSED),
        (Ratio(1.20, 1.03, 1.40), MISSED),
    ],
)
def test_a_time_may_not_exceed_its_limit(found, told) -> None:
    """The other way round."""
    assert verdict(found, most=1.02) == told


def test_a_target_has_one_limit() -> None:
    """Two would contradict each other somewhere."""
    with pytest.raises(ValueError, match="one limit"):
        verdict(Ratio(1, 1, 1), least=0.9, most=1.1)
