"""The routes of both ports."""

import gzip
import re
import time
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from sidecar.fold.reducer import Reducer
from sidecar.fold.requests import MAX_REQUESTS
from sidecar.publish.api import portion
from sidecar.publish.app import create_api_app, create_metrics_app
from sidecar.publish.intake import Intake
from sidecar.publish.metrics.exposition import Exposition
from sidecar.publish.state import State
from sidecar.wire.frame import Requests, pack
from tests import fakes
from tests.fakes import FRONTEND, LIMITS, NOW, FakeClock, FakeInbox, FakeSource
from tests.publish import drifting

V1 = (
    "/v1/status",
    "/v1/layers",
    "/v1/signals",
    "/v1/requests",
    "/v1/signatures",
    "/v1/drift",
    "/v1/windows",
    "/v1/drift/history",
    "/v1/timeline",
    "/v1/timeline/signals",
    "/v1/timeline/lines",
)
PROBLEM = {"type", "title", "status", "detail", "remedy"}


class Sidecar:
    """Both apps over one state, with a clock that moves when told to."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.engine, self.frontend = FakeSource(), FakeSource(FRONTEND)
        self.watch = drifting.watch(drifting.FakeChannel(), clock=self.clock)
        self.intake = Intake(FakeInbox(), Reducer(LIMITS), None, self.clock, self.watch.hear)
        self.exposition = Exposition(10_000)
        state = State(self.intake, self.exposition, self.watch, drifting.no_baselines())
        self.metrics = self._client(create_metrics_app(state))
        self.api = self._client(create_api_app(state))

    def hear(self) -> None:
        """One flush of an engine and its front end, now."""
        now = self.clock()
        asked = [fakes.request(f"cmpl-{k}-0-0badcafe", end_ns=now) for k in range(3)]
        bodies = (
            *(fakes.live(), fakes.layers(), fakes.totals(), Requests([0, 1, 2], asked)),
            fakes.signatures(*(each.id for each in asked)),
        )
        for body in bodies:
            self.intake.accept(pack(self.engine.frame(body, now)))
        stats = fakes.serving(fakes.finished("cmpl-1-0", end_ns=now))
        self.intake.accept(pack(self.frontend.frame(stats, now)))

    @staticmethod
    def _client(app: FastAPI) -> TestClient:
        return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def running() -> Sidecar:
    return Sidecar()


def test_readiness_follows_the_telemetry(running: Sidecar) -> None:
    """503 with reasons before the first frame, 200 while it flows, 503 when it stops."""
    before = running.metrics.get("/readyz")
    assert before.status_code == 503
    assert before.json()["ready"] is False
    assert "no engine has been heard yet" in before.json()["reasons"][0]

    running.hear()
    assert running.metrics.get("/readyz").json() == {"ready": True, "reasons": []}
    assert running.api.get("/readyz").status_code == 200

    running.clock.advance(LIMITS.stale_ns / 1e9 + 1)
    after = running.metrics.get("/readyz")
    assert after.status_code == 503
    assert len(after.json()["reasons"]) == 2


def test_life_does_not_depend_on_telemetry(running: Sidecar) -> None:
    """/healthz is 200 on both ports whatever the state."""
    for _ in range(2):
        for client in (running.metrics, running.api):
            assert client.get("/healthz").status_code == 200
        running.clock.advance(10_000)


def test_each_port_has_its_own_routes(running: Sidecar) -> None:
    """The API is not on the metrics port, nor the metrics on the API's."""
    for path in V1:
        assert running.metrics.get(path).status_code == 404
        assert running.api.get(path).status_code == 200
    assert running.metrics.get("/metrics").status_code == 200
    assert running.api.get("/metrics").status_code == 404


def test_the_landing_page_links_what_is_there(running: Sidecar) -> None:
    """Every link works, and nothing is loaded from elsewhere."""
    page = running.metrics.get("/")

    assert page.headers["content-security-policy"] == "default-src 'none'"
    for path in ("/metrics", "/healthz"):
        assert f'href="{path}"' in page.text
        assert running.metrics.get(path).status_code == 200
    assert "://" not in page.text


def test_metrics_are_compressed_when_accepted(running: Sidecar) -> None:
    """The same bytes, and only for a client that asks."""
    running.hear()
    plain = running.metrics.get("/metrics", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    with running.metrics.stream(
        "GET", "/metrics", headers={"Accept-Encoding": "br, gzip"}
    ) as zipped:
        body = b"".join(zipped.iter_raw())

    assert zipped.headers["content-encoding"] == "gzip"
    assert body[8] == 4  # XFL: the fastest level
    assert len(body) < len(plain.content) / 4
    mine, theirs = (
        text.split(b"scrape_duration")[0] for text in (plain.content, gzip.decompress(body))
    )
    assert mine == theirs


def test_metrics_come_in_the_format_asked_for(running: Sidecar) -> None:
    """Content negotiation by the Accept header."""
    text = running.metrics.get("/metrics", headers={"Accept": "*/*"})
    openmetrics = running.metrics.get(
        "/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"}
    )

    assert text.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


def test_series_go_when_their_source_is_gone(running: Sidecar) -> None:
    """Within the staleness limit plus nothing."""
    running.hear()
    running.clock.advance(LIMITS.stale_ns / 1e9)
    assert "llm_internals_residual_rms_sum{" in running.metrics.get("/metrics").text

    running.clock.advance(0.001)
    text = running.metrics.get("/metrics").text
    assert "residual" not in text
    assert "tokens" not in text
    assert running.api.get("/v1/layers").json()["rows"] == []


def test_requests_are_listed_latest_first(running: Sidecar) -> None:
    """Up to the limit."""
    running.hear()
    found = running.api.get("/v1/requests", params={"limit": 2}).json()["requests"]

    assert [each["id"] for each in found] == ["cmpl-2-0-0badcafe", "cmpl-1-0-0badcafe"]
    assert [bool(each["serving"]) for each in found] == [False, True]
    assert len(running.api.get("/v1/requests").json()["requests"]) == 3


def test_a_group_of_signals_is_asked_for_by_name(running: Sidecar) -> None:
    """One, or all."""
    running.hear()
    router = running.api.get("/v1/signals", params={"group": "router"}).json()
    whole = running.api.get("/v1/signals").json()

    assert [group["id"] for group in router["groups"]] == ["router"]
    assert len(router["cells"]) == 6
    assert len(whole["cells"]) > 6
    unknown = running.api.get("/v1/signals", params={"group": "unknown"}).json()
    assert "attention, " in unknown["remedy"]


def test_signatures_are_listed_latest_first(running: Sidecar) -> None:
    """Up to the limit."""
    running.hear()
    found = running.api.get("/v1/signatures", params={"limit": 2}).json()["signatures"]

    assert [each["id"] for each in found] == ["cmpl-2-0-0badcafe", "cmpl-1-0-0badcafe"]
    assert len(running.api.get("/v1/signatures").json()["signatures"]) == 3


@pytest.mark.parametrize("what", ["requests", "signatures"])
def test_more_than_an_answer_holds_is_refused_with_what_fits(
    running: Sidecar, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A client that named a limit; one that did not gets what fits, and how many are left."""
    running.hear()
    monkeypatch.setattr(portion, "MAX_NUMBERS", 60)
    refused = running.api.get(f"/v1/{what}", params={"limit": 3})
    part = running.api.get(f"/v1/{what}").json()
    fitting = len(part[what])

    assert refused.status_code == 422
    assert f"limit={fitting} or less" in refused.json()["remedy"]
    assert part["num_left_out"] == 3 - fitting > 0
    assert running.api.get(f"/v1/{what}", params={"limit": fitting}).status_code == 200


@pytest.mark.parametrize("request_id", ["cmpl-1-0", "cmpl-1-0-0badcafe"])
def test_a_request_is_found_by_either_id(running: Sidecar, request_id: str) -> None:
    """The client's or the engine's."""
    running.hear()
    (found,) = running.api.get(f"/v1/requests/{request_id}").json()["requests"]

    assert found["id"] == "cmpl-1-0-0badcafe"
    assert found["serving"]["id"] == "cmpl-1-0"


def test_an_id_with_slashes_is_an_id(running: Sidecar) -> None:
    """Clients choose their own."""
    running.intake.accept(
        pack(running.engine.frame(Requests([0, 1, 2], [fakes.request("a/b-0badcafe")])))
    )

    assert running.api.get("/v1/requests/a/b").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/requests/unknown", 404),
        ("GET", "/v1/requests?limit=0", 422),
        ("GET", f"/v1/requests?limit={MAX_REQUESTS + 1}", 422),
        ("GET", "/v1/requests?limit=all", 422),
        ("GET", "/v1/signatures?limit=0", 422),
        ("GET", "/v1/signals?group=unknown", 422),
        ("GET", "/nowhere", 404),
        ("GET", "/docs", 404),
        ("POST", "/v1/status", 405),
    ],
)
def test_an_error_is_a_problem_with_a_remedy(
    running: Sidecar, method: str, path: str, status: int
) -> None:
    """RFC 9457, the same five fields for all."""
    reply = running.api.request(method, path)

    assert reply.status_code == status == reply.json()["status"]
    assert reply.headers["content-type"] == "application/problem+json"
    assert set(reply.json()) == PROBLEM
    assert all(reply.json().values())


def test_a_bug_is_a_problem_too(running: Sidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 with the same fields, without a traceback for the client; /healthz stays 200."""

    def get() -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(running.intake, "get", get)
    reply = running.api.get("/v1/status")

    assert reply.status_code == 500
    assert set(reply.json()) == PROBLEM
    assert "secret" not in reply.text
    assert running.api.get("/healthz").status_code == 200


def test_every_route_says_what_it_answers(running: Sidecar) -> None:
    """/openapi.json describes each answer with a model; no page needs a CDN."""
    paths = running.api.get("/openapi.json").json()["paths"]

    assert set(paths) == {
        "/v1/status",
        "/v1/layers",
        "/v1/signals",
        "/v1/signatures",
        "/v1/requests",
        "/v1/requests/{request_id}",
        "/v1/requests/{request_id}/scan",
        "/v1/scans",
        "/v1/drift",
        "/v1/drift/{channel}/acknowledge",
        "/v1/deployments",
        "/v1/windows",
        "/v1/baselines",
        "/v1/drift/history",
        "/v1/timeline",
        "/v1/timeline/signals",
        "/v1/timeline/lines",
        "/v1/events",
        "/v1/baseline/reload",
        "/v1/drift/canary/discard",
        "/healthz",
        "/readyz",
    }
    for path in (*V1, "/readyz"):
        content = paths[path]["get"]["responses"]["200"]["content"]
        assert "$ref" in content["application/json"]["schema"]


def test_the_page_about_the_api_names_what_there_is(running: Sidecar) -> None:
    """Every route of docs/api.md exists, every route is there, and so is every event."""
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    routes = re.findall(r"^\| `(GET|POST) (/[^`]+)`", page, re.MULTILINE)
    described = running.api.get("/openapi.json").json()["paths"]

    assert sorted(routes) == sorted(
        (method.upper(), path) for path, methods in described.items() for method in methods
    )
    for event in ("status", "column", "drift", "request", "reset"):
        assert f"| `{event}` |" in page


def test_a_large_exposition_takes_less_than_a_second(running: Sidecar) -> None:
    """100 layers at the default cap, rendered and zipped."""
    for body in (fakes.live(), fakes.layers(100)):
        running.intake.accept(pack(running.engine.frame(body, NOW)))
    seconds = []
    for _ in range(5):  # the quickest: a busy machine may keep any of them waiting
        started = time.perf_counter()
        reply = running.metrics.get("/metrics")
        seconds.append(time.perf_counter() - started)

    assert min(seconds) < 1
    assert "llm_internals_series 1300.0" in reply.text


def test_families_can_be_asked_for_by_name(running: Sidecar) -> None:
    """As the Prometheus clients have it: ?name[]=."""
    running.hear()
    reply = running.metrics.get("/metrics", params={"name[]": ["llm_internals_tap_live"]})

    names = {line.split("{")[0] for line in reply.text.splitlines() if not line.startswith("#")}
    assert names == {"llm_internals_tap_live"}


@pytest.mark.parametrize("seconds", ["nonsense", "-1", "0", "nan", "inf", "10"])
def test_a_client_may_say_how_long_it_waits(running: Sidecar, seconds: str) -> None:
    """What is no time is no limit."""
    running.hear()
    reply = running.metrics.get(
        "/metrics", headers={"X-Prometheus-Scrape-Timeout-Seconds": seconds}
    )

    assert reply.status_code == 200
    assert "llm_internals_residual_rms_sum{" in reply.text


def test_a_scrape_that_cannot_be_in_time_is_told_so(running: Sidecar) -> None:
    """503 and the remedy, when other scrapes take all of its time."""
    with running.exposition._lock:
        reply = running.metrics.get(
            "/metrics", headers={"X-Prometheus-Scrape-Timeout-Seconds": "0.02"}
        )

    assert reply.status_code == 503
    assert "fewer series" in reply.json()["remedy"]
