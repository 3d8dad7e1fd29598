"""Which requests become spans: what the caller decided, else a share by trace id; anomalies always.

This is OpenTelemetry's `parentbased_traceidratio`, so whoever samples the same trace by the same
ratio decides alike. A caller that does not keep its trace gets no span of ours, unless the request
is anomalous.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from sidecar.publish.traces.context import Parent

_LOW_BITS: Final = 64  # of a trace id; the high ones may hold a time stamp


class Decision(StrEnum):
    """What becomes of a request."""

    CALLER = "caller"  # sent: the caller keeps this trace
    RATIO = "ratio"  # sent: within the share
    ANOMALOUS = "anomalous"  # sent: nothing else asked for it
    UNSAMPLED = "unsampled"  # not sent

    @property
    def is_sent(self) -> bool:
        """Whether a span is made."""
        return self is not Decision.UNSAMPLED


class Sampler:
    """Decides for each request; ratio: from 0 for none to 1 for all."""

    def __init__(self, ratio: float) -> None:
        self._limit = round(ratio * (1 << _LOW_BITS))

    def decide(
        self, trace_id: int, parent: Parent | None, anomalies: Sequence[str], *, is_canary: bool
    ) -> Decision:
        """Canaries are the sidecar's own requests, so only anomalous ones are sent."""
        if parent is not None and parent.is_sampled:
            return Decision.CALLER
        is_within = trace_id & ((1 << _LOW_BITS) - 1) < self._limit
        if parent is None and is_within and not is_canary:
            return Decision.RATIO
        return Decision.ANOMALOUS if anomalies else Decision.UNSAMPLED
