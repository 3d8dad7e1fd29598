"""The fleet job's HTTP side: /metrics, health, and what is concluded of the replicas, on one port.

Guarantees: every answer is of the last round, so nobody waits for an exporter; who acknowledges
must reach the port over loopback (such as by `kubectl port-forward`), since it is open to scrapes,
and is in the audit log before it is done.
"""

import ipaddress
import time
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel
from starlette.responses import Response

import sidecar
from sidecar.config import FleetConfig
from sidecar.errors import StoreError
from sidecar.fold.drift.contrast import NAME
from sidecar.fold.drift.verdict import Cause, ChannelState
from sidecar.publish.api import problems
from sidecar.publish.api.answers import known
from sidecar.publish.api.problems import Problem, Unanswerable
from sidecar.publish.api.reply import json_reply
from sidecar.publish.fleet.fleet import FILE_NAME, Fleet, FleetView
from sidecar.publish.fleet.metrics import exposition
from sidecar.publish.guard.audited import UNWRITTEN, Log, StderrLog
from sidecar.store.snapshot import SnapshotFile

routes = APIRouter(tags=["fleet"])


def create_fleet(config: FleetConfig) -> Fleet:
    """The job, which asks once `start` is called."""
    folder = config.state_dir
    return Fleet(config, None if folder is None else SnapshotFile(folder / FILE_NAME))


def create_fleet_app(fleet: Fleet, log: Log | None = None) -> FastAPI:
    """What it serves.

    log: where it is written down who acknowledged; stderr by default.
    """
    app = FastAPI(
        title="llm-internals-sidecar fleet",
        version=sidecar.__version__,
        docs_url=None,
        redoc_url=None,
    )
    app.state.fleet = fleet
    app.state.log = log or StderrLog()
    problems.install(app)
    app.include_router(routes)
    return app


class CauseAnswer(BaseModel):
    """One stream that differs; `share` is its evidence as a share of the limit."""

    stream: str
    layer: int | None
    signal: str
    phase: str
    side: str
    share: float | None
    since_ns: int | None


class ReplicaAnswer(BaseModel):
    """What is concluded of one replica; `causes` where it pages or is worth a ticket."""

    replica: str
    state: ChannelState
    level: float | None
    since_ns: int | None
    is_present: bool
    causes: list[CauseAnswer]


class ExporterAnswer(BaseModel):
    """One exporter; `reason` says why its last answer was not used, and is empty when it was."""

    replica: str
    url: str
    reason: str
    latest_ns: int


class FleetAnswer(BaseModel):
    """What the replica channel concludes, of each replica, and how well it is fed.

    trouble: why Prometheus' last answer was not used; keeping: why the state would not survive.
    refused: answers and windows not used, by cause; association: Cramer's V of the routing.
    """

    channel: str
    state: ChannelState
    reason: str
    level: float | None
    since_ns: int | None
    judged_ns: int
    is_acknowledged: bool
    num_pages: int
    causes: list[CauseAnswer]
    replicas: list[ReplicaAnswer]
    exporters: list[ExporterAnswer]
    windows: dict[str, int]
    refused: dict[str, int]
    association: float
    trouble: str
    keeping: str
    num_errors: int


async def _fleet(request: Request) -> Fleet:
    fleet: Fleet = request.app.state.fleet
    return fleet


async def _from_loopback(request: Request) -> None:
    """Refuse who is elsewhere, and a browser's form, which cannot send this content type."""
    host = request.client.host if request.client is not None else ""
    try:
        is_here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = False
    if not is_here:
        remedy = "go through the host itself, such as by kubectl port-forward or exec"
        raise Unanswerable(403, "pages are acknowledged over loopback alone", remedy)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        remedy = "send the header Content-Type: application/json"
        raise Unanswerable(415, "what changes something is posted as JSON alone", remedy)


Shared = Annotated[Fleet, Depends(_fleet)]


@routes.get("/healthz", response_class=Response)
async def healthz() -> Response:
    """Say that the process lives."""
    return Response("ok\n", media_type="text/plain")


@routes.get("/metrics", response_class=Response)
def metrics(request: Request, fleet: Shared) -> Response:
    """Render all families, in the format that the client accepts."""
    _, content_type = choose_encoder(request.headers.get("accept", ""))
    openmetrics = content_type.startswith("application/openmetrics-text")
    body = exposition(fleet.get(), openmetrics=openmetrics)
    return Response(body, headers={"Content-Type": content_type, "Vary": "Accept"})


@routes.get("/v1/drift", response_model=FleetAnswer)
def drift(fleet: Shared) -> Response:
    """Tell what is concluded of the replicas, and why."""
    return json_reply(fleet_answer(fleet.get()))


@routes.post(
    f"/v1/drift/{NAME}/acknowledge",
    response_model=FleetAnswer,
    responses={403: {"model": Problem}, 415: {"model": Problem}},
    dependencies=[Depends(_from_loopback)],
)
def acknowledge(request: Request, fleet: Shared) -> Response:
    """Say that somebody has seen the page: its latch opens, and the evidence starts again."""
    log: Log = request.app.state.log
    try:
        log.append(time.time_ns(), "loopback", "drift.acknowledge", {"channel": NAME})
    except StoreError as error:
        raise Unanswerable(503, str(error), UNWRITTEN) from error
    return json_reply(fleet_answer(fleet.acknowledge()))


def fleet_answer(view: FleetView) -> FleetAnswer:
    """Everything there is about `view`."""
    verdict = view.verdict
    return FleetAnswer(
        channel=verdict.channel,
        state=verdict.state,
        reason=verdict.reason,
        level=known(verdict.level),
        since_ns=verdict.since_ns,
        judged_ns=verdict.judged_ns,
        is_acknowledged=verdict.is_acknowledged,
        num_pages=view.num_pages,
        causes=_causes(verdict.causes, verdict.state),
        replicas=[
            ReplicaAnswer(
                replica=each.name,
                state=each.state,
                level=known(each.level),
                since_ns=each.since_ns,
                is_present=each.is_present,
                causes=_causes(each.causes, each.state),
            )
            for each in view.replicas
        ],
        exporters=[
            ExporterAnswer(replica=e.name, url=e.url, reason=e.reason, latest_ns=e.latest_ns)
            for e in view.exporters
        ],
        windows=view.counts._asdict(),
        refused=dict(view.refused),
        association=view.association,
        trouble=view.trouble,
        keeping=view.keeping,
        num_errors=view.num_errors,
    )


def _causes(causes: tuple[Cause, ...], state: ChannelState) -> list[CauseAnswer]:
    if state.rank < ChannelState.TICKET.rank:
        return []
    return [CauseAnswer(**{**each._asdict(), "share": known(each.share)}) for each in causes]
