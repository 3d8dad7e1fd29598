"""Exemplars: of each bucket of a histogram the latest request that a trace tells more of.

Guarantees: one for each bucket at most, so the size is fixed; only callers that say that their
trace is recorded are pointed to; the time of a bucket's exemplar never goes back, since Prometheus
refuses what does (https://prometheus.io/docs/prometheus/latest/feature_flags/#exemplars-storage).
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple, Self

from sidecar.wire.traceparent import parse


class Exemplar(NamedTuple):
    """One observed value, and whose it was.

    t_ns: when the request ended, Unix time.
    trace_id, span_id: of the caller's span, in hex digits; ours is a child of it.
    """

    value: float
    t_ns: int
    trace_id: str
    span_id: str

    @classmethod
    def of(cls, value: float, t_ns: int, traceparent: str) -> Self | None:
        """The exemplar of a value; None where no trace is recorded, or no value was."""
        context = parse(traceparent)
        if context is None or not context.is_sampled or not math.isfinite(value):
            return None
        return cls(value, t_ns, context.trace_id, context.span_id)


Places = tuple[Exemplar | None, ...]


class Exemplars:
    """A fold of exemplars into the buckets of a histogram with these bounds.

    >>> kept = Exemplars((0.1, 1.0))
    >>> kept.update(Exemplar(0.5, 1, "0a" * 16, "0b" * 8))
    >>> [each.value if each else None for each in kept.get()]
    [None, 0.5, None]
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._latest: list[Exemplar | None] = [None] * (len(bounds) + 1)

    def update(self, item: Exemplar | None) -> None:
        """Take one, or none."""
        if item is not None:
            place = bisect_left(self._bounds, item.value)
            self._latest[place] = _later(self._latest[place], item)

    def get(self) -> Places:
        """The latest of each bucket; None where there was none."""
        return tuple(self._latest)

    def merge(self, other: Self) -> None:
        """Take those of `other`, over the same bounds."""
        self._latest = list(merged(self.get(), other.get()))


def merged(mine: Places, theirs: Places) -> Places:
    """Of each bucket the later one; where one side has no buckets, those of the other."""
    if not mine or not theirs:
        return mine or theirs
    return tuple(map(_later, mine, theirs))


def _later(mine: Exemplar | None, theirs: Exemplar | None) -> Exemplar | None:
    if mine is None or theirs is None:
        return mine or theirs
    return theirs if theirs.t_ns >= mine.t_ns else mine
