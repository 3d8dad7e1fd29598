"""Assembly, in one visible place: state from configuration, and one app for each port.

/metrics and health are for the pod network, the API is not: hence two apps over one state.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, FastAPI

import sidecar
from sidecar.config import PREFIX, ExporterConfig
from sidecar.errors import ConfigError
from sidecar.fold.drift.canary import CanaryChannel
from sidecar.fold.reducer import Limits, Reducer
from sidecar.publish import views
from sidecar.publish.api import problems
from sidecar.publish.canary.runner import create_runner
from sidecar.publish.canary.suite import Suite, read_suite
from sidecar.publish.drift import metrics as drift_metrics
from sidecar.publish.drift import views as drift_views
from sidecar.publish.drift.baselines import Baselines
from sidecar.publish.drift.fetch import Fetcher
from sidecar.publish.drift.judges import Judges
from sidecar.publish.drift.keeper import FileKeeper
from sidecar.publish.drift.panel import Terms
from sidecar.publish.drift.seat import Seat
from sidecar.publish.drift.watch import Watch
from sidecar.publish.guard.audited import Log
from sidecar.publish.guard.guard import Guard
from sidecar.publish.intake import Intake, each_of
from sidecar.publish.live import metrics as live_metrics
from sidecar.publish.live import views as live_views
from sidecar.publish.live.pulse import Pulse
from sidecar.publish.metrics.collectors import COLLECTORS
from sidecar.publish.metrics.exposition import Exposition, Scrape
from sidecar.publish.metrics.selection import Selection
from sidecar.publish.scan import views as scan_views
from sidecar.publish.state import Pusher, State, Tracer
from sidecar.publish.steering import Steering
from sidecar.publish.traces import metrics as trace_metrics
from sidecar.publish.ui import pages
from sidecar.wire.channel import Receiver

if TYPE_CHECKING:
    from sidecar.store.recorder import Recorder

RECORDINGS: Final = "recordings"  # folder inside SIDECAR_STATE_DIR


def create_state(
    config: ExporterConfig,
    guard: Guard,
    clock_ns: Callable[[], int] = time.time_ns,
    steady_ns: Callable[[], int] = time.monotonic_ns,
) -> State:
    """The living parts, reading from the socket once `intake.start` is called.

    clock_ns: Unix time in nanoseconds, the same that senders stamp with.
    steady_ns: nanoseconds of a clock that nobody sets: what is waited for goes by it.
    Raises ConfigError or ChannelError when the key file or the socket cannot be used.
    """
    key = config.key()
    limits = Limits(int(config.stale_seconds * 1e9), int(config.max_age_seconds * 1e9))
    terms = Terms(config.preset, config.window_ns)
    baselines = create_baselines(config, terms)
    suite = read_suite(config.canary_suite) if config.canary_url else None
    watch = create_watch(config, baselines, suite, clock_ns)
    runner = None
    if suite is not None:
        runner = create_runner(config, suite, lambda: watch.get().canaries.is_learning)
    tracer = create_tracer(config, watch, steady_ns)
    listeners = [watch.hear, *([tracer.hear] if tracer else [])]
    receiver, listener = Receiver(config.socket), each_of(listeners)
    intake = Intake(receiver, Reducer(limits), key, clock_ns, listener)
    drift = drift_metrics.collector(watch.get, runner.outcomes if runner else dict)
    selection = Selection.of_file(config.metrics_file)
    pulse = Pulse(intake, watch)
    collectors = {
        **COLLECTORS,
        "summary": live_metrics.collector(watch.get),
        "drift": drift,
        "events": live_metrics.events_collector(pulse.get),
        "guard": guard.collect,
    }
    fetcher = create_fetcher(config, baselines, guard.log, lambda: state.reload("fetch"))
    if fetcher is not None:
        collectors["fetch"] = fetcher.collect
    pusher = create_pusher(config, lambda: exposition.render(intake.get(), Scrape()))
    if tracer is not None:
        pushes = pusher.outcomes if pusher else dict
        collectors["traces"] = trace_metrics.collector(tracer.get, pushes)
    exposition = Exposition(config.series_cap, selection, collectors=collectors)
    state = State(
        intake,
        exposition,
        watch,
        baselines,
        runner,
        config.control_path,
        tracer,
        pulse,
        fetcher,
        pusher,
        guard.log,
        Steering(config.control_path, guard.log),
    )
    return state


def create_baselines(config: ExporterConfig, terms: Terms) -> Baselines:
    """Who reads the baseline. Raises ConfigError when it is fetched and has no place to go."""
    is_fetched = config.baseline_source_file is not None
    if is_fetched and config.baseline_file is None:
        raise ConfigError(
            f"{PREFIX}BASELINE_SOURCE_FILE: what is fetched needs a place; set "
            f"{PREFIX}BASELINE_FILE to a path this user can write"
        )
    path, key_path = config.baseline_file, config.baseline_key_file
    baselines = Baselines(terms, path, key_path, is_fetched=is_fetched)
    if is_fetched:
        baselines.put_aside()
    return baselines


def create_fetcher(
    config: ExporterConfig, baselines: Baselines, log: Log, use: Callable[[], None]
) -> Fetcher | None:
    """What fetches the baseline, and has it used; None where it is not fetched."""
    if config.baseline_source_file is None or config.baseline_file is None:
        return None
    source, target = config.baseline_source_file, config.baseline_file

    def note(sha256: str) -> None:
        told = {"file": str(target), "sha256": sha256}
        log.append(time.time_ns(), "fetch", "baseline.fetch", told)

    return Fetcher(source, target, baselines.check, note, use)


def create_tracer(
    config: ExporterConfig, watch: Watch, steady_ns: Callable[[], int]
) -> Tracer | None:
    """What makes spans and sends them; None where no endpoint is configured.

    Raises ConfigError when a file that was named cannot be used.
    """
    if config.otlp_endpoint is None:
        return None
    # OpenTelemetry takes 0.2 s and 15 MB, which nobody pays who sends no traces.
    from sidecar.publish.traces.tracer import create_tracer as create  # noqa: PLC0415

    return create(config, watch.get, steady_ns)


def create_pusher(config: ExporterConfig, render: Callable[[], bytes]) -> Pusher | None:
    """What pushes metrics, if that is asked for. Raises ConfigError when there is no receiver."""
    if not config.otlp_metrics_seconds:
        return None
    if config.otlp_endpoint is None:
        raise ConfigError(f"{PREFIX}OTLP_METRICS_SECONDS: set {PREFIX}OTLP_ENDPOINT to a receiver")
    from sidecar.publish.traces.pushing import create_pusher as create  # noqa: PLC0415 - likewise

    return create(config, render)


def create_watch(
    config: ExporterConfig,
    baselines: Baselines,
    suite: Suite | None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> Watch:
    """What judges drift, with everything that an earlier life left in the state folder.

    Raises ConfigError when a file or folder that was named cannot be used.
    """
    keeper = None if config.state_dir is None else FileKeeper(config.state_dir)
    canary = None
    if suite is not None:
        prompts = [prompt.id for prompt in suite.prompts]
        channel = CanaryChannel(prompts, suite.digest, seconds=config.canary_seconds)
        canary = Seat(channel, baselines.terms.policy.label)
    judges = Judges(baselines.terms, baselines.read(), canary, _recorder(config))
    return Watch(judges, keeper, clock_ns)


def _recorder(config: ExporterConfig) -> "Recorder | None":
    if not config.record:
        return None
    if config.state_dir is None:
        raise ConfigError(f"{PREFIX}RECORD: recordings need a folder; set {PREFIX}STATE_DIR")
    try:
        # Brings pyarrow, larger than all else together, so it is an extra of its own.
        from sidecar.store.recorder import Recorder  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{PREFIX}RECORD: {error}; pip install 'llm-internals-sidecar[recordings]', or build "
            "the image with --build-arg RECORDINGS=1"
        ) from error
    return Recorder(config.state_dir / RECORDINGS, sidecar.__version__)


def create_metrics_app(state: State) -> FastAPI:
    """/metrics, health and the landing page."""
    return _app(state, views.metrics, views.health)


def create_api_app(state: State) -> FastAPI:
    """/v1, the live page and health."""
    # Scans first: what ends in /scan is theirs, although a request's id may hold slashes.
    routers = (scan_views.api, views.api, drift_views.api, live_views.api, pages.ui, views.health)
    return _app(state, *routers)


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
