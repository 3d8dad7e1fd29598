"""Metrics pushed over OTLP say what a scrape says, and nothing waits for them."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.sdk.metrics.export import MetricsData
from prometheus_client.parser import text_string_to_metric_families

from sidecar.config import ExporterConfig
from sidecar.errors import ConfigError
from sidecar.publish.app import create_pusher as created
from sidecar.publish.metrics.exposition import Exposition, Scrape
from sidecar.publish.metrics.selection import Selection
from sidecar.publish.traces import pushing
from sidecar.publish.traces.pushing import Pusher, create_pusher, metrics_of, portions
from tests import fakes
from tests.fakes import NOW, SECOND, FakeClock
from tests.otlp import HttpOtlpReceiver, OtlpReceiver
from tests.publish import drifting
from tests.publish.traces.spans import eventually

RECEIVERS = {"grpc": OtlpReceiver, "http/protobuf": HttpOtlpReceiver}


def rendered() -> bytes:
    """Every family there is."""
    exposition = Exposition(10_000, Selection.everything(), collectors=drifting.collectors())
    return exposition.render(fakes.everything().get(NOW + 10 * SECOND), Scrape())


TEXT = rendered()


class FakeCarrier:
    """Keeps what it is given; refuses, or raises `error`."""

    def __init__(self) -> None:
        self.told: list[MetricsData] = []
        self.is_away = False
        self.error: Exception | None = None

    def export(self, told: MetricsData) -> bool:
        if self.error is not None:
            raise self.error
        self.told.append(told)
        return not self.is_away

    def shutdown(self) -> None:
        pass


def points(metrics: list[Metric]) -> dict[tuple[str, frozenset[Any]], float]:
    """Value by name and labels, of what came over the network, as a scrape would name it."""
    found: dict[tuple[str, frozenset[Any]], float] = {}
    for metric in metrics:
        data = getattr(metric, metric.WhichOneof("data"))
        for point in data.data_points:
            labels = {(each.key, each.value.string_value) for each in point.attributes}
            if metric.HasField("histogram"):
                found[f"{metric.name}_count", frozenset(labels)] = point.count
                found[f"{metric.name}_sum", frozenset(labels)] = point.sum
                at_most = 0
                bounds = [*point.explicit_bounds, float("inf")]
                for bound, num in zip(bounds, point.bucket_counts, strict=True):
                    at_most += num
                    found[f"{metric.name}_bucket", frozenset({*labels, ("le", bound)})] = at_most
            else:
                found[metric.name, frozenset(labels)] = point.as_double
    return found


def scraped() -> dict[tuple[str, frozenset[Any]], float]:
    """The same of the text."""
    found = {}
    for family in text_string_to_metric_families(TEXT.decode()):
        for sample in family.samples:
            labels = {(k, float(v) if k == "le" else v) for k, v in sample.labels.items()}
            if sample.value == sample.value:
                found[sample.name.removesuffix("_total"), frozenset(labels)] = sample.value
    return found


@pytest.fixture(params=list(RECEIVERS))
def received(request: pytest.FixtureRequest) -> Iterator[list[Metric]]:
    """What a real receiver has after one push."""
    receiver = RECEIVERS[request.param]()
    keys = {"SIDECAR_OTLP_ENDPOINT": receiver.endpoint, "SIDECAR_OTLP_PROTOCOL": request.param}
    config = ExporterConfig.read({**keys, "SIDECAR_OTLP_METRICS_SECONDS": "0.01"})
    pusher = create_pusher(config, lambda: TEXT)
    pusher.start()
    eventually(lambda: receiver.metrics)
    pusher.stop()
    eventually(lambda: pusher.outcomes()["taken"])
    yield [
        metric
        for told in receiver.metrics[:1]
        for resource in told.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    ]
    receiver.stop()


def test_a_push_says_what_a_scrape_says(received: list[Metric]) -> None:
    """Every sample of every family, with its labels, over gRPC and HTTP."""
    found = points(received)

    assert len(found) > 500
    assert found == scraped()


def test_totals_are_cumulative_and_gauges_are_not() -> None:
    """So receivers rate the former alone; a summary is two totals."""
    kinds = {
        metric.name.removeprefix("llm_internals_"): type(metric.data).__name__
        for metric in metrics_of(TEXT.decode(), NOW, NOW + SECOND)
    }

    assert kinds["spans_sent"] == kinds["residual_rms_sum"] == kinds["residual_rms_count"] == "Sum"
    assert kinds["tap_live"] == kinds["build_info"] == "Gauge"
    assert kinds["time_to_first_token_seconds"] == "Histogram"


def test_nan_is_absent() -> None:
    """Receivers refuse a message for one."""
    (metric,) = metrics_of('# TYPE g gauge\ng{a="1"} NaN\ng{a="2"} 2\n', 0, 1)

    assert [point.value for point in metric.data.data_points] == [2.0]


def test_messages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collectors take four megabytes at once; no family is cut."""
    monkeypatch.setattr(pushing, "MAX_POINTS", 50)
    metrics = list(metrics_of(TEXT.decode(), NOW, NOW))
    made = list(portions(metrics))
    sizes = [sum(len(metric.data.data_points) for metric in portion) for portion in made]

    assert [metric for portion in made for metric in portion] == metrics
    assert all(size <= 50 or len(portion) == 1 for size, portion in zip(sizes, made, strict=True))


def test_a_push_that_fails_is_counted_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Refused by the receiver, failed before it was sent, then taken."""
    carrier = FakeCarrier()
    pusher = Pusher(carrier, 60.0, lambda: TEXT, FakeClock())
    carrier.is_away = True
    pusher.push()
    carrier.error = ValueError()
    pusher.push()
    pusher.push()
    carrier.error, carrier.is_away = None, False
    pusher.push()

    assert pusher.outcomes() == {"taken": 1, "refused": 1, "failed": 2}
    assert len(caplog.records) == 1


def test_stopping_does_not_wait_for_a_receiver_that_hangs() -> None:
    """The thread ends by itself, later."""
    release, begun = threading.Event(), threading.Event()

    def render() -> bytes:
        begun.set()
        release.wait(120)
        return TEXT

    pusher = Pusher(FakeCarrier(), 0.001, render)
    pusher.start()
    assert begun.wait(120)
    pusher.stop()

    assert not release.is_set()
    release.set()


def test_pushing_without_a_receiver_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    """Said with both keys; not asked for, there is no pusher."""
    config = ExporterConfig.read({"SIDECAR_OTLP_METRICS_SECONDS": "5"})
    with pytest.raises(ConfigError, match="METRICS_SECONDS: set SIDECAR_OTLP_ENDPOINT"):
        created(config, lambda: TEXT)
    assert created(ExporterConfig.read({}), lambda: TEXT) is None
