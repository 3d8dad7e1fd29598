"""Calibration by replay: whether traffic keeps its rate of false pages on its own baseline.

The first half of the reservoir is the baseline; months are drawn from the second half, day by day
with replacement (block bootstrap, Kuensch 1989, with days as blocks, which keep what windows of a
day have in common); the share of months with a false page must have an upper 90 % bound
(Clopper & Pearson 1934) of at most 28 %, which is what one page in 3 months allows. Else the limits
are scaled up until it has (DRIFT.md, "Threshold calibration").

Guarantees: limits are never lowered; the same numpy Generator gives the same result, however the
months are split among machines (`draw_months`, `peaks`). It is a safety net, not a proof: a week
says nothing of the next season.
"""

import itertools
import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift.baseline import Baseline, Calibration
from sidecar.fold.drift.cusum import Charts
from sidecar.fold.drift.deflation import long_run_eta
from sidecar.fold.drift.policy import Policy
from sidecar.fold.drift.traffic import SCALE, eta_of, judgeable, ranks_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DAY_NS: Final = 24 * 3600 * 10**9
DAYS: Final = 30  # of a month
NUM_MONTHS: Final = 200
MAX_SHARE: Final = 0.28  # of months with a false page
CONFIDENCE: Final = 0.9
MIN_DAYS: Final = 3  # in the second half; fewer are the same day again and again


class Replay(NamedTuple):
    """What months are drawn from, and judged with.

    days: [num_days, longest day, p] scores u in order of time, NaN where a day has no more.
    charts: as the first half alone would have them.
    """

    days: Floats
    charts: Charts


def calibrate(
    baseline: Baseline,
    rng: np.random.Generator,
    policy: Policy = Policy(),  # noqa: B008
    num_months: int = NUM_MONTHS,
) -> Calibration:
    """eta, limits and the figures of the replay; `baseline.calibrated` takes them."""
    replay = replay_of(baseline, policy)
    months = draw_months(len(replay.days), rng, num_months)
    return calibration_of(baseline, policy, peaks(replay, months))


def replay_of(baseline: Baseline, policy: Policy = Policy()) -> Replay:  # noqa: B008
    """The second half of the reservoir, scored against the first."""
    half = baseline.num_windows // 2
    first, second = baseline.reservoir[:half], baseline.reservoir[half:]
    ranks = ranks_of(first)
    scores = ranks.score(second) / long_run_eta(ranks.score(first))
    num_judged = max(int(judgeable(first).sum()), 1)
    charts = Charts.pair(num_judged, policy.run_length, max(half, 1))
    return Replay(_by_day(scores, baseline.times_ns[half:]), charts)


def draw_months(num_days: int, rng: np.random.Generator, num_months: int = NUM_MONTHS) -> Ints:
    """[num_months, 30] days of each month, with replacement; none where there are too few days."""
    if num_days < MIN_DAYS:
        return np.zeros((0, DAYS), np.int64)
    return rng.integers(0, num_days, (num_months, DAYS))


def peaks(replay: Replay, months: Ints) -> Floats:
    """[num_months] the highest share of its limit that any chart reached in each month."""
    charts = replay.charts
    levels = np.zeros((len(months), len(charts.signs), replay.days.shape[-1]))
    highest = np.zeros(len(months))
    for slot in months.T:
        for scores in replay.days[slot].swapaxes(0, 1):
            levels = charts.step(levels, scores)
            reached = levels.max(axis=2, initial=0.0) / charts.limits
            np.maximum(highest, reached.max(axis=1, initial=0.0), out=highest)
    return highest


def calibration_of(baseline: Baseline, policy: Policy, highest: Floats) -> Calibration:
    """What these peaks of months ask for."""
    scale = scale_of(highest)
    num_alarmed, num_months = int((highest >= 1).sum()), len(highest)
    num_left = int((highest >= scale).sum())
    length = baseline.num_windows
    num_judged = max(int(judgeable(baseline.reservoir).sum()), 1)
    thresholds = {SCALE: scale}
    for kind, run_length in (("page", policy.run_length), ("ticket", policy.ticket_run_length)):
        charts = Charts.pair(num_judged, run_length, length).scaled(scale)
        for k, h in zip(charts.dead_bands, charts.limits, strict=True):
            thresholds[f"cusum/{k:.2f}/{kind}"] = float(h)
    replay: dict[str, float | int | str | bool] = {
        "num_months": num_months,
        "num_alarmed_months": num_alarmed,
        "upper_bound_of_share": upper_bound(num_alarmed, num_months),
        "num_alarmed_months_after_scaling": num_left,
        "is_rate_kept": upper_bound(num_left, num_months) <= MAX_SHARE,
    }
    return Calibration(eta_of(baseline.reservoir), thresholds, replay)


def scale_of(highest: Floats) -> float:
    """The least factor >= 1 on the limits that brings the bound to 28 %.

    1 with fewer than 8 months, which cannot bring it there however calm they are.
    """
    num = len(highest)
    if upper_bound(0, num) > MAX_SHARE:
        return 1.0
    too_many = itertools.dropwhile(lambda m: upper_bound(m, num) <= MAX_SHARE, range(num))
    allowed = next(too_many) - 1
    # A month alarms at its peak, so the first one that may not has to stay below its limit.
    first_not = float(np.sort(highest)[::-1][allowed])
    return max(1.0, math.nextafter(first_not, math.inf))


def upper_bound(num_alarmed: int, num_months: int, confidence: float = CONFIDENCE) -> float:
    """Clopper and Pearson's one-sided bound: the share p with P(X <= num_alarmed | p) = 1 - c."""
    if num_alarmed >= num_months:
        return 1.0
    low, high = num_alarmed / num_months, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _cumulative(num_alarmed, num_months, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _cumulative(most: int, num: int, share: float) -> float:
    """P(X <= most) of a binomial, 0 < share < 1."""
    if share <= 0:
        return 1.0
    return math.fsum(
        math.exp(
            math.lgamma(num + 1)
            - math.lgamma(k + 1)
            - math.lgamma(num - k + 1)
            + k * math.log(share)
            + (num - k) * math.log1p(-share)
        )
        for k in range(most + 1)
    )


def _by_day(scores: Floats, times_ns: Ints) -> Floats:
    """[num_days, longest, p]; days of which less than half of the longest is there are left out."""
    day = times_ns // DAY_NS
    parts = [scores[day == each] for each in np.unique(day)]
    longest = max((len(part) for part in parts), default=0)
    whole = [part for part in parts if 2 * len(part) >= longest]
    days = np.full((len(whole), longest, scores.shape[1]), np.nan)
    for at, part in enumerate(whole):
        days[at, : len(part)] = part
    return days
