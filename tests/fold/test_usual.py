"""What is usual: a source's own start, and what a baseline says of its layers."""

import numpy as np
import pytest

from sidecar.fold.columns import NUM_COLUMNS
from sidecar.fold.drift.schema import Schema
from sidecar.fold.usual import FLOOR, MIN_COLUMNS, OwnStart, Usual, of_baseline
from tests.publish import drifting

SECOND = 1_790_000_000


def start_of(columns: np.ndarray) -> OwnStart:
    start = OwnStart(columns.shape[1:])
    for k, phi in enumerate(columns):
        start.update(SECOND + k, phi)
    return start


def test_the_start_is_the_mean_and_spread_of_its_columns() -> None:
    """As numpy has them; columns without rows count nowhere."""
    columns = np.random.default_rng(1).normal(3.0, 0.5, (100, 4))
    columns[::3, 1] = np.nan
    usual = start_of(columns).get()

    np.testing.assert_allclose(usual.mean, np.nanmean(columns, 0), rtol=1e-12)
    np.testing.assert_allclose(usual.sd, np.nanstd(columns, 0, ddof=1), rtol=1e-12)


def test_too_few_columns_say_nothing() -> None:
    """Below the least number there is no z; from it on there is."""
    columns = np.zeros((MIN_COLUMNS, 1))

    assert not start_of(columns[:-1]).get().is_known
    assert start_of(columns).get().is_known


def test_the_start_ends_after_ten_minutes() -> None:
    """What comes later changes nothing, or a slow change would become usual."""
    start = start_of(np.zeros((NUM_COLUMNS, 1)))
    before = start.get()
    assert not start.takes(SECOND + NUM_COLUMNS)
    start.update(SECOND + NUM_COLUMNS, np.full(1, 100.0))

    assert start.get().mean.tolist() == before.mean.tolist() == [0.0]


def test_z_counts_spreads_and_never_less_than_rounding() -> None:
    """A spread of 0 is half a step of bfloat16, and what is unknown stays so."""
    usual = Usual(np.array([1.0, 1.0, np.nan]), np.array([0.5, 0.0, 1.0]))
    z = usual.z(np.array([2.0, 1.0 + FLOOR, 1.0]))

    assert z[:2].tolist() == [2.0, 1.0]
    assert np.isnan(z[2])


def test_a_baseline_tells_mean_and_spread_of_its_requests() -> None:
    """All strata together, for the layers that its signatures have; others are unknown."""
    baseline = drifting.baseline()
    streams = [stream.name for stream in Schema.of(drifting.LAYOUT).streams]
    place = streams.index("residual/decode/l1/log_rms")
    together = baseline.strata[0].get()
    for each in baseline.strata[1:]:
        together.merge(each)
    usual = of_baseline(baseline, "residual", "residual_rms", "decode", (1, 7))

    assert usual.mean[0] == together.mean[place]
    assert usual.sd[0] == pytest.approx(np.sqrt(together.variance[place]))
    assert np.isnan(usual.mean[1])


def test_a_baseline_says_nothing_of_what_no_signature_has() -> None:
    """A largest weight of attention is in no signature."""
    usual = of_baseline(drifting.baseline(), "attention", "max_weight", "decode", (0, 1))

    assert not usual.is_known
