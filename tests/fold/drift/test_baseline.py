"""Baselines: frozen, and what judges with one is bound to it."""

import time
from typing import Any

import numpy as np
import pytest

from sidecar.errors import StateError
from sidecar.fold.drift.baseline import Baseline, Calibration, TailCalibration
from sidecar.fold.drift.fit import fit
from sidecar.fold.drift.window import Window, Windows
from tests.fold.drift.traffic import HEADER, SECOND, START_NS, observation, traffic

BASELINE = fit(HEADER, traffic(2000)).get()
STEADY = fit(HEADER, [observation(START_NS + i * SECOND) for i in range(600)]).get()
CALIBRATION = Calibration(1.3, {"cusum/0.25/page": 26.9}, {"months": 160, "share": 0.01})


def window_of(baseline: Baseline, observations: list) -> Window:
    windows = Windows(baseline.schema, plan=baseline.plan)
    for each in observations:
        windows.update(each)
    (window,) = windows.flush()
    return window


def test_a_shift_is_seen_where_it_is() -> None:
    """A stream moved by one sd of a request scores sqrt(n) beside the others."""
    place = [s.name for s in BASELINE.schema.streams].index("residual/decode/l1/log_rms")
    at = int(BASELINE.schema.places[place])
    moved = [
        each._replace(
            values=each.values + np.eye(1, len(each.values), at, dtype=np.float32)[0] / 10
        )
        for each in traffic(90, seed=5)
    ]
    change = BASELINE.score(window_of(BASELINE, moved)) - BASELINE.score(
        window_of(BASELINE, traffic(90, seed=5))
    )

    assert change[place] == pytest.approx(np.sqrt(90), rel=0.25)
    assert np.abs(np.delete(change, place)).max() < 1e-9


def test_a_mix_shift_is_not_drift() -> None:
    """Only one kind of request, at its usual level, scores like any other window."""
    chat = [each for each in traffic(360, seed=6) if each.route == "chat"][:90]
    same_time = [each._replace(t_ns=START_NS) for each in chat]

    assert np.abs(BASELINE.score(window_of(BASELINE, same_time))).max() < 5


def test_unknown_strata_are_scored_as_other() -> None:
    """A window made without the plan has other names, and is folded when it is scored."""
    rare = [observation(START_NS, route="rare") for _ in range(40)]
    windows = Windows(BASELINE.schema)
    for each in rare:
        windows.update(each)
    (window,) = windows.flush()

    assert set(window.strata) == {"rare|-|p64-127|g16-31"}
    assert BASELINE.mix_of(window).tolist() == BASELINE.mix_of(window_of(BASELINE, rare)).tolist()
    assert BASELINE.mix_of(window)[-1] == 40


def test_a_constant_that_changed_is_named() -> None:
    """Where every value of the baseline was equal, one other value is a change."""
    same = window_of(STEADY, [observation()] * 40)
    other = window_of(STEADY, [*[observation()] * 39, observation(level=3.5)])

    chat = STEADY.plan.place("chat|-|p64-127|g16-31")
    assert STEADY.is_constant[chat].all()
    assert not STEADY.changed_constants(same).any()
    assert STEADY.changed_constants(other).all()
    assert not BASELINE.is_constant.any()
    assert not BASELINE.changed_constants(other).any()


def test_few_equal_values_are_no_constant() -> None:
    """Fewer than 200 of them may be chance."""
    few = fit(HEADER, [observation(START_NS + i * SECOND) for i in range(199)]).get()

    assert not few.is_constant.any()


def test_it_comes_back_to_the_bit() -> None:
    """With everything that was computed beside it."""
    tail = TailCalibration.of(np.arange(50.0))
    baseline = BASELINE.calibrated(CALIBRATION).with_tail(tail)
    back = Baseline.from_plain(baseline.to_plain())

    assert back.digest == baseline.digest
    assert back.calibration == CALIBRATION
    assert back.tail is not None
    assert back.tail.largest.tolist() == tail.largest.tolist()
    assert back.header == baseline.header
    np.testing.assert_array_equal(back.reservoir, baseline.reservoir)
    window = window_of(BASELINE, traffic(90, seed=7))
    np.testing.assert_array_equal(back.score(window), baseline.score(window))


def test_a_digest_is_of_everything_that_judges() -> None:
    """Another calibration, tail or reservoir is another baseline."""
    digests = {
        BASELINE.digest,
        BASELINE.calibrated(CALIBRATION).digest,
        BASELINE.with_tail(TailCalibration.of(np.ones(3))).digest,
        STEADY.digest,
    }

    assert len(digests) == 4
    assert BASELINE.calibrated(CALIBRATION).digest == BASELINE.calibrated(CALIBRATION).digest


@pytest.mark.parametrize(
    "change",
    [
        {"header": None},
        {"strata": {}},
        {"tau2": {}},
        {"times_ns": {}},
        {"related": []},
        {"related": None},
        {"calibration": {"eta": 1}},
        {"calibration": 3},
        {"tail": {"num_requests": 3}},
        {"spread": {}},
    ],
)
def test_a_foreign_baseline_is_refused(change: dict[str, Any]) -> None:
    """Missing or other parts are a StateError."""
    with pytest.raises(StateError):
        Baseline.from_plain({**BASELINE.to_plain(), **change})


def test_parts_of_other_sizes_are_refused() -> None:
    """A reservoir of another number of windows than there are times is none."""
    plain = BASELINE.to_plain()

    with pytest.raises(StateError):
        Baseline.from_plain({**plain, "reservoir": STEADY.to_plain()["reservoir"]})


def test_tails_add_up_in_any_order() -> None:
    """The largest of all are kept, the number is of all, and NaN is no score."""
    rng = np.random.default_rng(0)
    parts = [rng.exponential(size=n) for n in (9000, 4000, 7000)]
    whole = TailCalibration.of(np.concatenate([*parts, [np.nan]]))
    for order in ((0, 1, 2), (2, 0, 1)):
        total = TailCalibration(0, np.zeros(0))
        for i in order:
            total = total.add(TailCalibration.of(parts[i]))
        assert total.num_requests == whole.num_requests == 20_000
        np.testing.assert_array_equal(total.largest, whole.largest)
    assert len(whole.largest) == 10_000


def test_a_window_is_scored_in_a_millisecond() -> None:
    """Far below the 5 ms that the whole traffic channel may take (a busy machine: 10 times it)."""
    window = window_of(BASELINE, traffic(90, seed=5))
    BASELINE.score(window)
    best = min(_seconds(BASELINE, window) for _ in range(20))

    assert best < 0.01


def _seconds(baseline: Baseline, window: Window) -> float:
    start = time.perf_counter()
    baseline.score(window)
    return time.perf_counter() - start
