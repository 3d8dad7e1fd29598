"""Families of the fleet job: what is concluded of each replica, and how well it is fed.

Guarantees: each replica has one series for each state, of which one is 1; streams are named of the
replicas that page or are worth a ticket alone, `verdict.MAX_CAUSES` of each at most.
"""

from collections.abc import Iterator

from prometheus_client.core import Metric as Family

from sidecar.fold.drift.contrast import Replica
from sidecar.fold.drift.verdict import ChannelState
from sidecar.publish.fleet.fleet import FleetView
from sidecar.publish.metrics.collectors import Rows, family
from sidecar.publish.metrics.text import END, write


def exposition(view: FleetView, *, openmetrics: bool) -> str:
    """All families as text."""
    return write(families(view), openmetrics=openmetrics) + (END if openmetrics else "")


def families(view: FleetView) -> Iterator[Family]:
    """Everything there is about `view`."""
    yield from _channel(view)
    yield from _replicas(view)
    yield from _feeding(view)


def _channel(view: FleetView) -> Iterator[Family]:
    verdict = view.verdict
    name = verdict.channel
    yield family("drift_state", (((name, s), verdict.state is s) for s in ChannelState))
    yield family("drift_level_ratio", [((name,), verdict.level)])
    since = [] if verdict.since_ns is None else [((name,), verdict.since_ns / 1e9)]
    yield family("drift_since_timestamp_seconds", since)
    yield family("drift_pages", [((name,), view.num_pages)])


def _replicas(view: FleetView) -> Iterator[Family]:
    told = view.replicas
    states = (((r.name, s), r.state is s) for r in told for s in ChannelState)
    yield family("replica_state", states)
    yield family("replica_level_ratio", (((r.name,), r.level) for r in told))
    yield family("replica_stream_level_ratio", _streams(told))
    since = ((r.name, r.since_ns) for r in told)
    yield family(
        "replica_since_timestamp_seconds", (((n,), ns / 1e9) for n, ns in since if ns is not None)
    )


def _streams(told: tuple[Replica, ...]) -> Rows:
    for replica in told:
        if replica.state.rank >= ChannelState.TICKET.rank:
            for cause in replica.causes:
                layer = "" if cause.layer is None else str(cause.layer)
                yield (replica.name, cause.stream, layer, cause.side), cause.share


def _feeding(view: FleetView) -> Iterator[Family]:
    yield family("replica_answering", (((e.name,), not e.reason) for e in view.exporters))
    yield family("replica_discovery_success", [((), not view.trouble)])
    counts = view.counts._asdict().items()
    yield family("replica_windows", (((outcome,), count) for outcome, count in counts))
    yield family("replica_refused", (((cause,), n) for cause, n in sorted(view.refused.items())))
    yield family("replica_routing_association_ratio", [((), view.association)])
    judged_ns = view.verdict.judged_ns
    judged = [((), judged_ns / 1e9)] if judged_ns else []
    yield family("replica_judged_timestamp_seconds", judged)
    yield family("replica_errors", [((), view.num_errors)])
