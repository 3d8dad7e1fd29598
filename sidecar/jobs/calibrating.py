"""Calibrate a baseline: replay months of its own windows, and score the requests it came from.

Guarantees: the same baseline, seed and recordings give the same calibration to the last bit, on
whatever pool; limits are never lowered (`fold.drift.calibrate`).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift.baseline import Baseline, Calibration, TailCalibration
from sidecar.fold.drift.calibrate import (
    NUM_MONTHS,
    Replay,
    calibration_of,
    draw_months,
    peaks,
    replay_of,
)
from sidecar.fold.drift.observation import Observation
from sidecar.fold.drift.policy import Policy
from sidecar.fold.drift.tail import calibrated_tail
from sidecar.jobs.fitting import Part, num_requests, parts_of
from sidecar.jobs.pool import Advance, Pool
from sidecar.store.recording import Recording

PART_MONTHS: Final = 10  # judged at once; more take more memory and are no faster


def calibrate_limits(
    baseline: Baseline,
    policy: Policy,
    seed: int,
    pool: Pool,
    advance: Advance,
    num_months: int = NUM_MONTHS,
) -> Calibration:
    """Deflation and limits of traffic; `advance` is told of months."""
    replay = replay_of(baseline, policy)
    months = draw_months(len(replay.days), np.random.default_rng(seed), num_months)
    parts = [months[i : i + PART_MONTHS] for i in range(0, len(months), PART_MONTHS)]
    highest: list[NDArray[np.float64]] = [np.zeros(0)]
    for part, found in zip(parts, pool.map(partial(_peaks, replay), parts), strict=True):
        highest.append(found)
        advance(len(part))
    return calibration_of(baseline, policy, np.concatenate(highest))


def calibrate_tail(
    baseline: Baseline, recordings: Sequence[Recording], pool: Pool, advance: Advance
) -> TailCalibration:
    """Tail scores of all requests in `recordings`; `advance` is told of requests."""
    parts = parts_of(recordings)
    total = TailCalibration.of(np.zeros(0))
    for part, tail in zip(parts, pool.map(partial(_tail, baseline), parts), strict=True):
        total = total.add(tail)
        advance(num_requests(part))
    return total


def _peaks(replay: Replay, months: NDArray[np.int64]) -> NDArray[np.float64]:
    return peaks(replay, months)


def _tail(baseline: Baseline, part: Part) -> TailCalibration:
    return calibrated_tail(baseline, _observations(part))


def _observations(part: Part) -> Iterator[Observation]:
    for recording in part:
        yield from recording.observations()
