"""What every route reads: the intake's snapshots, the views of drift, and what renders them."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol

from fastapi import Depends, Request

from sidecar.publish.drift.baselines import Baselines
from sidecar.publish.drift.fetch import Fetcher
from sidecar.publish.drift.watch import Watch
from sidecar.publish.guard.audited import Log, StderrLog
from sidecar.publish.intake import Intake
from sidecar.publish.live.pulse import Pulse
from sidecar.publish.metrics.exposition import Exposition
from sidecar.publish.steering import Steering
from sidecar.publish.traces.account import TraceView
from sidecar.wire.frame import Frame


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
    log: where it is written down that a baseline was changed.
    steering: has it written down who steers the tap; None where there is no control.
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
    log: Log = StderrLog()
    steering: Steering | None = None

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
        if self.steering is not None:
            self.steering.start()

    def stop(self) -> None:
        """Ask and read no more, judge what was read, keep it, and send what can be sent.

        Takes as long as the slowest of those who ask and read, then what the watch and the tracer
        take: their limits add up to less than four seconds.
        """
        asking = (
            self.fetcher,
            self.runner,
            self.pulse,
            self.pusher,
            self.steering,
            self.intake,
        )
        _all_at_once([each.stop for each in asking if each is not None])
        self.watch.stop()
        if self.tracer is not None:
            self.tracer.stop()

    def hang_up(self) -> None:
        """Let go of everybody who listens to events."""
        if self.pulse is not None:
            self.pulse.feed.close()

    def canary_rounds(self) -> dict[str, int]:
        """Rounds of known-safe tasks by what became of them."""
        return self.runner.outcomes() if self.runner else {}

    def reload(self, who: str) -> None:
        """Read the baseline file again.

        who: on whose word, for the audit log; without an entry there nothing is changed.
        Raises SidecarError when it cannot be read or used; the one before stays in force.
        """
        panel = self.baselines.read()
        told = {"file": str(self.baselines.path), "digest": panel.digest}
        self.log.append(time.time_ns(), who, "baseline.reload", told)
        self.watch.ask(lambda judges, now_ns: judges.use(panel, now_ns))


def _all_at_once(actions: list[Callable[[], None]]) -> None:
    """Each in a thread of its own: one that waits out its limit keeps no other from ending."""
    threads = [threading.Thread(target=each, daemon=True) for each in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def _state(request: Request) -> State:
    # async: it waits for nothing, and a sync dependency would cost a thread of the pool.
    state: State = request.app.state.sidecar
    return state


Shared = Annotated[State, Depends(_state)]
