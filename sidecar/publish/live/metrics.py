"""The families of the live half: the sentence of /v1/status as a state and a time, and events.

Guarantee: of the states one is 1, and it is the level that /v1/status, the live page and the
terminal tell at that moment, since all have it from `summary`.
"""

from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client.core import Metric as Family

from sidecar.fold.reducer import Snapshot
from sidecar.publish.api.answers import SummaryLevel
from sidecar.publish.drift.judges import DriftView
from sidecar.publish.live.pulse import PulseView
from sidecar.publish.live.summary import summary_answer
from sidecar.publish.metrics.collectors import Collector, family


def collector(get: Callable[[], DriftView]) -> Collector:
    """A collector of how things stand, beside the view of drift that `get` tells."""

    def collect(snapshot: Snapshot) -> Iterator[Family]:
        told = summary_answer(snapshot, get())
        levels = get_args(SummaryLevel)
        yield family("summary_state", (((level,), level == told.level) for level in levels))
        since = [] if told.since_ns is None else [((), told.since_ns / 1e9)]
        yield family("summary_since_timestamp_seconds", since)

    return collect


def events_collector(get: Callable[[], PulseView]) -> Collector:
    """A collector of how the live half fares, as `get` tells it at each scrape."""

    def collect(snapshot: Snapshot) -> Iterator[Family]:  # noqa: ARG001 - the seam's
        view = get()
        yield family("event_clients", [((), view.num_clients)])
        yield family("event_clients_failed", (((cause,), n) for cause, n in view.failed.items()))
        yield family("event_errors", [((), view.num_errors)])
        yield family("lost_timeline_readings", [((), view.num_left_out)])

    return collect
