"""A sidecar whose live half is under test: an engine, a front end, a watch and a clock."""

from typing import Any

from starlette.testclient import TestClient

from sidecar.fold.reducer import Reducer
from sidecar.publish.app import create_api_app
from sidecar.publish.drift.watch import Watch
from sidecar.publish.intake import Intake
from sidecar.publish.live.feed import Feed
from sidecar.publish.live.pulse import Pulse
from sidecar.publish.metrics.exposition import Exposition
from sidecar.publish.state import State
from sidecar.wire.frame import Body, Requests, pack
from sidecar.wire.synthetic import SyntheticEngine
from tests import fakes
from tests.fakes import FRONTEND, LIMITS, FakeClock, FakeInbox, FakeSource
from tests.publish import drifting


class Room:
    """Everything that a running sidecar has, without its threads."""

    def __init__(self, feed: Feed | None = None) -> None:
        self.clock = FakeClock()
        self.channel = drifting.FakeChannel("traffic", pages_after=1)
        self.watch: Watch = drifting.watch(self.channel, clock=self.clock)
        self.intake = Intake(FakeInbox(), Reducer(LIMITS), None, self.clock, self.watch.hear)
        self.pulse = Pulse(self.intake, self.watch, feed or Feed(clock_ns=self.clock))
        self.engine = SyntheticEngine(num_layers=4)
        self.tap, self.frontend = FakeSource(), FakeSource(FRONTEND)
        state = State(
            self.intake,
            Exposition(1000),
            self.watch,
            drifting.no_baselines(),
            pulse=self.pulse,
        )
        self.app = create_api_app(state)
        self.client = TestClient(self.app, raise_server_exceptions=False)

    def hear(self, *bodies: Body) -> None:
        """Frames of the engine, read now."""
        for body in bodies:
            self.intake.accept(pack(self.tap.frame(body, self.clock())))

    def second(self, rows: tuple[int, int, int, int] = (4, 60, 0, 8)) -> None:
        """One flush of the engine and its front end, a second later."""
        self.clock.advance(1)
        now = self.clock()
        requests = self.engine.requests(1, now)
        self.hear(self.engine.status(), self.engine.step(rows), self.engine.tables(), requests)
        self.intake.accept(pack(self.frontend.frame(self.engine.serving(now), now)))

    def page(self) -> None:
        """Have the channel page."""
        self.channel.num_windows = 1
        self.watch.turn()

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        """An answer of the API."""
        reply = self.client.get(path, params=params)
        assert reply.status_code == 200, reply.text
        told: dict[str, Any] = reply.json()
        return told

    def requests(self, *ids: str) -> Requests:
        """Finished requests with these ids, now."""
        return Requests([0, 1, 2], [fakes.request(each, end_ns=self.clock()) for each in ids])
