"""What events say: small, so that a hundred watchers cost little; the routes have the rest."""

from pydantic import BaseModel

from sidecar.fold.drift.history import Change
from sidecar.fold.reducer import Snapshot
from sidecar.fold.requests import Measured
from sidecar.publish.api.answers import SummaryAnswer
from sidecar.publish.drift.answers import ChangeAnswer, change_answer
from sidecar.wire.frame import Arrays


class StatusEvent(BaseModel):
    """`status`: how things stand; at each change, and every five seconds.

    last_frame_ns: when any frame was last used, Unix time; null before the first.
    """

    now_ns: int
    summary: SummaryAnswer
    last_frame_ns: int | None
    num_sources: int


class ColumnEvent(BaseModel):
    """`column`: a second is complete; t_ns is when it began. GET /v1/timeline has it."""

    t_ns: int


class RequestEvent(BaseModel):
    """`request`: one has finished, or was aborted. GET /v1/requests/{id} has it all.

    num_rows: token rows measured. nonfinite: NaN and Inf elements seen, of all layers.
    """

    id: str
    source: str
    adapter: str
    start_ns: int
    end_ns: int
    num_prompt_tokens: int
    num_rows: int
    nonfinite: int
    is_aborted: bool


def status(snapshot: Snapshot, summary: SummaryAnswer) -> StatusEvent:
    """How things stand."""
    views = (*snapshot.sources, *snapshot.silent)
    return StatusEvent(
        now_ns=snapshot.now_ns,
        summary=summary,
        last_frame_ns=max((view.heard_ns for view in views), default=0) or None,
        num_sources=len(snapshot.sources),
    )


def change(told: Change) -> ChangeAnswer:
    """`drift`: a verdict changed, as GET /v1/drift/history has it."""
    return change_answer(told)


def request(measured: Measured) -> RequestEvent:
    """One request that is over."""
    made = measured.request
    moments = Arrays.unpack(made.moments, len(measured.layers))
    return RequestEvent(
        id=made.id,
        source=measured.source,
        adapter=made.adapter,
        start_ns=made.start_ns,
        end_ns=made.end_ns,
        num_prompt_tokens=made.num_prompt_tokens,
        num_rows=sum(made.coverage.observed),
        nonfinite=int(moments.nonfinite.sum()),
        is_aborted=measured.aborted is not None,
    )


def key(measured: Measured) -> tuple[str, str, int]:
    """What tells a finished request from another: ids are used again."""
    return (measured.source, measured.request.id, measured.request.end_ns)
