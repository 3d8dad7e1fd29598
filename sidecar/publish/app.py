"""Assembly, in one visible place: state from configuration, and one app for each port.

/metrics and health are for the pod network, the API is not: hence two apps over one state.
"""

from fastapi import APIRouter, FastAPI

import sidecar
from sidecar.config import ExporterConfig
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.window import Assembly, Windows
from sidecar.fold.reducer import Limits, Reducer
from sidecar.publish import drift_metrics, drift_views, problems, views
from sidecar.publish.book import Book
from sidecar.publish.collectors import COLLECTORS
from sidecar.publish.intake import Intake
from sidecar.publish.judges import Judges, Terms
from sidecar.publish.metrics import Exposition
from sidecar.publish.state import State
from sidecar.publish.watch import Watch
from sidecar.wire.channel import Receiver


def create_state(config: ExporterConfig) -> State:
    """The living parts, reading from the socket once `intake.start` is called.

    Raises ConfigError or ChannelError when the key file or the socket cannot be used.
    """
    key = config.key()
    limits = Limits(int(config.stale_seconds * 1e9), int(config.max_age_seconds * 1e9))
    watch = create_watch(config)
    intake = Intake(Receiver(config.socket), Reducer(limits), key, listener=watch.hear)
    collectors = {**COLLECTORS, "drift": drift_metrics.collector(watch.get)}
    return State(intake, Exposition(config.series_cap, collectors=collectors), watch)


def create_watch(config: ExporterConfig) -> Watch:
    """What judges drift, with everything that an earlier life left in the state folder.

    Raises ConfigError when a file or folder that was named cannot be used.
    """
    terms = Terms(config.preset, config.window_ns)
    assembly = Assembly(config.window_ns)

    def opener(schema: Schema) -> tuple[Windows, str]:
        return Windows(schema, assembly), ""

    return Watch(Judges(terms, Book(opener), []))


def create_metrics_app(state: State) -> FastAPI:
    """/metrics, health and the landing page."""
    return _app(state, views.metrics, views.health)


def create_api_app(state: State) -> FastAPI:
    """/v1 and health."""
    return _app(state, views.api, drift_views.api, views.health)


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
