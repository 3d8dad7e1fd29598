"""Fits: parts of a fleet's traffic add up to the reference of all of it."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import BaselineError, StateError
from sidecar.fold.drift import cells
from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.drift.fit import Fit, fit
from sidecar.fold.drift.observation import Observation
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.window import Windows
from sidecar.wire.signature import Layout
from tests.fold.drift.traffic import HEADER, LAYOUT, SECOND, START_NS, observation, traffic

OBSERVATIONS = traffic(2000, seconds=9.0)
WHOLE = fit(HEADER, OBSERVATIONS)


def part(observations: list[Observation]) -> Fit:
    return fit(HEADER, observations, WHOLE.plan)


def merged(parts: list[Fit]) -> Baseline:
    total = Fit(HEADER, WHOLE.plan)
    for each in parts:
        total.merge(each)
    return total.get()


def assert_equal(mine: Baseline, theirs: Baseline) -> None:
    """Counts to the bit; means, spreads and scores to 1e-12 of their scale."""
    for a, b in zip(mine.strata, theirs.strata, strict=True):
        for name in ("num_rows", "n", "nonfinite", "smallest", "largest"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12)
        np.testing.assert_allclose(a.m2, b.m2, rtol=1e-12)
    np.testing.assert_array_equal(mine.spread, theirs.spread)
    np.testing.assert_array_equal(mine.times_ns, theirs.times_ns)
    np.testing.assert_array_equal(mine.mix, theirs.mix)
    # tau2 is a difference of variances, so its scale is that of the variance between windows.
    scale = 1e-12 * np.nan_to_num(np.stack([r.sigma2 for r in mine.references]))
    assert (np.abs(mine.tau2 - theirs.tau2) <= scale).all()
    np.testing.assert_allclose(mine.reservoir, theirs.reservoir, rtol=1e-12, atol=1e-12)
    for x, y in zip(mine.related, theirs.related, strict=True):
        np.testing.assert_allclose(x.rho, y.rho, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(x.mean, y.mean, rtol=1e-12)
    assert mine.header == theirs.header


@settings(max_examples=8)
@given(st.permutations(range(8)), st.integers(0, 2**32))
def test_eight_replicas_in_any_order_are_the_pooled_fit(order: list[int], seed: int) -> None:
    """Requests dealt to replicas at random, and merged in any order, to 1e-12."""
    dealt = np.random.default_rng(seed).integers(0, 8, len(OBSERVATIONS))
    replicas = [
        part([each for each, mine in zip(OBSERVATIONS, dealt, strict=True) if mine == replica])
        for replica in order
    ]

    assert_equal(merged(replicas), WHOLE.get())


def test_any_grouping_is_the_pooled_fit() -> None:
    """Merging merged parts, as a tree of machines does, changes nothing; nor does an empty one."""
    replicas = [part(OBSERVATIONS[i::4]) for i in range(4)]
    replicas[0].merge(replicas[1])
    replicas[2].merge(Fit(HEADER, WHOLE.plan))
    replicas[2].merge(replicas[3])

    assert_equal(merged([replicas[2], replicas[0]]), WHOLE.get())


def test_two_weeks_are_the_pooled_fit() -> None:
    """Parts may be stretches of time as well, even where one window lies in both."""
    assert_equal(merged([part(OBSERVATIONS[1501:]), part(OBSERVATIONS[:1501])]), WHOLE.get())


def test_a_merged_fit_scores_as_the_pooled_one() -> None:
    """A window judged by either has the same score."""
    replicas = merged([part(OBSERVATIONS[i::8]) for i in (5, 2, 7, 0, 3, 6, 1, 4)])
    windows = Windows(Schema.of(LAYOUT), plan=WHOLE.plan)
    live = [w for each in traffic(500, seed=9) for w in windows.update(each)] + windows.flush()

    for window in live:
        np.testing.assert_allclose(
            replicas.score(window), WHOLE.get().score(window), rtol=1e-12, atol=1e-12
        )
    assert len(live) > 3


def test_live_windows_are_those_of_the_reservoir() -> None:
    """The baseline's own requests, served live, give its own scores, times and counts."""
    gaps = [each for each in OBSERVATIONS if (each.t_ns // (1800 * SECOND)) % 3]
    thin = [each for i, each in enumerate(gaps) if i < 500 or i % 7 == 0]
    baseline = part(thin).get()
    windows = Windows(baseline.schema, plan=baseline.plan)
    live = [w for each in thin for w in windows.update(each)] + windows.flush()

    assert [w.end_ns for w in live] == baseline.times_ns.tolist()
    assert len({w.end_ns - w.start_ns for w in live}) > 1
    assert (baseline.mix >= 5).sum(1).max() == 4
    np.testing.assert_array_equal([baseline.mix_of(w) for w in live], baseline.mix)
    np.testing.assert_allclose([baseline.score(w) for w in live], baseline.reservoir, rtol=1e-12)


def test_the_reservoir_is_standard_where_nothing_drifts() -> None:
    """Scores of independent windows have mean 0 and sd 1, stream by stream."""
    reservoir = WHOLE.get().reservoir

    assert np.abs(reservoir.mean(0)).max() < 4 / np.sqrt(len(reservoir))
    assert 0.75 < reservoir.std(0).mean() < 1.05


def test_a_plain_fit_goes_on_as_if_it_had_never_stopped() -> None:
    """Read back, it gives the same baseline, and merges as before."""
    halves = [part(OBSERVATIONS[:1000]), part(OBSERVATIONS[1000:])]
    first, second = (Fit.from_plain(half.to_plain()) for half in halves)
    first.merge(second)

    assert Fit.from_plain(WHOLE.to_plain()).get().digest == WHOLE.get().digest
    assert_equal(first.get(), WHOLE.get())


def test_only_the_latest_cells_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go, whichever replica they are of; the moments keep all requests."""
    monkeypatch.setattr(cells, "MAX_CELLS", 10)
    replicas = [part(OBSERVATIONS[i::3]) for i in range(3)]
    baselines = [
        merged(list(order))
        for order in (replicas, replicas[::-1], [replicas[i] for i in (1, 0, 2)])
    ]

    assert [baseline.num_windows for baseline in baselines] == [10] * 3
    for one, other in itertools.pairwise(baselines):
        assert_equal(one, other)
    assert baselines[0].times_ns.tolist() == WHOLE.get().times_ns[-10:].tolist()
    assert baselines[0].num_requests == len(OBSERVATIONS)


def test_other_plans_do_not_add_up() -> None:
    """The message says how to make them of one plan."""
    other = fit(HEADER, OBSERVATIONS[:1000])

    with pytest.raises(BaselineError, match="with the plan of one of them"):
        other.merge(WHOLE)


def test_other_layouts_and_models_do_not_add_up() -> None:
    """What differs is named, and the fit is as it was."""
    total = part(OBSERVATIONS[:100])
    before = total.get().digest
    with pytest.raises(BaselineError, match="layers: "):
        total.merge(Fit(HEADER._replace(layout=Layout([0])), WHOLE.plan))
    identity = type(HEADER.identity)(weights_digest="another")
    with pytest.raises(BaselineError, match="weights_digest: w and another"):
        total.merge(Fit(HEADER._replace(identity=identity), WHOLE.plan))

    assert total.get().digest == before


def test_a_span_is_that_of_the_requests() -> None:
    """From the first to the last, whatever the order."""
    header = fit(HEADER, [OBSERVATIONS[i] for i in (5, 3, 9)]).get().header

    assert (header.start_ns, header.end_ns) == (OBSERVATIONS[3].t_ns, OBSERVATIONS[9].t_ns)


def test_canaries_are_in_no_baseline() -> None:
    """A known-safe task of ours is no reference for traffic."""
    baseline = fit(HEADER, [observation(canary="a@1")] * 50).get()

    assert (baseline.num_requests, baseline.num_windows, baseline.header.end_ns) == (0, 0, 0)


DEGENERATE: dict[str, list[Observation]] = {
    "none": [],
    "one": traffic(1),
    "two": traffic(2),
    "one window": traffic(40),
    "constant": [observation(START_NS + i * SECOND) for i in range(900)],
    "nothing measured": [observation(START_NS + i * SECOND, np.nan) for i in range(900)],
    "infinite": [observation(START_NS + i * SECOND, np.inf) for i in range(900)],
    "huge": [observation(START_NS + i * SECOND, (-1.0) ** i * 3e38) for i in range(900)],
    "one stratum": [each._replace(route="a", num_prompt_tokens=9) for each in traffic(900)],
    "at the epoch": [observation(i * SECOND) for i in range(900)],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_traffic_makes_a_baseline(name: str) -> None:
    """Of whatever came, without a warning: finite or NaN scores, never an infinity."""
    fitted = fit(HEADER, DEGENERATE[name])
    baseline = fitted.get()
    windows = Windows(baseline.schema, plan=baseline.plan)
    live = [w for each in traffic(80) for w in windows.update(each)] + windows.flush()
    scores = np.array([baseline.score(window) for window in live])

    assert not np.isinf(scores).any()
    assert not np.isinf(baseline.reservoir).any()
    assert (baseline.tau2 >= 0).all()
    assert baseline.num_requests == len(DEGENERATE[name])
    assert Baseline.from_plain(baseline.to_plain()).digest == baseline.digest
    assert_equal(fitted.get(), Fit.from_plain(fitted.to_plain()).get())


@pytest.mark.parametrize(
    "change",
    [
        {"header": {}},
        {"plan": {}},
        {"strata": {}},
        {"spread": {}},
        {"related": []},
        {"related": [{}]},
        {"cells": {}},
        {"cells": None},
    ],
)
def test_a_foreign_fit_is_refused(change: dict[str, Any]) -> None:
    """Missing or other parts are a StateError, never a fit of something else."""
    with pytest.raises(StateError):
        Fit.from_plain({**WHOLE.to_plain(), **change})


def test_cells_of_unknown_strata_are_refused() -> None:
    """A place beyond the plan's strata is no place."""
    plain = WHOLE.to_plain()
    plain["plan"] = fit(HEADER, []).to_plain()["plan"]

    with pytest.raises(StateError):
        Fit.from_plain(plain)
