"""From frames to spans: nothing waits, nothing ends the thread, and everything is counted."""

import threading
import time
from collections.abc import Callable

import pytest

from sidecar.fold.drift.verdict import ChannelState
from sidecar.fold.gathering import PATIENCE_NS, QUIET_NS
from sidecar.fold.reducer import Reducer
from sidecar.publish.drift.judges import DriftView
from sidecar.publish.intake import Intake, each_of
from sidecar.publish.traces import tracer as module
from sidecar.publish.traces.outbox import Outbox
from sidecar.publish.traces.sampling import Decision, Sampler
from sidecar.publish.traces.tracer import Tracer
from sidecar.wire.frame import Body, Requests, pack
from tests import fakes
from tests.fakes import ENGINE, FRONTEND, LIMITS, SECOND, FakeClock, FakeInbox, FakeSource
from tests.publish import drifting
from tests.publish.traces.spans import CALLER, UNSAMPLED_CALLER, FakeCarrier, is_balanced

ID = "chatcmpl-1-0badcafe"


class Life:
    """A tracer whose spans are kept, and the engine and front end that it hears."""

    def __init__(self, ratio: float = 1.0, **others: int) -> None:
        self.clock = FakeClock()
        self.carrier = FakeCarrier()
        self.view = drifting.everything()
        self.look: Callable[[], DriftView] = lambda: self.view
        self.outbox = Outbox(self.carrier, linger_seconds=0.0)
        self.tracer = Tracer(self.outbox, Sampler(ratio), self._look, self.clock, **others)
        self.engine, self.frontend = FakeSource(ENGINE), FakeSource(FRONTEND)

    def _look(self) -> DriftView:
        return self.look()

    def hear(self, source: FakeSource, *bodies: Body) -> None:
        for body in bodies:
            self.tracer.hear(source.frame(body, self.clock()), self.clock())

    def request(self, internal_id: str = ID, traceparent: str = CALLER) -> None:
        record = fakes.request(internal_id)
        done = fakes.finished(internal_id[: -len("-0badcafe")], traceparent=traceparent)
        self.hear(self.engine, Requests([0, 1, 2], [record]), fakes.signatures(internal_id))
        self.hear(self.frontend, fakes.serving(done))

    def quiet(self) -> None:
        self.tracer.turn()
        self.clock.now_ns += QUIET_NS
        self.tracer.turn()

    def decisions(self) -> dict[str, int]:
        return {str(k): n for k, n in self.tracer.get().requests.items() if n}


def test_a_finished_request_becomes_one_span() -> None:
    """Once its parts are there and two seconds are over."""
    life = Life()
    life.request()
    life.tracer.turn()
    early = life.tracer.get().account.finished
    life.quiet()
    view = life.tracer.get()

    assert early == 0
    assert (view.account.finished, view.account.waiting) == (1, 1)
    assert life.decisions() == {"caller": 1}


@pytest.mark.parametrize(
    ("traceparent", "ratio", "decision"),
    [(CALLER, 0.0, "caller"), ("", 1.0, "ratio"), ("", 0.0, "unsampled")],
)
def test_sampling_is_the_callers_or_the_ratio(
    traceparent: str, ratio: float, decision: str
) -> None:
    """And counted by decision."""
    life = Life(ratio)
    clean(life, traceparent)
    life.quiet()

    assert life.decisions() == {decision: 1}
    assert life.tracer.get().account.finished == (decision != "unsampled")


def clean(life: Life, traceparent: str = UNSAMPLED_CALLER) -> None:
    """A request with nothing unusual about it: fakes have NaN and Inf in every request."""
    done = fakes.finished("chatcmpl-2", traceparent=traceparent)
    life.hear(life.frontend, fakes.serving(done))
    life.hear(life.engine, fakes.signatures("chatcmpl-2-0badcafe"))


def test_an_anomalous_request_is_sent_though_nobody_sampled_it() -> None:
    """Its record counts NaN or Inf elements."""
    life = Life(0.0)
    life.request(traceparent=UNSAMPLED_CALLER)
    clean(life)
    life.quiet()

    assert life.decisions() == {"anomalous": 1, "unsampled": 1}


def test_the_model_is_the_engines_where_no_front_end_speaks() -> None:
    """A server of plain torch has none."""
    life = Life()
    life.tracer.start()
    life.hear(life.engine, fakes.live("mine"), Requests([0, 1, 2], [fakes.request("a")]))
    life.tracer.turn()
    life.clock.now_ns += PATIENCE_NS
    life.tracer.turn()
    life.tracer.stop()

    assert life.carrier.names == ["text_completion mine"]


def test_a_change_of_a_verdict_is_told_and_what_was_there_before_is_not() -> None:
    """One span per change, of configured channels alone."""
    life = Life()
    life.tracer.turn()
    before = life.tracer.get().account.finished
    channels = list(life.view.channels)
    at = next(i for i, each in enumerate(channels) if each.verdict.channel == "mix")
    verdict = channels[at].verdict._replace(state=ChannelState.TICKET)
    channels[at] = channels[at]._replace(verdict=verdict)
    life.view = life.view._replace(channels=tuple(channels))
    for _ in range(3):
        life.tracer.turn()

    assert before == 0
    assert life.tracer.get().account.finished == 1


def test_an_exception_is_counted_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Of the judgement of one request, or of whoever judges drift."""
    life = Life()

    def failing() -> DriftView:
        raise RuntimeError

    life.look = failing
    life.request()
    life.quiet()

    assert life.tracer.get().num_errors == 2
    assert life.tracer.get().account.finished == 1
    assert len(caplog.records) == 1


def test_what_finds_no_room_is_counted() -> None:
    """The thread that makes spans may be starved; ingest goes on."""
    life = Life(max_bytes=1)
    life.request()

    assert life.tracer.get().num_left_out == 3


def test_stopping_tells_of_what_was_heard() -> None:
    """Nobody waits two seconds for a request that is over."""
    life = Life()
    life.tracer.start()
    life.request()
    life.tracer.stop()
    account = life.tracer.get().account

    assert life.carrier.names == ["chat tiny"]
    assert (account.finished, account.sent) == (1, 1)


def test_stopping_does_not_wait_for_a_judge_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sidecar ends within five seconds, whatever happens here."""
    monkeypatch.setattr(module, "STOP_SECONDS", 0.1)
    life, release = Life(), threading.Event()

    def hanging() -> DriftView:
        release.wait(120)
        return life.view

    life.look = hanging
    life.tracer.start()
    started = time.monotonic()
    life.tracer.stop()
    seconds = time.monotonic() - started
    release.set()

    assert seconds < 30


def ingested(listener: Callable[..., None], num: int = 300) -> float:
    """CPU-free wall seconds that ingest takes for `num` rounds of frames, the quickest of five."""
    seconds = []
    for _ in range(5):
        engine, frontend = FakeSource(ENGINE), FakeSource(FRONTEND)
        intake = Intake(FakeInbox(), Reducer(LIMITS), None, FakeClock(), listener)
        messages = []
        for k in range(num):
            internal = f"chatcmpl-{k}-0badcafe"
            done = fakes.finished(f"chatcmpl-{k}", traceparent=CALLER)
            messages.append(pack(engine.frame(Requests([0, 1, 2], [fakes.request(internal)]))))
            messages.append(pack(engine.frame(fakes.signatures(internal))))
            messages.append(pack(frontend.frame(fakes.serving(done))))
        started = time.perf_counter()
        for message in messages:
            intake.accept(message)
        seconds.append(time.perf_counter() - started)
        assert intake.get().sources[0].tally.received >= num
    return min(seconds)


def test_a_collector_that_hangs_does_not_slow_ingest() -> None:
    """Ingest of requests takes about as long as without traces: a few microseconds a frame more."""
    life = Life()
    life.carrier.gate.clear()  # every batch hangs
    watch = drifting.watch()
    without = ingested(each_of([watch.hear]))
    with_traces = ingested(each_of([watch.hear, life.tracer.hear]))
    for _ in range(3):
        life.tracer.turn()
    life.clock.now_ns += PATIENCE_NS
    life.tracer.turn()
    account = life.tracer.get().account

    assert with_traces < 3 * without + 0.1
    assert account.finished > 0
    assert is_balanced(account)


def test_every_request_has_one_decision() -> None:
    """A hundred requests, whoever asked for them."""
    life = Life(0.5)
    for k in range(100):
        life.request(f"chatcmpl-{k}-0badcafe", ["", CALLER, UNSAMPLED_CALLER][k % 3])
    life.quiet()
    view = life.tracer.get()

    assert sum(view.requests.values()) == 100
    assert view.account.finished == 100 - view.requests[Decision.UNSAMPLED]
    assert view.num_errors == 0


def test_a_wall_clock_that_was_set_back_delays_no_span() -> None:
    """What was read an hour ahead is waited for as long as anything else."""
    life = Life()
    wall_ns = life.clock() + 3600 * SECOND
    record, done = fakes.request(ID), fakes.finished(ID[: -len("-0badcafe")], traceparent=CALLER)
    life.tracer.hear(life.engine.frame(Requests([0, 1, 2], [record])), wall_ns)
    life.tracer.hear(life.engine.frame(fakes.signatures(ID)), wall_ns)
    life.tracer.hear(life.frontend.frame(fakes.serving(done)), wall_ns)
    life.quiet()

    assert sum(life.decisions().values()) == 1
