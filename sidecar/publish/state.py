"""What every route reads: the intake's snapshots, the views of drift, and what renders them."""

from typing import Annotated, NamedTuple

from fastapi import Depends, Request

from sidecar.publish.intake import Intake
from sidecar.publish.metrics import Exposition
from sidecar.publish.watch import Watch


class State(NamedTuple):
    """The living parts of one sidecar; both apps share them."""

    intake: Intake
    exposition: Exposition
    watch: Watch

    def start(self) -> None:
        """Begin to judge, then to read."""
        self.watch.start()
        self.intake.start()

    def stop(self) -> None:
        """Read no more, judge what was read, and keep it."""
        self.intake.stop()
        self.watch.stop()


async def _state(request: Request) -> State:
    # async: it waits for nothing, and a sync dependency would cost a thread of the pool.
    state: State = request.app.state.sidecar
    return state


Shared = Annotated[State, Depends(_state)]
