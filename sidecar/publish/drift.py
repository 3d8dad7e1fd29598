"""Answers about drift: what every channel concludes, the baseline in force, and closed windows.

Guarantees: every channel that can be is told, one that is not configured with how to get it; every
state comes with a sentence; an answer is bounded, and says when it leaves windows out.
"""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from sidecar.fold.drift.verdict import Cause, ChannelState
from sidecar.publish.answers import known
from sidecar.publish.book import Closed
from sidecar.publish.judges import DriftView
from sidecar.publish.portion import portion
from sidecar.publish.seat import ChannelView
from sidecar.wire.signature import Layout

MAX_NOTE: Final = 500
MAX_CURSOR: Final = 2**63 - 1


class CauseAnswer(BaseModel):
    """One stream that moved; `share` is its statistic as a share of its limit.

    layer: global id; null where the stream belongs to no layer.
    since_ns: Unix time of the estimated change; null when unknown.
    """

    stream: str
    layer: int | None
    signal: str
    phase: str
    side: str
    share: float | None
    since_ns: int | None


class ChannelAnswer(BaseModel):
    """What one channel concludes, and why; `level` is its largest share of a limit.

    judged_ns: end of the latest material judged; 0 before any.
    num_pages, num_errors: since this sidecar started.
    """

    channel: str
    is_configured: bool
    state: ChannelState
    reason: str
    level: float | None
    since_ns: int | None
    causes: list[CauseAnswer]
    judged_ns: int
    is_acknowledged: bool
    num_pages: int
    num_errors: int


class DeploymentAnswer(BaseModel):
    """A change that the operator announced."""

    t_ns: int
    note: str


class DriftAnswer(BaseModel):
    """All channels. `state` is the worst of those configured.

    keeping: what is wrong with keeping what was learnt over a restart; empty when all is well.
    requests, windows: how many, by what became of them, since this sidecar started.
    """

    state: ChannelState
    preset: str
    window_seconds: float
    judged_ns: int
    keeping: str
    channels: list[ChannelAnswer]
    deployments: list[DeploymentAnswer]
    requests: dict[str, int]
    windows: dict[str, int]


class Announcement(BaseModel):
    """What a client posts before it deploys."""

    model_config = ConfigDict(extra="forbid", strict=True)

    note: str = Field(min_length=1, max_length=MAX_NOTE, pattern=r"^[^\x00-\x1f\x7f]*$")


class WindowAnswer(BaseModel):
    """A closed window: additive sums per stratum and stream, as `window.Window.to_plain` has them.

    cursor: pass it as `after` for what closed later.
    layout: key of `layouts`.
    baseline: digest of the baseline by whose strata and clips it was folded; "" without one.
    Windows add up when layout and baseline are equal.
    """

    cursor: int
    layout: str
    baseline: str
    window: dict[str, Any]


class WindowsAnswer(BaseModel):
    """Closed windows, the oldest first.

    next: the `after` of the next question.
    has_gap: windows closed after `after` that are no longer held; they cannot be had any more.
    is_cut: more are held than fit into this answer; ask again with `next`.
    layouts: what the streams are, by digest.
    """

    next: int
    has_gap: bool
    is_cut: bool
    layouts: dict[str, dict[str, Any]]
    windows: list[WindowAnswer]


def drift_answer(view: DriftView) -> DriftAnswer:
    """What every channel concludes."""
    states = [each.verdict.state for each in view.channels if each.is_configured]
    return DriftAnswer(
        state=max(states, key=lambda state: state.rank, default=ChannelState.COLLECTING),
        preset=view.terms.preset,
        window_seconds=view.terms.window_ns / 1e9,
        judged_ns=view.now_ns,
        keeping=view.keeping,
        channels=[channel_answer(each) for each in view.channels],
        deployments=[DeploymentAnswer(**each._asdict()) for each in view.deployments],
        requests=requests_by_outcome(view),
        windows=windows_by_outcome(view),
    )


def channel_answer(view: ChannelView) -> ChannelAnswer:
    """What one channel concludes."""
    verdict = view.verdict
    return ChannelAnswer(
        channel=verdict.channel,
        is_configured=view.is_configured,
        state=verdict.state,
        reason=verdict.reason,
        level=known(verdict.level),
        since_ns=verdict.since_ns,
        causes=[_cause(each) for each in verdict.causes],
        judged_ns=verdict.judged_ns,
        is_acknowledged=verdict.is_acknowledged,
        num_pages=view.num_pages,
        num_errors=view.num_errors,
    )


def windows_answer(view: DriftView, after: int, limit: int | None = None) -> WindowsAnswer:
    """Windows with a cursor beyond `after`, as many of the first as fit.

    Raises Unanswerable when a client asked for `limit` of them, and fewer fit.
    """
    later = [each for each in view.windows if each.cursor > after]
    asked = later[: limit or len(later)]
    kept = portion(asked, _num_numbers, limit)
    schemas = {each.schema.digest: each.schema for each in kept}
    return WindowsAnswer(
        next=kept[-1].cursor if kept else after,
        has_gap=after < view.forgotten,
        is_cut=len(kept) < len(later),
        layouts={key: _plain_layout(schema.layout) for key, schema in schemas.items()},
        windows=[_window(each) for each in kept],
    )


def requests_by_outcome(view: DriftView) -> dict[str, int]:
    """Finished requests by what became of them."""
    counts = view.counts
    return {
        "used": counts.num_used,
        "canary": view.num_canary,
        "late": counts.num_late,
        "early": counts.num_early,
        "foreign": counts.num_foreign,
        "left_out": view.num_left_out,
    }


def windows_by_outcome(view: DriftView) -> dict[str, int]:
    """Windows by what became of them."""
    return {
        "scored": view.num_scored,
        "unscored": view.counts.num_closed - view.num_scored,
        "insufficient": view.counts.num_insufficient,
    }


def _cause(cause: Cause) -> CauseAnswer:
    return CauseAnswer(**{**cause._asdict(), "share": known(cause.share)})


def _window(closed: Closed) -> WindowAnswer:
    return WindowAnswer(
        cursor=closed.cursor,
        layout=closed.schema.digest,
        baseline=closed.baseline,
        window=closed.window.to_plain(),
    )


def _num_numbers(closed: Closed) -> int:
    return closed.num_bytes // 8


def _plain_layout(layout: Layout) -> dict[str, Any]:
    return {field: getattr(layout, field) for field in Layout.__struct_fields__}
