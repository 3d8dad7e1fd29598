"""Stand-ins for drift: a channel that does as it is told, and requests that finish when told."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from prometheus_client.core import Metric as Family

from sidecar.errors import StateError
from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.drift.channel import Channel
from sidecar.fold.drift.fit import Fit
from sidecar.fold.drift.header import Header
from sidecar.fold.drift.observation import observation_of
from sidecar.fold.drift.plan import Survey
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.verdict import Cause, ChannelState, Verdict
from sidecar.fold.drift.window import Assembly, Window, Windows
from sidecar.fold.reducer import Snapshot
from sidecar.fold.signatures import Signed
from sidecar.publish.drift import metrics as drift_metrics
from sidecar.publish.drift.baselines import Baselines
from sidecar.publish.drift.book import Book
from sidecar.publish.drift.judges import Canaries, DriftView, Judges
from sidecar.publish.drift.panel import Panel, Terms
from sidecar.publish.drift.seat import Seat
from sidecar.publish.drift.watch import MAX_BYTES, Keeper, Watch
from sidecar.publish.live import metrics as live_metrics
from sidecar.publish.live.pulse import PulseView
from sidecar.publish.metrics.collectors import COLLECTORS, Collector, family
from sidecar.publish.traces import metrics as trace_metrics
from sidecar.publish.traces.account import Account, TraceView
from sidecar.publish.traces.sampling import Decision
from sidecar.wire.frame import Identity, Manifest, Signature, Signatures
from sidecar.wire.signature import Layout, size
from tests.fakes import NOW, SECOND, FakeClock, FakeSource

MINUTE = 60 * SECOND
START = NOW - NOW % MINUTE  # a window begins here
ASSEMBLY = Assembly(length_ns=MINUTE, min_requests=2, longest_ns=5 * MINUTE)
LAYOUT = Layout([0, 1])
CAUSE = Cause("residual/decode/l1/log_rms", 1, "log_rms", "decode", "high", 1.5, NOW)


class FakeChannel:
    """Counts the windows it was given; pages after `pages_after` of them; fails when told to."""

    def __init__(self, name: str = "traffic", pages_after: int = 10**9) -> None:
        self.name = name
        self.windows: list[Window] = []
        self.num_windows = 0
        self.pages_after = pages_after
        self.is_acknowledged = False
        self.error: Exception | None = None  # raised by every update
        self.before_update: Callable[[], object] = lambda: None

    def update(self, window: Window) -> None:
        self.before_update()
        if self.error is not None:
            raise self.error
        self.windows.append(window)
        self.num_windows += 1

    def get(self, now_ns: int) -> Verdict:
        is_page = self.num_windows >= self.pages_after
        return Verdict(
            self.name,
            ChannelState.PAGE if is_page else ChannelState.ARMED,
            f"{self.num_windows} windows",
            level=self.num_windows / max(1, self.pages_after),
            since_ns=NOW if is_page else None,
            causes=(CAUSE,) if is_page else (),
            judged_ns=now_ns,
            is_acknowledged=self.is_acknowledged,
        )

    def acknowledge(self, now_ns: int) -> None:
        self.num_windows = 0
        self.is_acknowledged = True

    def export(self) -> dict[str, Any]:
        return {"name": self.name, "num_windows": self.num_windows}

    def restore(self, exported: dict[str, Any]) -> None:
        if not isinstance(exported, dict) or exported.get("name") != self.name:
            raise StateError("not mine; delete it")
        self.num_windows = exported["num_windows"]


def finished(
    t_ns: int = START, num: int = 1, layout: Layout = LAYOUT, canary: str = "", level: float = 0.0
) -> Signatures:
    """`num` requests that end at `t_ns`, all their values at `level`."""
    values = np.full(size(layout), level, "<f4").tobytes()
    return Signatures(
        layout,
        [Signature(f"r{k}", t_ns, True, 64, 9, "", 0, values, "chat", canary) for k in range(num)],  # noqa: FBT003
    )


def book(assembly: Assembly = ASSEMBLY, baseline: str = "", **limits: int) -> Book:
    """Windows of a minute, without a baseline unless its digest is given."""

    def opener(schema: Schema) -> tuple[Windows, str]:
        return Windows(schema, assembly), baseline

    return Book(opener, **limits)


class FakePanel(Panel):
    """Any channels, over windows of a minute that two requests complete."""

    @property
    def assembly(self) -> Assembly:
        return ASSEMBLY


def judges(*channels: Channel, **others: Any) -> Judges:
    """Judges over windows of a minute."""
    terms = Terms("production", MINUTE)
    return Judges(terms, FakePanel(terms, None, [Seat(each) for each in channels]), **others)


def watch(
    *channels: Channel,
    clock: FakeClock | None = None,
    keeper: Keeper | None = None,
    max_bytes: int = MAX_BYTES,
    **others: Any,
) -> Watch:
    """A watch over fake channels; its thread is not started."""
    return Watch(judges(*channels, **others), keeper, clock or FakeClock(), max_bytes)


def states(channels: Sequence[Any]) -> dict[str, str]:
    """State by channel, of those configured."""
    return {c.verdict.channel: str(c.verdict.state) for c in channels if c.is_configured}


@cache
def baseline(num_windows: int = 12, assembly: Assembly = ASSEMBLY) -> Baseline:
    """A baseline of `num_windows` windows of forty requests each, that ended at START."""
    draws = np.random.default_rng(7)
    items = []
    for k in range(40 * num_windows):
        t_ns = START - (num_windows - k // 40) * assembly.length_ns
        body = finished(t_ns, level=float(draws.normal()))
        items.append(observation_of(Signed("engine", LAYOUT, body.signatures[0])))
    survey = Survey(Schema.of(LAYOUT))
    for item in items:
        survey.update(item)
    identity = Identity(weights_digest="d1", dtype="bfloat16")
    fit = Fit(Header(identity, LAYOUT, assembly, release="1.2.3"), survey.get())
    for item in items:
        fit.update(item)
    return fit.get()


@cache
def everything() -> DriftView:
    """A view with something in every family: a page with causes, weights, windows of each kind."""
    clock = FakeClock(START)
    paging = FakeChannel("traffic", pages_after=1)
    judging = watch(paging, FakeChannel("mix"), clock=clock)
    source = FakeSource()
    for body in (
        Manifest("complete", weights_digest="d1", tokenizer_digest="d2"),
        finished(START, 3),
        finished(START, 1, canary="p1@1790000000000"),
    ):
        judging.hear(source.frame(body, START), START)
    judging.turn()
    clock.now_ns = START + 4 * MINUTE
    judging.turn()
    canaries = Canaries({0: 1.0, 1: 2.5}, is_learning=True)
    view = judging.get()
    channels = [each._replace(num_errors=len(each.verdict.channel)) for each in view.channels]
    return view._replace(
        now_ns=NOW, baseline=baseline(), canaries=canaries, channels=tuple(channels)
    )


def collectors() -> dict[str, Collector]:
    """All collectors: drift and its summary over `everything`, traces over every outcome."""
    rounds = {"complete": 3, "partial": 1}
    dropped = {"queue_full": 4, "not_taken": 5, "shutdown": 6}
    account = Account(30, 8, dropped, 7, capacity=2048, num_taken=2, num_refused=3)
    pushes = {"taken": 4, "refused": 1, "failed": 2}
    view = TraceView({each: 9 - at for at, each in enumerate(Decision)}, 1, 2, 3, account)
    pulse = PulseView(3, {"behind": 1, "stalled": 2, "refused": 3}, 4, 5)
    return {
        **COLLECTORS,
        "events": live_metrics.events_collector(lambda: pulse),
        "summary": live_metrics.collector(everything),
        "guard": _guarded,
        "fetch": _fetched,
        "drift": drift_metrics.collector(everything, lambda: rounds),
        "traces": trace_metrics.collector(lambda: view, lambda: pushes),
    }


def _guarded(_: Snapshot) -> Iterator[Family]:
    """What the guard tells after two requests without a token, and two changes."""
    yield family("http_refused", [(("token",), 2)])
    yield family("audit_entries", [((), 4)])


def _fetched(_: Snapshot) -> Iterator[Family]:
    """What is told of a baseline that was fetched as asked."""
    yield family("baseline_fetch_success", [((), 1)])


def no_baselines() -> Baselines:
    """Nothing was configured."""
    return Baselines(Terms("production", MINUTE), None)
