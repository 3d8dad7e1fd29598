"""The routes about drift: read verdicts, baseline and windows; acknowledge, announce, reload.

Guarantee: no route waits for a channel longer than `watch.ASK_SECONDS`.
"""

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Query
from starlette.responses import Response

from sidecar.errors import ConfigError, WatchError
from sidecar.publish.api.posting import PROBLEMS, Posted, body_of, read
from sidecar.publish.api.problems import Unanswerable
from sidecar.publish.api.reply import json_reply
from sidecar.publish.drift import answers
from sidecar.publish.drift.book import MAX_WINDOWS
from sidecar.publish.drift.judges import CHANNELS, Judges
from sidecar.publish.state import Shared, State

api = APIRouter(prefix="/v1", tags=["drift"])
_Answer = TypeVar("_Answer")


@api.get("/drift", response_model=answers.DriftAnswer)
def verdicts(state: Shared) -> Response:
    """Tell what every channel concludes, and why."""
    return json_reply(answers.drift_answer(state.watch.get(), state.canary_rounds()))


@api.get("/drift/history", response_model=answers.HistoryAnswer)
def history(
    state: Shared, after: Annotated[int, Query(ge=0, le=answers.MAX_CURSOR)] = 0
) -> Response:
    """Tell how verdicts changed, the oldest first: changes with a number beyond `after`."""
    return json_reply(answers.history_answer(state.watch.get(), after))


@api.get("/windows", response_model=answers.WindowsAnswer)
def windows(
    state: Shared,
    after: Annotated[int, Query(ge=0, le=answers.MAX_CURSOR)] = 0,
    limit: Annotated[int | None, Query(ge=1, le=MAX_WINDOWS)] = None,
) -> Response:
    """Tell the additive sums of windows that closed after a cursor, the oldest first."""
    return json_reply(answers.windows_answer(state.watch.get(), after, limit))


@api.post(
    "/drift/{channel}/acknowledge",
    response_model=answers.ChannelAnswer,
    responses=PROBLEMS,
    openapi_extra=body_of(),
)
def acknowledge(state: Shared, channel: str, _: Posted) -> Response:
    """Say that somebody has seen what a channel found: its latch opens, and it starts again."""
    if channel not in CHANNELS:
        known = ", ".join(CHANNELS)
        raise Unanswerable(404, f"no channel {channel[:64]!r}", f"acknowledge one of {known}")
    _configured(state, channel)
    return json_reply(
        answers.channel_answer(_ask(state, lambda j, now: j.acknowledge(channel, now)))
    )


@api.post(
    "/drift/canary/discard",
    response_model=answers.ChannelAnswer,
    responses=PROBLEMS,
    openapi_extra=body_of(),
)
def discard(state: Shared, _: Posted) -> Response:
    """Forget what canaries looked like, after a change of yours; they are learnt anew."""
    _configured(state, "canary")
    return json_reply(answers.channel_answer(_ask(state, lambda judges, now: judges.discard(now))))


@api.get("/baselines", response_model=answers.BaselinesAnswer)
def baselines(state: Shared) -> Response:
    """Tell the baseline in force, and how what is served differs from it."""
    fetching = state.fetcher.reason if state.fetcher else None
    return json_reply(answers.baselines_answer(state.watch.get(), state.baselines.path, fetching))


@api.post(
    "/baseline/reload",
    response_model=answers.BaselinesAnswer,
    responses=PROBLEMS,
    openapi_extra=body_of(),
)
def reload(state: Shared, _: Posted) -> Response:
    """Read SIDECAR_BASELINE_FILE again, and judge by it from now on."""
    try:
        panel = state.baselines.read()
    except ConfigError as error:
        remedy = "mend the file and ask again; the baseline before stays in force"
        raise Unanswerable(409, str(error), remedy) from error
    _ask(state, lambda judges, now: judges.use(panel, now))
    return baselines(state)


@api.post(
    "/deployments",
    response_model=answers.DeploymentAnswer,
    status_code=201,
    responses=PROBLEMS,
    openapi_extra=body_of(answers.Announcement),
)
def announce(state: Shared, posted: Posted) -> Response:
    """Announce a deployment: a change of what is executed is then a note, not a page."""
    note = read(answers.Announcement, posted).note
    made = _ask(state, lambda judges, now: judges.announce(note, now))
    return json_reply(answers.DeploymentAnswer(**made._asdict()), 201)


def _configured(state: State, channel: str) -> None:
    found = next(c for c in state.watch.get().channels if c.verdict.channel == channel)
    if not found.is_configured:
        raise Unanswerable(409, f"{channel} is {found.verdict.reason}", CHANNELS[channel])


def _ask(state: State, question: Callable[[Judges, int], _Answer]) -> _Answer:
    try:
        return state.watch.ask(question)
    except WatchError as error:
        raise Unanswerable(503, str(error), "look at judged_ns of GET /v1/drift") from error
