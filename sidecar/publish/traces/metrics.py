"""Families about traces: what became of every finished request, and of every span."""

from collections.abc import Callable, Iterator

from prometheus_client.core import Metric as Family

from sidecar.fold.reducer import Snapshot
from sidecar.publish.metrics.collectors import Collector, family
from sidecar.publish.traces.account import TraceView


def collector(get: Callable[[], TraceView], pushes: Callable[[], dict[str, int]]) -> Collector:
    """A collector of what `get` and `pushes` (by outcome) tell at each scrape."""

    def collect(snapshot: Snapshot) -> Iterator[Family]:  # noqa: ARG001 - the seam's
        view = get()
        account = view.account
        decided = view.requests.items()
        yield family("traced_requests", (((str(decision),), n) for decision, n in decided))
        parts = {"left_out": view.num_left_out, "late": view.num_late}
        yield family("trace_parts_lost", (((cause,), n) for cause, n in parts.items()))
        yield family("trace_errors", [((), view.num_errors)])
        yield family("spans_finished", [((), account.finished)])
        yield family("spans_sent", [((), account.sent)])
        yield family("spans_dropped", (((cause,), n) for cause, n in account.dropped.items()))
        yield family("span_queue_size", [((), account.waiting)])
        yield family("span_queue_capacity", [((), account.capacity)])
        batches = {"taken": account.num_taken, "refused": account.num_refused}
        yield family("span_batches", (((outcome,), n) for outcome, n in batches.items()))

        yield family("metric_pushes", (((outcome,), n) for outcome, n in pushes().items()))

    return collect
