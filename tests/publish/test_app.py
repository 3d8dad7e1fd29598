"""What is put together, as far as no other room tests it."""

from pathlib import Path

from sidecar.config import ExporterConfig
from sidecar.publish.app import create_state
from sidecar.publish.guard.guard import create_guard
from sidecar.publish.traces.tracer import Tracer
from sidecar.wire.frame import Requests, pack
from tests import fakes
from tests.fakes import FakeClock, FakeSource


def test_all_parts_go_by_the_clock_that_is_given(tmp_path: Path) -> None:
    """What is read, judged and traced has its time, so that hours can pass in minutes."""
    config, clock = _traced(tmp_path), FakeClock()
    state = create_state(config, create_guard(config), clock, clock)
    tracer = state.tracer
    assert isinstance(tracer, Tracer)
    try:
        body = Requests([0, 1, 2], [fakes.request()])
        state.intake.accept(pack(FakeSource().frame(body, clock())))
        tracer.turn()
        assert sum(tracer.get().requests.values()) == 0  # its other half may come yet
        assert state.intake.get().ages.sum == 0.0

        clock.advance(3600)
        for turn in (tracer.turn, state.watch.turn):
            turn()

        assert sum(tracer.get().requests.values()) == 1
        assert (state.intake.get().now_ns, state.watch.get().now_ns) == (clock(), clock())
    finally:
        state.intake.stop()


def test_a_wall_clock_that_is_set_hurries_no_span(tmp_path: Path) -> None:
    """The other half of a request is waited for by a clock of its own, unless one is given."""
    config, clock = _traced(tmp_path), FakeClock()
    state = create_state(config, create_guard(config), clock)
    tracer = state.tracer
    assert isinstance(tracer, Tracer)
    try:
        body = Requests([0, 1, 2], [fakes.request()])
        state.intake.accept(pack(FakeSource().frame(body, clock())))
        clock.advance(3600)
        tracer.turn()

        assert sum(tracer.get().requests.values()) == 0
    finally:
        state.intake.stop()


def _traced(folder: Path) -> ExporterConfig:
    return ExporterConfig.read(
        {
            "SIDECAR_SOCKET": str(folder / "i.sock"),
            "SIDECAR_OTLP_ENDPOINT": "http://127.0.0.1:9",
        }
    )
