"""Answers about drift: what every channel concludes, the baseline in force, and closed windows.

Guarantees: every channel that can be is told, one that is not configured with how to get it; every
state comes with a sentence; an answer is bounded, and says when it leaves windows out.
"""

from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.drift.header import compare
from sidecar.fold.drift.history import Change
from sidecar.fold.drift.verdict import Cause, ChannelState
from sidecar.publish.api.answers import known
from sidecar.publish.api.portion import portion
from sidecar.publish.drift.book import Closed
from sidecar.publish.drift.judges import CHANNELS, DriftView, Executed
from sidecar.publish.drift.seat import ChannelView
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


class ChangeAnswer(BaseModel):
    """A channel that went from one state to another.

    number: grows by one with each change, also over a restart. t_ns: when it was seen.
    since_ns: the estimated time of what is behind it; null when nothing was found.
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    number: int
    t_ns: int
    channel: str
    before: ChannelState = Field(alias="from")
    after: ChannelState = Field(alias="to")
    reason: str
    since_ns: int | None
    causes: list[CauseAnswer]


class HistoryAnswer(BaseModel):
    """Changes of verdicts, the oldest first; kept over a restart where SIDECAR_STATE_DIR is set.

    now: the state of each channel that is configured. complete_ns: from when on all changes are
    told; null before anything was judged.
    """

    complete_ns: int | None
    changes: list[ChangeAnswer]
    now: dict[str, ChannelState]


class DeploymentAnswer(BaseModel):
    """A change that the operator announced."""

    t_ns: int
    note: str


class RecordingAnswer(BaseModel):
    """Requests recorded and lost, files removed to make room; why the last loss happened."""

    num_recorded: int
    num_lost: int
    num_removed: int
    reason: str


class DriftAnswer(BaseModel):
    """All channels. `state` is the worst of those configured.

    keeping: what is wrong with keeping what was learnt over a restart; empty when all is well.
    canary_rounds, requests, windows: how many, by what became of them, since this sidecar started.
    recording: what SIDECAR_RECORD wrote; null without.
    """

    state: ChannelState
    preset: str
    window_seconds: float
    judged_ns: int
    keeping: str
    channels: list[ChannelAnswer]
    deployments: list[DeploymentAnswer]
    canary_rounds: dict[str, int]
    requests: dict[str, int]
    windows: dict[str, int]
    recording: RecordingAnswer | None


class BaselineAnswer(BaseModel):
    """A baseline: what it was made of, and what it can be used for.

    header: identity, layout, windows and span, as the file has them.
    refusals: why what is served cannot be compared with it. findings: what else is executed;
    comparing goes on. By source, in words.
    replay: what calibration on its own second half said; null when it was not calibrated.
    """

    digest: str
    header: dict[str, Any]
    num_requests: int
    num_windows: int
    strata: list[str]
    num_tail_requests: int
    replay: dict[str, float | int | str | bool] | None
    refusals: dict[str, list[str]]
    findings: dict[str, list[str]]


class BaselinesAnswer(BaseModel):
    """The baseline in force; `reason` says why there is none, and how to get one.

    fetching: where it is fetched, why the one asked for is not in force; "" when it is, or was not
    looked for yet. None where nothing is fetched.
    """

    file: str | None
    reason: str
    fetching: str | None
    baseline: BaselineAnswer | None


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


def drift_answer(view: DriftView, canary_rounds: dict[str, int]) -> DriftAnswer:
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
        canary_rounds=canary_rounds,
        requests=requests_by_outcome(view),
        windows=windows_by_outcome(view),
        recording=view.recording and RecordingAnswer(**view.recording._asdict()),
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


def history_answer(view: DriftView, after: int = 0) -> HistoryAnswer:
    """The changes with a number beyond `after`."""
    return HistoryAnswer(
        complete_ns=view.complete_ns,
        changes=[change_answer(each) for each in view.history if each.number > after],
        now={c.verdict.channel: c.verdict.state for c in view.channels if c.is_configured},
    )


def change_answer(change: Change) -> ChangeAnswer:
    """One change."""
    return ChangeAnswer(**{**change._asdict(), "causes": [_cause(each) for each in change.causes]})


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


def baselines_answer(
    view: DriftView, path: Path | None, fetching: str | None = None
) -> BaselinesAnswer:
    """The baseline in force."""
    baseline = view.baseline
    return BaselinesAnswer(
        file=None if path is None else str(path),
        reason="" if baseline else f"no baseline: {CHANNELS['traffic']}",
        fetching=fetching,
        baseline=None if baseline is None else _baseline(baseline, view.executed),
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


def _baseline(baseline: Baseline, executed: dict[str, Executed]) -> BaselineAnswer:
    header = baseline.header
    served = {
        source: compare(header, header._replace(identity=told.identity, layout=told.layout))
        for source, told in executed.items()
        if told.identity is not None and told.layout is not None
    }
    calibration, tail = baseline.calibration, baseline.tail
    return BaselineAnswer(
        digest=baseline.digest,
        header=header.to_plain(),
        num_requests=baseline.num_requests,
        num_windows=baseline.num_windows,
        strata=list(baseline.plan.strata),
        num_tail_requests=tail.num_requests if tail else 0,
        replay=calibration and calibration.replay,
        refusals={source: list(map(str, each.refusals)) for source, each in served.items()},
        findings={source: list(map(str, each.findings)) for source, each in served.items()},
    )


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
