"""Families about drift: from the last view of the thread that judges, so no scrape waits for it.

Guarantees: a configured channel has one series for each state, of which one is 1; at most
`verdict.MAX_CAUSES` streams of a channel are named; what engines execute is told of those heard
within the staleness limit alone.
"""

from collections.abc import Callable, Iterator

from prometheus_client.core import Metric as Family

from sidecar.fold.drift.verdict import MAX_CAUSES, ChannelState
from sidecar.fold.reducer import Snapshot
from sidecar.publish.drift.answers import requests_by_outcome, windows_by_outcome
from sidecar.publish.drift.judges import DriftView
from sidecar.publish.drift.seat import ChannelView
from sidecar.publish.metrics.collectors import Collector, Rows, family


def collector(
    get: Callable[[], DriftView], canary_rounds: Callable[[], dict[str, int]]
) -> Collector:
    """A collector of what `get` and `canary_rounds` (by outcome) tell at each scrape."""

    def collect(snapshot: Snapshot) -> Iterator[Family]:
        view = get()
        configured = [each for each in view.channels if each.is_configured]
        yield from _channels(configured)
        yield from _totals(view)
        yield from _references(view, snapshot.now_ns)
        rounds = canary_rounds()
        yield family("canary_rounds", (((outcome,), n) for outcome, n in rounds.items()))
        yield family("weights", _weights(view, {each.name for each in snapshot.sources}))

    return collect


def _channels(channels: list[ChannelView]) -> Iterator[Family]:
    named = [((view.verdict.channel,), view) for view in channels]
    yield family(
        "drift_state",
        (
            ((*name, state), view.verdict.state is state)
            for name, view in named
            for state in ChannelState
        ),
    )
    yield family("drift_level_ratio", ((name, view.verdict.level) for name, view in named))
    yield family("drift_stream_level_ratio", _streams(channels))
    since = [(name, view.verdict.since_ns) for name, view in named]
    yield family(
        "drift_since_timestamp_seconds", ((name, ns / 1e9) for name, ns in since if ns is not None)
    )
    yield family("drift_pages", ((name, view.num_pages) for name, view in named))
    yield family("drift_errors", ((name, view.num_errors) for name, view in named))


def _streams(channels: list[ChannelView]) -> Rows:
    for view in channels:
        told = set()
        for cause in view.verdict.causes[:MAX_CAUSES]:
            layer = "" if cause.layer is None else str(cause.layer)
            labels = (view.verdict.channel, cause.stream, layer, cause.side)
            if labels not in told:  # two samples of one series would make the scrape fail
                told.add(labels)
                yield labels, cause.share


def _totals(view: DriftView) -> Iterator[Family]:
    yield family("drift_windows", (((k,), n) for k, n in windows_by_outcome(view).items()))
    yield family("drift_requests", (((k,), n) for k, n in requests_by_outcome(view).items()))
    yield family("drift_judged_timestamp_seconds", [((), view.now_ns / 1e9)])
    terms = view.terms
    yield family("drift", [((terms.preset, f"{terms.window_ns / 1e9:g}"), 1)])


def _references(view: DriftView, now_ns: int) -> Iterator[Family]:
    held = [] if view.baseline is None else [view.baseline]
    headers = [(each.digest, each.header) for each in held]
    yield family(
        "baseline_age_seconds", (((), (now_ns - header.end_ns) / 1e9) for _, header in headers)
    )
    yield family(
        "baseline",
        (
            ((digest, header.identity.weights_digest, header.schema_digest, header.release), 1)
            for digest, header in headers
        ),
    )
    deviations = view.canaries.deviations
    yield family(
        "canary_layer_deviation_ratio",
        (((str(layer),), value) for layer, value in sorted(deviations.items())),
    )


def _weights(view: DriftView, heard: set[str]) -> Rows:
    for source, executed in sorted(view.executed.items()):
        told = executed.manifest
        if told is not None and source in heard:
            yield (source, told.weights_digest, told.tokenizer_digest, told.state), 1
