"""What every route reads: the intake's snapshots, the views of drift, and what renders them."""

import logging
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol

from fastapi import Depends, Request

from sidecar.errors import SidecarError
from sidecar.publish.drift.baselines import Baselines
from sidecar.publish.drift.fetch import Fetcher
from sidecar.publish.drift.watch import Watch
from sidecar.publish.intake import Intake
from sidecar.publish.live.pulse import Pulse
from sidecar.publish.metrics.exposition import Exposition
from sidecar.publish.traces.account import TraceView
from sidecar.wire.frame import Frame

_log = logging.getLogger(__name__)


class Runner(Protocol):
    """What replays known-safe tasks: `canary.CanaryRunner`, or a fake."""

    def start(self) -> None:
        """Begin to replay."""

    def stop(self) -> None:
        """End, in the middle of a round too."""

    def outcomes(self) -> dict[str, int]:
        """Rounds so far by what became of them."""


class Tracer(Protocol):
    """What sends spans: `traces.tracer.Tracer`, or a fake."""

    def start(self) -> None:
        """Begin to make spans."""

    def stop(self) -> None:
        """End, after what can be sent was sent."""

    def hear(self, frame: Frame, now_ns: int) -> None:
        """Take an accepted frame; never waits."""

    def get(self) -> TraceView:
        """What became of every request and span."""


class Pusher(Protocol):
    """What pushes metrics: `traces.pushing.Pusher`, or a fake."""

    def start(self) -> None:
        """Begin to push."""

    def stop(self) -> None:
        """End."""

    def outcomes(self) -> dict[str, int]:
        """Messages so far by what became of them."""


class State(NamedTuple):
    """The living parts of one sidecar; both apps share them.

    runner: replays known-safe tasks; None when it was not asked for.
    control_path: file that steers the tap beside this sidecar; None when there is none.
    tracer: sends spans; likewise.
    pulse: tells of events as they happen; None where nobody could listen.
    fetcher: fetches the baseline; None where it is a file of the operator's.
    pusher: pushes metrics; None when it was not asked for.
    """

    intake: Intake
    exposition: Exposition
    watch: Watch
    baselines: Baselines
    runner: Runner | None = None
    control_path: Path | None = None
    tracer: Tracer | None = None
    pulse: Pulse | None = None
    fetcher: Fetcher | None = None
    pusher: Pusher | None = None

    def start(self) -> None:
        """Begin to judge, then to read, then to ask."""
        self.watch.start()
        if self.tracer is not None:
            self.tracer.start()
        if self.pusher is not None:
            self.pusher.start()
        self.intake.start()
        if self.pulse is not None:
            self.pulse.start()
        if self.runner is not None:
            self.runner.start()
        if self.fetcher is not None:
            self.fetcher.start()

    def stop(self) -> None:
        """Ask and read no more, judge what was read, and keep it."""
        if self.fetcher is not None:
            self.fetcher.stop()
        if self.runner is not None:
            self.runner.stop()
        if self.pulse is not None:
            self.pulse.stop()
        self.intake.stop()
        self.watch.stop()
        if self.tracer is not None:
            self.tracer.stop()
        if self.pusher is not None:
            self.pusher.stop()

    def hang_up(self) -> None:
        """Let go of everybody who listens to events."""
        if self.pulse is not None:
            self.pulse.feed.close()

    def canary_rounds(self) -> dict[str, int]:
        """Rounds of known-safe tasks by what became of them."""
        return self.runner.outcomes() if self.runner else {}

    def reload(self) -> None:
        """Read the baseline file again; what is wrong with it is logged, and changes nothing."""
        try:
            panel = self.baselines.read()
            self.watch.ask(lambda judges, now_ns: judges.use(panel, now_ns))
        except SidecarError as error:
            _log.error("the baseline was not read again: %s", error)


async def _state(request: Request) -> State:
    # async: it waits for nothing, and a sync dependency would cost a thread of the pool.
    state: State = request.app.state.sidecar
    return state


Shared = Annotated[State, Depends(_state)]
