"""Everything but the per-layer families, as families of prometheus_client.

Names, kinds, units, labels and help texts come from `wire.signals`; here stands only which number
goes where. Each collector is one function, so that one that fails takes no other with it.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from itertools import groupby, zip_longest
from typing import Final

from prometheus_client.core import Metric as Family
from prometheus_client.samples import Exemplar as SampleExemplar

from sidecar.fold.exemplars import Exemplar
from sidecar.fold.histogram import Distribution
from sidecar.fold.reducer import Snapshot
from sidecar.fold.series import LayerTotals, ServingTotals
from sidecar.fold.source import SourceView
from sidecar.publish.metrics.text import SUFFIXES, empty, number
from sidecar.publish.vitals import tap_live
from sidecar.wire.frame import NUM_POPULATIONS, Status
from sidecar.wire.signals import BY_ID, POPULATIONS

UNOBSERVED: Final = ("prefix_cached", "lost", "shed", "opted_out")
_REASON_CLASS: Final = re.compile(r"([\w -]{1,40}):", re.ASCII)

Rows = Iterable[tuple[tuple[str, ...], float]]
Collector = Callable[[Snapshot], Iterator[Family]]


def coverage(snapshot: Snapshot) -> Iterator[Family]:
    """How much of what the engines computed was measured."""
    engines = list(_first_stages(snapshot))
    yield family(
        "observed_tokens",
        (
            ((*labels, *POPULATIONS[population]), totals.coverage.observed[population])
            for labels, totals in engines
            for population in range(NUM_POPULATIONS)
        ),
    )
    yield family(
        "unobserved_tokens",
        (
            ((*labels, cause), getattr(totals.coverage, cause))
            for labels, totals in engines
            for cause in UNOBSERVED
        ),
    )
    yield family(
        "recomputed_tokens", ((labels, totals.coverage.recomputed) for labels, totals in engines)
    )
    yield family(
        "rejected_draft_tokens", ((labels, totals.coverage.rejected) for labels, totals in engines)
    )
    yield family("engine_steps", ((labels, totals.num_steps) for labels, totals in engines))
    yield family("observed_requests", _observed_requests(snapshot))


def serving(snapshot: Snapshot) -> Iterator[Family]:
    """Ordinary latency and token stats; those of several front ends of one engine are added."""
    engines = [((each.model_name, str(each.engine)), each) for each in _by_engine(snapshot)]
    yield distribution("time_to_first_token_seconds", ((k, v.first_token) for k, v in engines))
    yield distribution("time_per_output_token_seconds", ((k, v.output_token) for k, v in engines))
    yield distribution("e2e_request_latency_seconds", ((k, v.e2e) for k, v in engines))
    yield distribution("request_queue_time_seconds", ((k, v.queue) for k, v in engines))
    yield family("prompt_tokens", ((k, v.prompt_tokens) for k, v in engines))
    yield family("generated_tokens", ((k, v.generated_tokens) for k, v in engines))
    yield family("cached_tokens", ((k, v.cached_tokens) for k, v in engines))
    yield family("requests_running", ((k, v.running) for k, v in engines))
    yield family("requests_waiting", ((k, v.waiting) for k, v in engines))
    yield family("kv_cache_usage_ratio", ((k, v.kv_cache_usage) for k, v in engines))
    yield family("preempted_requests", ((k, v.preempted) for k, v in engines))
    yield family(
        "finished_requests",
        (((*k, reason), n) for k, v in engines for reason, n in v.finished.items()),
    )


def confidence(snapshot: Snapshot) -> Iterator[Family]:
    """How sure the model was, of each engine that measures it, over all stages of its pipeline."""
    engines: dict[tuple[str, str], Distribution] = {}
    for view in snapshot.sources:
        if view.confidence is None or view.totals is None or view.status is None:
            continue
        if "confidence" not in view.status.absent:
            labels = (view.status.model_name, str(view.source.dp))
            known = engines.get(labels)
            engines[labels] = view.confidence if known is None else known.merge(view.confidence)
    yield distribution("request_confidence_ratio", engines.items())


def taps(snapshot: Snapshot) -> Iterator[Family]:
    """What each tap says of itself."""
    spoken = [(view, view.status) for view in snapshot.sources if view.status is not None]
    engines = [(view, status) for view, status in spoken if view.source.role == "engine"]
    live = [(view.name, tap_live(view)) for view in snapshot.sources]
    yield family("tap_live", (((name,), value) for name, value in live if value is not None))
    yield family("tap", (((view.name, status.state, status.reason), 1) for view, status in spoken))
    yield family(
        "tap_errors",
        (
            ((view.name, site), count)
            for view, status in spoken
            for site, count in sorted(status.errors.items())
        ),
    )
    yield family("tap_shed_level", (((view.name,), status.shed_level) for view, status in engines))
    yield family("tap_cost_ratio", (((view.name,), status.cost_share) for view, status in engines))
    yield family(
        "tap_absent",
        (
            ((view.name, group, reason_class(reason)), 1)
            for view, status in engines
            for group, reason in sorted(status.absent.items())
        ),
    )
    yield family(
        "engine",
        ((_engine_labels(view, status), 1) for view, status in engines),
    )


def frames(snapshot: Snapshot) -> Iterator[Family]:
    """What became of every frame."""
    views = snapshot.sources
    yield family("frames_sent", (((view.name,), view.tally.sent) for view in views))
    yield family("frames_received", (((view.name,), view.tally.received) for view in views))
    yield family(
        "frames_lost",
        (((view.name, cause), count) for view in views for cause, count in losses(view).items()),
    )
    yield family("frames_refused", (((cause,), n) for cause, n in snapshot.refused.items()))
    yield distribution("frame_age_seconds", [((), snapshot.ages)])
    yield family(
        "last_frame_timestamp_seconds",
        (((view.name,), view.t_ns / 1e9) for view in views if view.t_ns),
    )
    yield family("sources", [((), len(views))])


COLLECTORS: Final[dict[str, Collector]] = {
    "coverage": coverage,
    "serving": serving,
    "confidence": confidence,
    "taps": taps,
    "frames": frames,
}


def losses(view: SourceView) -> dict[str, int]:
    """Frames of a source that brought nothing, by cause."""
    return {
        "dropped": view.tally.dropped,
        "missing": view.tally.missing,
        "stale": view.tally.stale,
    }


def family(metric_id: str, rows: Rows) -> Family:
    """A counter, gauge or info family: label values in the table's order, and a number."""
    metric = BY_ID[metric_id]
    made = empty(metric)
    name = metric.name + SUFFIXES.get(metric.kind, "")
    for values, value in rows:
        made.add_sample(name, dict(zip(metric.labels, values, strict=True)), float(value))
    return made


def distribution(metric_id: str, rows: Iterable[tuple[tuple[str, ...], Distribution]]) -> Family:
    """A histogram family."""
    metric = BY_ID[metric_id]
    made = empty(metric)
    for values, held in rows:
        labels = dict(zip(metric.labels, values, strict=True))
        cumulative = 0
        bounds = (*held.bounds, float("inf"))
        for bound, count, exemplar in zip_longest(bounds, held.counts, held.exemplars):
            cumulative += count
            at_most = {**labels, "le": number(bound)}
            # None where the bucket is empty, as when the frame that counted its value was lost.
            shown = _shown(exemplar) if exemplar and count else None
            made.add_sample(f"{metric.name}_bucket", at_most, float(cumulative), exemplar=shown)
        made.add_sample(f"{metric.name}_count", labels, float(cumulative))
        made.add_sample(f"{metric.name}_sum", labels, held.sum)
    return made


def _shown(exemplar: Exemplar) -> SampleExemplar:
    labels = {"trace_id": exemplar.trace_id, "span_id": exemplar.span_id}
    return SampleExemplar(labels, exemplar.value, exemplar.t_ns / 1e9)


def reason_class(reason: str) -> str:
    """A label out of a sentence: what stands before its first colon, when that is short.

    >>> reason_class("No router: this model is dense")
    'no_router'
    >>> reason_class("this model has no experts")
    'other'
    """
    found = _REASON_CLASS.match(reason)
    return re.sub(r"\W+", "_", found[1].strip().lower()) if found else "other"


def _first_stages(snapshot: Snapshot) -> Iterator[tuple[tuple[str, str], LayerTotals]]:
    for labels, view in _first_views(snapshot):
        if view.totals is not None:
            yield labels, view.totals


def _first_views(snapshot: Snapshot) -> Iterator[tuple[tuple[str, str], SourceView]]:
    # All pipeline stages see the same rows, and sources come in order of rank: the first counts.
    seen = set()
    for view in snapshot.sources:
        if view.totals is None or view.status is None:
            continue
        labels = (view.status.model_name, str(view.source.dp))
        if labels not in seen:
            seen.add(labels)
            yield labels, view


def _observed_requests(snapshot: Snapshot) -> Iterator[tuple[tuple[str, ...], float]]:
    for labels, view in _first_views(snapshot):
        # A dictionary: a label that a sender gives twice is still one series.
        counts: dict[str, int] = {}
        for table in view.tables:
            if table.group == "requests":
                counts.update(zip(table.axes[0], table.cells.count.tolist(), strict=True))
        if not counts and view.totals is not None:
            counts[""] = view.totals.num_requests
        yield from (((*labels, adapter), count) for adapter, count in counts.items())


def _by_engine(snapshot: Snapshot) -> Iterator[ServingTotals]:
    told = [totals for view in snapshot.sources for totals in view.serving]
    for _, group in groupby(sorted(told, key=_engine), key=_engine):
        yield reduce(ServingTotals.merge, group)


def _engine(totals: ServingTotals) -> tuple[str, int]:
    return (totals.model_name, totals.engine)


def _engine_labels(view: SourceView, status: Status) -> tuple[str, ...]:
    return (
        view.name,
        status.model_name,
        str(view.source.dp),
        status.vllm_version,
        status.runner,
        status.dtype,
        str(status.num_layers),
    )
