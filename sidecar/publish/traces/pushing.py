"""Metrics pushed over OTLP, for whom no Prometheus scrapes: what /metrics says, every so often.

The exposition is rendered and read back, so a push says what a scrape would have said, by the same
names; a counter goes without `_total`, as OpenTelemetry has it, and a summary as the counters of
its sum and count. Totals are cumulative.

Guarantees: one thread, which nothing waits for; a push that fails is counted and not repeated,
since the next one says more; at most `MAX_POINTS` points go in one message, or one family if it has
more.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, Final, Protocol

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from sidecar.config import ExporterConfig
from sidecar.publish.traces.otlp import MetricCarrier
from sidecar.publish.traces.spans import SCOPE, resource

MAX_POINTS: Final = 5000
STOP_SECONDS: Final = 0.5
OUTCOMES: Final = ("taken", "refused", "failed")
_CUMULATIVE: Final = AggregationTemporality.CUMULATIVE
_log = logging.getLogger(__name__)


class Carrier(Protocol):
    """What takes metrics away: an exporter of OpenTelemetry, or a fake."""

    def export(self, told: MetricsData) -> bool:
        """Whether the receiver took them; may take seconds."""

    def shutdown(self) -> None:
        """Release everything."""


class Pusher:
    """Owns the carrier and its thread.

    seconds: from one push to the next. render: the exposition now, in the text format.
    """

    def __init__(
        self,
        carrier: Carrier,
        seconds: float,
        render: Callable[[], bytes],
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._carrier = carrier
        self._seconds = seconds
        self._render = render
        self._clock_ns = clock_ns
        self._start_ns = clock_ns()
        self._who = resource()
        self._outcomes: Counter[str] = Counter()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sidecar-push", daemon=True)

    def start(self) -> None:
        """Begin to push."""
        self._thread.start()

    def stop(self) -> None:
        """End; a push that is under way is broken off."""
        self._stopping.set()
        self._carrier.shutdown()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def outcomes(self) -> dict[str, int]:
        """Messages so far by what became of them."""
        return {each: self._outcomes[each] for each in OUTCOMES}

    def push(self) -> None:
        """Send what is known now, once; never raises."""
        try:
            metrics = list(metrics_of(self._render().decode(), self._start_ns, self._clock_ns()))
            for portion in portions(metrics):
                is_taken = self._carrier.export(_data(portion, self._who))
                self._outcomes["taken" if is_taken else "refused"] += 1
        except Exception as error:  # of a library of others, or ours: the next push may go
            if not self._outcomes["failed"]:
                _log.error("metrics could not be pushed; counted, logged once", exc_info=error)
            self._outcomes["failed"] += 1

    def _run(self) -> None:
        while not self._stopping.wait(self._seconds):
            self.push()


def create_pusher(config: ExporterConfig, render: Callable[[], bytes]) -> Pusher:
    """A pusher to the configured receiver. Raises ConfigError."""
    return Pusher(MetricCarrier(config), config.otlp_metrics_seconds, render)


def metrics_of(text: str, start_ns: int, now_ns: int) -> Iterator[Metric]:
    """Metrics of an exposition in the text format of Prometheus; values that are NaN are absent."""
    for family in text_string_to_metric_families(text):
        if family.type == "histogram":
            points = list(_distributions(family.samples, start_ns, now_ns))
            yield _metric(family.name, family, Histogram(points, _CUMULATIVE))
            continue
        by_name: dict[str, list[NumberDataPoint]] = {}
        for sample in family.samples:
            if sample.value == sample.value:  # not NaN
                point = NumberDataPoint(sample.labels, start_ns, now_ns, float(sample.value))
                by_name.setdefault(sample.name, []).append(point)
        is_total = family.type in ("counter", "summary")
        for name, numbers in by_name.items():
            data = Sum(numbers, _CUMULATIVE, is_monotonic=True) if is_total else Gauge(numbers)
            yield _metric(name.removesuffix("_total"), family, data)


def portions(metrics: Iterable[Metric]) -> Iterator[list[Metric]]:
    """The same in messages of bounded size."""
    portion: list[Metric] = []
    num_points = 0
    for metric in metrics:
        num = len(metric.data.data_points)
        if portion and num_points + num > MAX_POINTS:
            yield portion
            portion, num_points = [], 0
        portion.append(metric)
        num_points += num
    if portion:
        yield portion


def _metric(name: str, family: Family, data: Sum | Gauge | Histogram) -> Metric:
    # Units stand in the names; told again, some receivers would append them a second time.
    return Metric(name, family.documentation, "", data)


def _distributions(
    samples: Iterable[Sample], start_ns: int, now_ns: int
) -> Iterator[HistogramDataPoint]:
    """One point for each set of labels but `le`; buckets come in rising order."""
    series: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for sample in samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        place = sample.labels.get("le", sample.name.rpartition("_")[2])
        series.setdefault(tuple(labels.items()), {})[place] = sample.value
    no_extremes: dict[str, Any] = {"min": None, "max": None}  # optional on the wire
    for key, told in series.items():
        count, total = told.pop("count"), told.pop("sum")
        bounds = sorted((float(bound), int(at_most)) for bound, at_most in told.items())
        below = [0, *(at_most for _, at_most in bounds)]
        yield HistogramDataPoint(
            attributes=dict(key),
            start_time_unix_nano=start_ns,
            time_unix_nano=now_ns,
            count=int(count),
            sum=total,
            bucket_counts=[b - a for a, b in pairwise(below)],
            explicit_bounds=[bound for bound, _ in bounds[:-1]],
            **no_extremes,
        )


def _data(metrics: list[Metric], who: Resource) -> MetricsData:
    return MetricsData([ResourceMetrics(who, [ScopeMetrics(SCOPE, metrics, "")], "")])
