"""What every route reads: the intake's snapshots, and the exposition that renders them."""

from typing import Annotated, NamedTuple

from fastapi import Depends, Request

from sidecar.publish.intake import Intake
from sidecar.publish.metrics import Exposition


class State(NamedTuple):
    """The living parts of one sidecar; both apps share them."""

    intake: Intake
    exposition: Exposition


async def _state(request: Request) -> State:
    # async: it waits for nothing, and a sync dependency would cost a thread of the pool.
    state: State = request.app.state.sidecar
    return state


Shared = Annotated[State, Depends(_state)]
