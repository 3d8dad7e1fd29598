"""The routes about scans: ask for some, list them, and read one.

Guarantee: asking writes the operator's control file, as `sidecar control --scan` does, and nothing
else; whoever may not write that file is told so, and no engine notices.
"""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from sidecar.errors import ConfigError
from sidecar.publish.api.posting import PROBLEMS, Posted, body_of, read
from sidecar.publish.api.problems import Problem, Unanswerable
from sidecar.publish.api.reply import json_reply
from sidecar.publish.scan import answers
from sidecar.publish.state import Shared
from sidecar.wire import control

api = APIRouter(prefix="/v1", tags=["scan"])


@api.get("/scans", response_model=answers.ScansAnswer)
def scans(state: Shared) -> Response:
    """Tell which requests were scanned, latest first, and what was asked for."""
    problem, wish = "", None
    try:
        asked = control.read(state.control_path) if state.control_path else None
        wish = answers.wish_answer(asked) if asked else None
        problem = answers.not_obeying(wish, state.intake.get().sources)
    except ConfigError as error:
        problem = str(error)
    return json_reply(answers.scans_answer(state.intake.scans(), wish, problem))


@api.post(
    "/scans",
    response_model=answers.WishAnswer,
    status_code=202,
    responses=PROBLEMS,
    openapi_extra=body_of(answers.ScanWish),
)
def ask(state: Shared, posted: Posted) -> Response:
    """Have the next requests scanned; the tap hears of it at its next flush."""
    num_requests = read(answers.ScanWish, posted).num_requests
    try:
        if state.control_path is None:
            raise ConfigError("this sidecar knows no control file")
        asked = control.ask_for_scans(state.control_path, num_requests)
        # Read again: the revision is made of what the file holds.
        asked = control.read(state.control_path) or asked
    except ConfigError as error:
        remedy = f"run `sidecar control --scan {num_requests}` as the user that the engine runs as"
        raise Unanswerable(503, str(error), remedy) from error
    wish = answers.WishAnswer(
        scan_id=asked.scan_id, num_requests=num_requests, revision=asked.revision
    )
    return json_reply(wish, 202)


@api.get(
    "/requests/{request_id:path}/scan",
    response_model=answers.ScanAnswer,
    responses={404: {"model": Problem}},
)
def scan(
    state: Shared, request_id: str, source: Annotated[str | None, Query(max_length=64)] = None
) -> Response:
    """Tell layer x token values of a scanned request, by engine id or client id: the latest one."""
    found = state.intake.find_scans(request_id)
    mine = [each for each in found if source in (None, each.source)]
    if not mine:
        raise Unanswerable(404, answers.NOT_TOLD, answers.HOW_TO)
    others = [each for each in found if each is not mine[0]]
    return json_reply(answers.scan_answer(mine[0], others))
