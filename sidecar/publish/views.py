"""The routes: /metrics, health and the landing page on one port, /v1 on the other.

Guarantees: /healthz runs on the event loop and reads nothing, so no rendering can delay it; every
other route runs in the thread pool, so no rendering can delay the loop.
"""

import gzip
import math
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse
from prometheus_client.exposition import gzip_accepted
from pydantic import StringConstraints
from starlette.responses import Response

import sidecar
from sidecar.fold.requests import MAX_REQUESTS
from sidecar.fold.signatures import MAX_SIGNATURES
from sidecar.publish.api import answers
from sidecar.publish.api.portion import DEFAULT_LIMIT
from sidecar.publish.api.problems import Problem, Unanswerable
from sidecar.publish.api.reply import json_reply
from sidecar.publish.api.requests import RequestsAnswer, requests_answer
from sidecar.publish.api.signals import SignalsAnswer, signals_answer
from sidecar.publish.api.signatures import SignaturesAnswer, signatures_answer
from sidecar.publish.live.summary import summary_answer
from sidecar.publish.metrics.exposition import Scrape
from sidecar.publish.state import Shared
from sidecar.wire.signals import GROUPS

health = APIRouter(tags=["health"])
metrics = APIRouter(tags=["metrics"])
api = APIRouter(prefix="/v1", tags=["api"])

# Prometheus says how long it will wait; the last tenth is for the way.
_TIMEOUT_HEADER: Final = "x-prometheus-scrape-timeout-seconds"
_OF_TIMEOUT: Final = 0.9
Name = Annotated[str, StringConstraints(max_length=256)]

_PAGE: Final = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>llm-internals-sidecar</title></head>
<body><h1>llm-internals-sidecar {sidecar.__version__}</h1>
<p>Model-internal telemetry of the LLM engine beside this process.</p>
<ul>
<li><a href="/metrics">/metrics</a>: Prometheus exposition</li>
<li><a href="/healthz">/healthz</a>: this process lives</li>
<li><a href="/readyz">/readyz</a>: is the telemetry to be trusted, and if not, why</li>
</ul>
<p>On the API port: /v1/status, /v1/layers, /v1/signals, /v1/requests, /v1/signatures, /v1/scans,
/v1/drift, /v1/drift/history, /v1/windows, /v1/timeline, /v1/timeline/lines, /v1/events.</p>
</body></html>
"""
_PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'",
    "X-Content-Type-Options": "nosniff",
}


@health.get("/healthz", response_class=PlainTextResponse)
async def healthz() -> Response:
    """Say that the process lives."""
    return PlainTextResponse("ok\n")


@health.get(
    "/readyz",
    response_model=answers.ReadyAnswer,
    responses={503: {"model": answers.ReadyAnswer, "description": "it is not to be trusted"}},
)
def readyz(state: Shared) -> Response:
    """Say whether the telemetry is to be trusted: 200 or 503, with every reason why not."""
    answer = answers.ready_answer(state.intake.get())
    return json_reply(answer, 200 if answer.ready else 503)


@metrics.get("/", response_class=HTMLResponse)
async def landing() -> HTMLResponse:
    """Link to what is served."""
    return HTMLResponse(_PAGE, headers=_PAGE_HEADERS)


@metrics.get("/metrics", response_class=Response, responses={503: {"model": Problem}})
def exposition(
    request: Request,
    state: Shared,
    names: Annotated[list[Name] | None, Query(alias="name[]", max_length=1000)] = None,
) -> Response:
    """Render all families, or those named, in the format and encoding that the client accepts."""
    seconds = _scrape_seconds(request.headers.get(_TIMEOUT_HEADER, ""))
    asked = Scrape(request.headers.get("accept", ""), tuple(names or ()), seconds)
    try:
        body = state.exposition.render(state.intake.get(), asked)
    except TimeoutError as error:
        raise Unanswerable(503, str(error), "scrape less often, or publish fewer series") from error
    headers = {"Content-Type": asked.content_type, "Vary": "Accept, Accept-Encoding"}
    if gzip_accepted(request.headers.get("accept-encoding", "")):
        # Level 1 halves the CPU of a scrape and costs an eighth more bytes than level 6.
        body = gzip.compress(body, compresslevel=1, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return Response(body, headers=headers)


@api.get("/status", response_model=answers.StatusAnswer)
def status(state: Shared) -> Response:
    """Tell the state of every source, and ordinary stats."""
    snapshot = state.intake.get()
    summary = summary_answer(snapshot, state.watch.get())
    return json_reply(answers.status_answer(snapshot, summary))


@api.get("/layers", response_model=answers.LayersAnswer)
def layers(state: Shared) -> Response:
    """Tell every layer's statistics since the boot of its engine."""
    return json_reply(answers.layers_answer(state.intake.get()))


@api.get("/signals", response_model=SignalsAnswer)
def signals(state: Shared, group: str | None = None) -> Response:
    """Tell the running totals of groups of signals, or of one group."""
    if group is not None and group not in GROUPS:
        raise Unanswerable(422, f"no group {group!r}", f"ask for one of {', '.join(GROUPS)}")
    return json_reply(signals_answer(state.intake.get(), group))


@api.get("/requests", response_model=RequestsAnswer)
def requests(
    state: Shared, limit: Annotated[int | None, Query(ge=1, le=MAX_REQUESTS)] = None
) -> Response:
    """Tell the latest finished requests, latest first: `limit`, or up to 100 that fit."""
    found = state.intake.requests(limit or DEFAULT_LIMIT)
    return json_reply(requests_answer(found, limit, state.intake.canaries()))


@api.get("/signatures", response_model=SignaturesAnswer)
def signatures(
    state: Shared, limit: Annotated[int | None, Query(ge=1, le=MAX_SIGNATURES)] = None
) -> Response:
    """Tell the latest signatures, latest first: `limit`, or up to 100 that fit."""
    return json_reply(signatures_answer(state.intake.signatures(limit or DEFAULT_LIMIT), limit))


@api.get(
    "/requests/{request_id:path}",
    response_model=RequestsAnswer,
    responses={404: {"model": Problem}},
)
def request_by_id(state: Shared, request_id: str) -> Response:
    """Tell a finished request by engine id or client id: one per rank and per completion."""
    found = state.intake.find(request_id)
    if not found:
        detail = f"no finished request {request_id!r} among the last {MAX_REQUESTS}"
        raise Unanswerable(404, detail, "GET /v1/requests lists the ids known")
    return json_reply(requests_answer(found, canaries=state.intake.canaries()))


def _scrape_seconds(header: str) -> float:
    """How long a scrape may take; without limit where the client says nothing useful."""
    try:
        seconds = float(header)
    except ValueError:
        return math.inf
    return _OF_TIMEOUT * seconds if seconds > 0 else math.inf
