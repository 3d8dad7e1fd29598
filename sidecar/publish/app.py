"""Assembly, in one visible place: state from configuration, and one app for each port.

/metrics and health are for the pod network, the API is not: hence two apps over one state.
"""

from fastapi import APIRouter, FastAPI

import sidecar
from sidecar.config import ExporterConfig
from sidecar.fold.reducer import Limits, Reducer
from sidecar.publish import problems, views
from sidecar.publish.intake import Intake
from sidecar.publish.metrics import Exposition
from sidecar.publish.selection import Selection
from sidecar.publish.state import State
from sidecar.wire.channel import Receiver


def create_state(config: ExporterConfig) -> State:
    """The living parts, reading from the socket once `intake.start` is called.

    Raises ConfigError or ChannelError when the key file or the socket cannot be used.
    """
    key = config.key()
    limits = Limits(int(config.stale_seconds * 1e9), int(config.max_age_seconds * 1e9))
    intake = Intake(Receiver(config.socket), Reducer(limits), key)
    return State(intake, Exposition(config.series_cap, Selection.of_file(config.metrics_file)))


def create_metrics_app(state: State) -> FastAPI:
    """/metrics, health and the landing page."""
    return _app(state, views.metrics, views.health)


def create_api_app(state: State) -> FastAPI:
    """/v1 and health."""
    return _app(state, views.api, views.health)


def _app(state: State, *routers: APIRouter) -> FastAPI:
    # No documentation pages: they load scripts from a CDN. /openapi.json stays.
    app = FastAPI(
        title="llm-internals-sidecar", version=sidecar.__version__, docs_url=None, redoc_url=None
    )
    app.state.sidecar = state
    problems.install(app)
    for router in routers:
        app.include_router(router)
    return app
