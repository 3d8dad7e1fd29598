"""A real Prometheus finds the trace of a request beside the histograms of a real sidecar."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.wire.channel import Sender
from sidecar.wire.frame import Serving, Source
from sidecar.wire.synthetic import SyntheticEngine
from tests.e2e.harness import get_text, wait_for
from tests.monitoring import Job, Prometheus
from tests.publish.test_server import Served

SECONDS = 120
SPAN = "b7ad6b7169203331"
HISTOGRAMS = (
    "time_to_first_token_seconds",
    "time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_confidence_ratio",
)


def trace_id(number: int) -> str:
    return f"{number:032x}"


class Callers:
    """An engine and its front end; each request has a caller with a trace of its own."""

    def __init__(self, path: Path) -> None:
        self._engine = SyntheticEngine()
        self._tap, self._frontend = (
            Sender(path, Source("engine")),
            Sender(path, Source("frontend")),
        )
        wait_for(lambda: self._tap.send(self._engine.status()), "the sidecar listens", SECONDS)
        wait_for(lambda: self._frontend.send(self._engine.serving()), "and again", SECONDS)

    def call(self, flags: str) -> int:
        """One finished request; its number, which is in its trace id too."""
        now_ns, engine = time.time_ns(), self._engine
        for body in (engine.step(), engine.requests(1, now_ns), engine.status()):
            assert self._tap.send(body)
        assert self._frontend.send(_traced(engine.serving(now_ns), engine.num_requests, flags))
        return engine.num_requests

    def close(self) -> None:
        self._tap.close()
        self._frontend.close()


def _traced(told: Serving, number: int, flags: str) -> Serving:
    for done in told.finished:
        done.traceparent = f"00-{trace_id(number)}-{SPAN}-{flags}"
    return told


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "i.sock")
    yield served
    served.close()


@pytest.fixture
def callers(sidecar: Served, tmp_path: Path) -> Iterator[Callers]:
    made = Callers(tmp_path / "i.sock")
    yield made
    made.close()


@pytest.fixture
def prometheus(sidecar: Served, tmp_path: Path) -> Iterator[Prometheus]:
    made = Prometheus(
        tmp_path / "prometheus", [Job("sidecar", [sidecar.metrics_url.removeprefix("http://")])]
    )
    made.start()
    yield made
    made.stop()


def test_prometheus_returns_the_trace_of_a_request(
    callers: Callers, prometheus: Prometheus
) -> None:
    """Of each histogram, with value and time; a trace that nobody records is never named."""
    recorded = callers.call("01")
    unrecorded = callers.call("00")
    found: dict[str, list[dict[str, Any]]] = {}

    def all_found() -> bool:
        for name in HISTOGRAMS:
            series = prometheus.exemplars(f"llm_internals_{name}_bucket")
            found[name] = [each for one in series for each in one["exemplars"]]
        return all(found.values())

    wait_for(all_found, "exemplars of every histogram", SECONDS, every=0.5)
    for name, told in found.items():
        assert {each["labels"]["trace_id"] for each in told} == {trace_id(recorded)}, name
        assert {each["labels"]["span_id"] for each in told} == {SPAN}
        assert all(abs(time.time() - each["timestamp"]) < 10 * SECONDS for each in told)
    values = {name: {float(each["value"]) for each in told} for name, told in found.items()}
    assert values["e2e_request_latency_seconds"] == {1.0}
    assert values["time_to_first_token_seconds"] == {0.11}
    assert 0 < min(values["request_confidence_ratio"]) <= 1
    counted = 'llm_internals_e2e_request_latency_seconds_count{model_name="synthetic"}'
    (series,) = prometheus.wait_for(f"{counted} >= {unrecorded}", SECONDS)
    assert float(series["value"][1]) == unrecorded


def test_prometheus_follows_the_latest_request(callers: Callers, prometheus: Prometheus) -> None:
    """Later ones are added, and none is refused as out of order."""
    for _ in range(3):
        latest = trace_id(callers.call("01"))
        wait_for(
            lambda latest=latest: latest in str(prometheus.exemplars("{__name__=~'llm.*_bucket'}")),
            "the latest trace",
            SECONDS,
            every=0.5,
        )
    own = get_text(f"{prometheus.url}/metrics")
    name = "prometheus_tsdb_exemplar_out_of_order_exemplars_total"
    (refused,) = re.findall(rf"^{name} (\S+)$", own, re.MULTILINE)
    assert refused == "0"
