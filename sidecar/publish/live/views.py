"""The routes of what is going on now: timelines, lines and the stream of events.

Guarantees: pictures are made in the thread pool; the stream alone runs on the event loop.
"""

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from sidecar.publish.api.problems import Problem, Unanswerable
from sidecar.publish.api.reply import json_reply
from sidecar.publish.live import answers
from sidecar.publish.live.feed import MAX_CLIENTS
from sidecar.publish.live.stream import EventStream
from sidecar.publish.state import Shared
from sidecar.wire.signals import Phase, Position

MAX_NS = 2**63 - 1
api = APIRouter(prefix="/v1", tags=["live"])
After = Annotated[int, Query(ge=-1, le=MAX_NS)]


@api.get("/timeline/signals", response_model=answers.TimelineSignalsAnswer)
def signals(state: Shared) -> Response:
    """Tell what /v1/timeline can show, and of whom."""
    sources = state.intake.read(lambda reducer: reducer.timelines.sources())
    return json_reply(answers.signals_answer(sources))


@api.get("/timeline", response_model=answers.TimelineAnswer, responses={404: {"model": Problem}})
def timeline(
    state: Shared,
    signal: Annotated[str, Query(max_length=64)] = "residual_rms",
    phase: Phase = Phase.DECODE,
    position: Position = Position.REST,
    source: Annotated[str, Query(max_length=64)] = "",
    after: After = -1,
    reference: Literal["", "baseline", "own start"] = "",
) -> Response:
    """Tell one signal per layer and second, of the last ten minutes: columns after `after` ns."""
    asked = answers.Asked(signal, phase, position, source, after, reference)
    baseline = state.watch.get().baseline
    return json_reply(answers.timeline_answer(asked, state.intake.read, baseline))


@api.get("/timeline/lines", response_model=answers.LinesAnswer)
def lines(state: Shared, after: After = -1) -> Response:
    """Tell latency, tokens, queues, attention and confidence per second, of ten minutes."""
    return json_reply(answers.lines_answer(state.intake.read, after))


@api.get(
    "/events",
    response_class=Response,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "events, without end"},
        503: {"model": Problem},
    },
)
async def events(
    state: Shared, last_event_id: Annotated[str, Header(max_length=64)] = ""
) -> Response:
    """Stream `status`, `column`, `drift` and `request` events, and `reset` after a gap."""
    pulse = state.pulse
    if pulse is None:
        raise Unanswerable(503, "no events are published here", "ask a sidecar that serves")
    if pulse.feed.num_clients >= MAX_CLIENTS:
        pulse.feed.drop("refused")
        raise Unanswerable(503, f"{MAX_CLIENTS} clients listen already", "close one, or poll /v1")
    return EventStream(pulse.feed, last_event_id)
