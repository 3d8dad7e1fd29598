"""How much slower one arm is than another: medians of interleaved turns, with their uncertainty.

Turns of the two arms are paired, since they ran next to each other and a noisy machine hit both.
Intervals are 95 % percentile bootstraps over the pairs (B. Efron, 1979), from a seed. One that is
wider than the margin that a target leaves is told as unresolved, never as met; one that is wholly
beyond the limit is a miss, whatever its width.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

SEED: Final = 0
_DRAWS: Final = 2000
MET, MISSED, UNRESOLVED = "met", "MISSED", "unresolved"
Floats = NDArray[np.float64]


class Taken(NamedTuple):
    """What one turn of one arm took.

    rate: tokens per second, of the kind that the workload is heavy of.
    first: mean time to first token, seconds. steps: time per output token, of each step.
    """

    rate: float
    first: float
    steps: Sequence[float]


class Ratio(NamedTuple):
    """A ratio, and the ends of its interval."""

    ratio: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Of the interval."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        return f"{self.ratio:.3f} ({self.low:.3f} to {self.high:.3f})"


class Comparison(NamedTuple):
    """An arm over its reference: rates, and times per output token and to the first one."""

    rate: Ratio
    token_p50: Ratio | None
    token_p99: Ratio | None
    first: Ratio


def compare(reference: Sequence[Taken], arm: Sequence[Taken]) -> Comparison:
    """Compare turns that were taken in pairs; as many of the one as of the other."""
    return Comparison(
        of_pairs([each.rate for each in arm], [each.rate for each in reference]),
        _of_steps(arm, reference, 0.5),
        _of_steps(arm, reference, 0.99),
        of_pairs([each.first for each in arm], [each.first for each in reference]),
    )


def of_pairs(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Median of `above[i] / below[i]`."""
    ratios = np.array(above) / np.array(below)
    medians = np.median(ratios[_draws(len(ratios))], axis=1)
    return _ratio(float(np.median(ratios)), medians)


def _of_steps(above: Sequence[Taken], below: Sequence[Taken], q: float) -> Ratio | None:
    """Ratio of the quantiles of all steps, drawn turn by turn; None where there are no steps."""
    if not all(each.steps for each in (*above, *below)):
        return None
    ours, theirs = ([np.array(each.steps) for each in side] for side in (above, below))

    def ratio(turns: Sequence[int] | NDArray[np.int64]) -> float:
        pooled = (np.concatenate([side[turn] for turn in turns]) for side in (ours, theirs))
        return float(np.divide(*(np.quantile(each, q) for each in pooled)))

    found = np.array([ratio(turns) for turns in _draws(len(ours), _DRAWS // 4)])
    return _ratio(ratio(range(len(ours))), found)


def _draws(num: int, times: int = _DRAWS) -> NDArray[np.int64]:
    return np.random.default_rng(SEED).integers(num, size=(times, num))


def _ratio(ratio: float, drawn: Floats) -> Ratio:
    low, high = (float(np.quantile(drawn, q)) for q in (0.025, 0.975))
    return Ratio(ratio, low, high)


def verdict(found: Ratio, *, least: float | None = None, most: float | None = None) -> str:
    """Whether a target is met: at least `least`, or at most `most`; one of the two is given."""
    if (least is None) == (most is None):
        raise ValueError("a target has one limit: give least or most")
    limit = float((least if least is not None else most) or 0.0)
    worst, best = (found.low, found.high) if least is not None else (-found.high, -found.low)
    bound = limit if least is not None else -limit
    if best < bound:  # all of the interval is beyond the limit, however wide it is
        return MISSED
    return MET if worst >= bound and found.half_width <= abs(1.0 - limit) else UNRESOLVED


def plain(comparison: Comparison) -> dict[str, Any]:
    """JSON-able."""
    return {
        name: None if each is None else each._asdict()
        for name, each in comparison._asdict().items()
    }
