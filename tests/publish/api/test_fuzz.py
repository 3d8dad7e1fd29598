"""Every route of the API, asked with whatever its description allows and with what it forbids."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.generation import GenerationMode

from sidecar.fold.reducer import Reducer
from sidecar.publish.app import create_api_app
from sidecar.publish.intake import Intake
from sidecar.publish.live.pulse import Pulse
from sidecar.publish.metrics.exposition import Exposition
from sidecar.publish.state import State
from sidecar.wire.frame import Requests, pack
from tests import fakes
from tests.fakes import FRONTEND, LIMITS, SECOND, FakeClock, FakeInbox, FakeSource
from tests.publish import drifting
from tests.publish.listening import listening

NUM_EXAMPLES = 20
ENDLESS = "/v1/events"  # see tests/publish/live/test_stream.py
load_all_checks()
WANTED = [
    CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    )
]
MODES = {"allowed": GenerationMode.POSITIVE, "forbidden": GenerationMode.NEGATIVE}


def state(folder: Path) -> State:
    """A sidecar that heard a little of everything, with a fake channel that judges."""
    clock = FakeClock()
    watch = drifting.watch(drifting.FakeChannel(), clock=clock)
    intake = Intake(FakeInbox(), Reducer(LIMITS), None, clock, watch.hear)
    engine, frontend = FakeSource(), FakeSource(FRONTEND)
    for _ in range(3):
        clock.advance(1)
        asked = [fakes.request(f"cmpl-{k}-0-0badcafe", end_ns=clock()) for k in range(3)]
        bodies = (fakes.live(), fakes.layers(), fakes.totals(), Requests([0, 1, 2], asked))
        for body in (*bodies, fakes.signatures("cmpl-1-0-0badcafe")):
            intake.accept(pack(engine.frame(body, clock())))
        intake.accept(pack(frontend.frame(fakes.serving(fakes.finished()), clock())))
    assert clock() - fakes.NOW < LIMITS.stale_ns - SECOND
    return State(
        intake,
        Exposition(1000),
        watch,
        drifting.no_baselines(),
        control_path=folder / "control.json",
        pulse=Pulse(intake, watch),
    )


def questions() -> Iterator[tuple[str, str, str]]:
    """Mode, method and path of each route; where anything goes, nothing is forbidden."""
    for path, routes in create_api_app(None).openapi()["paths"].items():  # type: ignore[arg-type]
        for method, route in routes.items():
            minds = any(each["in"] == "query" for each in route.get("parameters", ()))
            minds |= route.get("requestBody", {}).get("required", False)
            for mode in MODES if minds else ("allowed",):
                if path != ENDLESS:
                    yield mode, method, path


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    served = state(tmp_path_factory.mktemp("fuzzed"))
    served.watch.start()
    with listening(create_api_app(served)) as root:
        yield root
    served.watch.stop()


@pytest.mark.parametrize(("mode", "method", "path"), list(questions()))
def test_no_question_breaks_a_route(url: str, mode: str, method: str, path: str) -> None:
    """No 5xx; each status, media type and body is one that /openapi.json names."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operation = schema[path][method]
    cases = operation.as_strategy(generation_mode=MODES[mode])

    @settings(
        max_examples=NUM_EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=WANTED, timeout=60)

    ask()
