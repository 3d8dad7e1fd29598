"""A replica beside the others: against formulas done by hand, against simulation, at the edges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.fold.drift.leave_one_out import Differences, differences, normal_score
from sidecar.fold.drift.moments import Moments
from tests.fold.drift.fleets import NUM_STREAMS, Fleet, shift

ALL = np.ones(4, np.bool_)


def of(*values: float) -> Moments:
    """Moments of one stream."""
    moments = Moments(1)
    moments.update(np.array(values, np.float64)[:, None])
    return moments


def compared(fleet: Fleet, index: int = 0) -> Differences:
    windows = fleet.windows(index).values()
    return differences(
        [each.strata for each in windows], np.ones(len(windows), np.bool_), NUM_STREAMS
    )


def test_one_stratum_is_the_two_sample_t_test() -> None:
    """(mean_q - mean_rest) / sqrt(sigma2 (1/n_q + 1/n_rest)), sigma2 pooled within replicas."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((4, 40)) + np.array([0.5, 0, 0, 0])[:, None]
    found = differences([{"chat": of(*each)} for each in rows], ALL, 1)
    sigma2 = rows.var(axis=1, ddof=1).mean()
    t = (rows[0].mean() - rows[1:].mean()) / np.sqrt(sigma2 / 40 + sigma2 / 120)

    assert found.score[0, 0] == pytest.approx(normal_score(np.array(t), np.array(156.0)))
    slack = 1 / np.sqrt(1 / 40 + 1 / 120)
    assert found.slack[0, 0] == pytest.approx(slack)


def test_strata_count_by_their_precision() -> None:
    """D = sum r/v / sqrt(sum 1/v): DRIFT's window score, the rest in place of the baseline."""
    rng = np.random.default_rng(4)
    strata = {"chat": rng.standard_normal((4, 30)), "code": 9 + 3 * rng.standard_normal((4, 60))}
    replicas = [{name: of(*rows[q]) for name, rows in strata.items()} for q in range(4)]
    pulls = weights = 0.0
    for rows in strata.values():
        n = rows.shape[1]
        v = rows.var(axis=1, ddof=1).mean() * (1 / n + 1 / (3 * n))
        pulls += (rows[2].mean() - rows[[0, 1, 3]].mean()) / v
        weights += 1 / v
    found = differences(replicas, ALL, 1)

    want = normal_score(np.array(pulls / np.sqrt(weights)), np.array(4 * 29.0 + 4 * 59.0))
    assert found.score[2, 0] == pytest.approx(want)


def test_scores_of_equal_replicas_are_standard_normal() -> None:
    """Mean 0, variance 1 and a tail of 2.3 % beyond 2, though the traffic moves all of them."""
    fleet = Fleet(num_requests=60)
    scores = np.stack([compared(fleet, k).score for k in range(150)])

    assert abs(scores.mean()) < 0.02
    assert scores.std() == pytest.approx(1, abs=0.02)
    assert (np.abs(scores) > 2).mean() == pytest.approx(0.0455, abs=0.006)


def test_a_mix_that_shifts_for_all_moves_no_score() -> None:
    """Strata apart by ten standard deviations, their shares unequal: still standard normal."""
    fleet = Fleet(num_requests=100)
    mix = {"chat|-|p64-127|g16-31": 0.3, "code|-|p256-511|g64-127": 0.7}
    fleet.mixes = dict.fromkeys(fleet.names[:4], mix)
    scores = np.stack([compared(fleet, k).score for k in range(60)])

    assert scores.std() == pytest.approx(1, abs=0.04)


def test_a_replica_is_no_part_of_its_own_reference() -> None:
    """A shift of one replica moves its own score by all of it, the others' by a seventh back."""
    fleet = Fleet()
    fleet.shifts = {fleet.names[0]: shift(4.0, NUM_STREAMS)}
    scores = np.stack([compared(fleet, k).score for k in range(60)]).mean(axis=(0, 2))

    full = 4.0 / np.sqrt(1 + 1 / 7)
    assert scores[0] == pytest.approx(full, rel=0.05)
    assert scores[1:] == pytest.approx(-full / 7, abs=0.1)


def test_a_replica_that_is_no_reference_is_judged_and_moves_nobody() -> None:
    """The others' scores are as if it were not there."""
    windows = list(Fleet(num_replicas=4).windows(0).values())
    three = differences([each.strata for each in windows[1:]], ALL[:3], NUM_STREAMS)
    four = differences(
        [each.strata for each in windows], np.array([False, True, True, True]), NUM_STREAMS
    )

    np.testing.assert_allclose(four.score[1:], three.score, rtol=1e-9)
    assert np.isfinite(four.score[0]).all()


@pytest.mark.parametrize(
    "replicas",
    [
        [{}, {}, {}, {}],
        [{"chat": of(1, 2, 3, 4)}] * 4,  # fewer than 5 each
        [{"chat": of(*range(7))}] * 4,  # fewer than 30 in all
        [{"chat": of(*range(50))}, {}, {}, {}],  # nobody to compare with
        [{"chat": of(*[np.nan] * 50)}] * 4,
        [{"chat": of(*[0.0] * 50)}] * 4,  # no spread, and no size to round by
    ],
)
def test_too_little_is_not_a_number(replicas: list[dict[str, Moments]]) -> None:
    """NaN, never 0: no data is not agreement."""
    assert np.isnan(differences(replicas, ALL, 1).score).all()


def test_one_wild_replica_does_not_blind_the_others() -> None:
    """Its variance, a lie of any size, counts as sixteen times the usual one at most."""
    rng = np.random.default_rng(8)
    rows = rng.standard_normal((8, 40)) + np.array([2.0] + [0.0] * 7)[:, None]
    replicas = [{"chat": of(*each)} for each in rows]
    honest = differences(replicas, np.ones(8, np.bool_), 1).score[0, 0]
    replicas[7]["chat"].m2[:] = 1e60
    score = differences(replicas, np.ones(8, np.bool_), 1).score[0, 0]

    assert score > honest / 2 > 4


def test_a_constant_that_differs_is_seen() -> None:
    """Its spread is taken to be the rounding of bfloat16, not 0."""
    constants = [{"chat": of(*[value] * 50)} for value in (1.25, 1.0, 1.0, 1.0)]
    score = differences(constants, ALL, 1).score[:, 0]

    assert score[0] > 10
    assert score[1] == pytest.approx(score[3])


@given(st.integers(0, 2**32 - 1), st.permutations(range(5)))
def test_the_order_of_replicas_changes_nothing(seed: int, order: list[int]) -> None:
    """Scores follow their replica."""
    windows = list(Fleet(num_replicas=5, num_requests=40, seed=seed).windows(0).values())
    one = differences([each.strata for each in windows], np.ones(5, np.bool_), NUM_STREAMS)
    other = differences([windows[i].strata for i in order], np.ones(5, np.bool_), NUM_STREAMS)

    np.testing.assert_allclose(other.score, one.score[order], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("t", "freedom", "normal"),
    [(2.228139, 10, 1.959964), (3.169273, 10, 2.575829), (-2.042272, 30, -1.959964)],
)
def test_student_becomes_normal_by_its_tail(t: float, freedom: float, normal: float) -> None:
    """Quantiles out of tables, at 2.5 % and 0.5 %."""
    assert normal_score(np.array(t), np.array(freedom)) == pytest.approx(normal, abs=0.02)
