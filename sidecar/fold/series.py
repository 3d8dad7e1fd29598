"""What one source has told so far: layer totals of an engine, request stats of a front end.

Guarantees: totals on the wire are cumulative, so the latest frame replaces the earlier ones and a
lost frame loses nothing; the size is fixed by the number of layers and of buckets, never by time.
"""

from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.exemplars import Exemplar
from sidecar.fold.histogram import (
    FIRST_TOKEN_SECONDS,
    OUTPUT_TOKEN_SECONDS,
    QUEUE_SECONDS,
    REQUEST_SECONDS,
    Distribution,
    Histogram,
)
from sidecar.fold.windows import Extremes, Stamped
from sidecar.wire.frame import Arrays, Coverage, Finished, Layers, Serving

REASONS: Final = ("stop", "length", "abort", "error", "repetition")
OTHER_REASON: Final = "other"


class LayerTotals(NamedTuple):
    """Totals of an engine since its boot.

    layers: global ids of the layers, as ordered in the arrays.
    moments: cumulative counts and sums (`moments.extremes` covers one frame only).
    window: float32 [P, L, S, 2], extremes of the last closed window; None when there is none.
    """

    layers: tuple[int, ...]
    num_steps: int
    num_requests: int
    coverage: Coverage
    moments: Arrays
    window: NDArray[np.float32] | None


class LayerSeries:
    """The latest totals of one engine, and the extremes of its last closed window."""

    def __init__(self) -> None:
        self._extremes = Extremes()
        self._body: Layers | None = None
        self._moments = Arrays.zeros(0)

    def update(self, t_ns: int, body: Layers) -> None:
        """Replace the totals by those of a later frame."""
        self._moments = Arrays.unpack(body.moments, len(body.layers))
        self._body = body
        self._extremes.update(Stamped(t_ns, self._moments.extremes))

    def advance(self, t_ns: int) -> None:
        """Take the time of a frame of another kind."""
        self._extremes.advance(t_ns)

    def get(self) -> LayerTotals | None:
        """Totals so far, or None before the first frame with layers."""
        body = self._body
        if body is None:
            return None
        window = self._extremes.get()
        if window is not None and window.shape != self._moments.extremes.shape:
            window = None
        return LayerTotals(
            tuple(body.layers),
            body.num_steps,
            body.num_requests,
            body.coverage,
            self._moments,
            window,
        )


class ServingTotals(NamedTuple):
    """Ordinary stats of one engine, as one front end sees them (or several, merged).

    t_ns: time of the frame that the gauges come from.
    finished: finished requests by reason, one of `REASONS` or `OTHER_REASON`; those whose client
    hung up are an `abort`, and in no distribution.
    The distributions are in seconds.
    """

    model_name: str
    engine: int
    t_ns: int
    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int
    preempted: int
    running: int
    waiting: int
    kv_cache_usage: float
    finished: dict[str, int]
    first_token: Distribution
    output_token: Distribution
    e2e: Distribution
    queue: Distribution

    def merge(self, other: Self) -> "ServingTotals":
        """Totals of two front ends of one engine; each request is served by one of them."""
        latest = max(self, other, key=lambda each: each.t_ns)
        return latest._replace(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            generated_tokens=self.generated_tokens + other.generated_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            preempted=self.preempted + other.preempted,
            finished={reason: n + other.finished[reason] for reason, n in self.finished.items()},
            first_token=self.first_token.merge(other.first_token),
            output_token=self.output_token.merge(other.output_token),
            e2e=self.e2e.merge(other.e2e),
            queue=self.queue.merge(other.queue),
        )


class ServingSeries:
    """The latest totals and all observations of one engine, from one front end."""

    def __init__(self) -> None:
        self._body: Serving | None = None
        self._t_ns = 0
        # From 0, or Prometheus would not see the first request of each reason as an increase.
        self._finished = dict.fromkeys((*REASONS, OTHER_REASON), 0)
        self._first_token = Histogram(FIRST_TOKEN_SECONDS)
        self._output_token = Histogram(OUTPUT_TOKEN_SECONDS)
        self._e2e = Histogram(REQUEST_SECONDS)
        self._queue = Histogram(QUEUE_SECONDS)

    def update(self, t_ns: int, body: Serving) -> None:
        """Take the totals and the new observations of a later frame."""
        self._body, self._t_ns = body, t_ns
        self._first_token.update(body.time_to_first_token)
        self._output_token.update([done.time_per_output_token for done in _spoken(body.finished)])
        self._e2e.update([done.e2e for done in body.finished])
        self._queue.update([done.queue for done in body.finished])
        for done in body.finished:
            reason = done.reason if done.reason in REASONS else OTHER_REASON
            self._finished[reason] += 1
            self._point(done)
        self._finished["abort"] += len(body.aborted)

    def get(self) -> ServingTotals | None:
        """Totals so far, or None before the first frame."""
        body = self._body
        if body is None:
            return None
        return ServingTotals(
            body.model_name,
            body.engine,
            self._t_ns,
            body.prompt_tokens,
            body.generated_tokens,
            body.cached_tokens,
            body.preempted,
            body.running,
            body.waiting,
            body.kv_cache_usage,
            dict(self._finished),
            self._first_token.get(),
            self._output_token.get(),
            self._e2e.get(),
            self._queue.get(),
        )

    def _point(self, done: Finished) -> None:
        observed = [(self._first_token, done.time_to_first_token), (self._e2e, done.e2e)]
        if _spoken([done]):
            observed.append((self._output_token, done.time_per_output_token))
        for histogram, value in observed:
            histogram.point(Exemplar.of(value, done.end_ns, done.traceparent))


def _spoken(finished: list[Finished]) -> list[Finished]:
    # Time per token after the first exists only where there is a second.
    return [done for done in finished if done.generated_tokens > 1]
