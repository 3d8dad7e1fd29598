"""The JSON API's answers about sources and layers, and how each is read off a snapshot.

Guarantees: every number is the one that was folded, at full float64 precision; what does not
exist (a mean over no rows, an extreme of an empty window) is null, never NaN or 0.
"""

import math
from collections.abc import Iterator
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

import sidecar
from sidecar.fold.histogram import Distribution
from sidecar.fold.reducer import Snapshot
from sidecar.fold.series import LayerTotals, ServingTotals
from sidecar.fold.source import SourceView
from sidecar.publish.metrics.collectors import losses
from sidecar.publish.vitals import reasons
from sidecar.wire.frame import SCHEMA, Coverage, Identity, Manifest, Status
from sidecar.wire.signals import LAYER_SIGNALS, POPULATIONS, SUMMARY_OF, Phase, Position

Observed = dict[str, dict[str, int]]
_SIGNAL_IDS: Final = tuple(signal.id for signal in LAYER_SIGNALS)
_NO_STATUS: Final = Status("starting", reason="silent", detail="")


class ReadyAnswer(BaseModel):
    """Whether the telemetry is to be trusted, and every reason why not."""

    ready: bool
    reasons: list[str]


class IdentityAnswer(BaseModel):
    """What an engine executes, as far as it can be named; empty or 0 where it is not known."""

    model_name: str
    weights_digest: str
    tokenizer_digest: str
    engine: str
    engine_version: str
    kernels: str
    attention_backend: str
    dtype: str
    kv_cache_dtype: str
    quantization: str
    tensor_parallel: int
    pipeline_parallel: int
    num_layers: int
    hidden_size: int


class FileAnswer(BaseModel):
    """One file that the model was loaded from."""

    name: str
    num_bytes: int
    sha256: str


class ManifestAnswer(BaseModel):
    """The files that the model was loaded from; `reason` says what is missing, or has changed."""

    state: str
    reason: str
    weights_digest: str
    tokenizer_digest: str
    files: list[FileAnswer]


class SourceAnswer(BaseModel):
    """One source. `state` is null until its tap has spoken.

    absent: groups of signals that its engine cannot give, each with the reason.
    shed_level: how much its tap leaves out to stay within its budget; 0 is nothing.
    cost_share: the tap's own time over the engine's, in the last closed minute.
    control: revision of the operator's control in force; empty when there is none.
    manifest: null until its tap has told of the files.
    """

    source: str
    role: str
    state: str | None
    reason: str
    detail: str
    boot: str
    last_frame_age_seconds: float | None
    frames_sent: int
    frames_received: int
    frames_lost: dict[str, int]
    model_name: str
    vllm_version: str
    runner: str
    dtype: str
    num_layers: int
    dead_layers: list[int]
    errors: dict[str, int]
    fingerprint: str
    absent: dict[str, str]
    shed_level: int
    cost_share: float
    control: str
    identity: IdentityAnswer
    manifest: ManifestAnswer | None


class DistributionAnswer(BaseModel):
    """Count and mean of observed seconds; no mean without observations."""

    count: int
    mean: float | None


class ServingAnswer(BaseModel):
    """Ordinary stats of one engine, as one front end sees them."""

    source: str
    model_name: str
    engine: str
    requests_running: int
    requests_waiting: int
    kv_cache_usage_ratio: float
    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int
    preempted_requests: int
    finished: dict[str, int]
    ttft_seconds: DistributionAnswer
    time_per_output_token_seconds: DistributionAnswer
    e2e_seconds: DistributionAnswer
    queue_seconds: DistributionAnswer


class CoverageAnswer(BaseModel):
    """Token rows by what became of them; `observed` by phase, then by position class."""

    observed: Observed
    prefix_cached: int
    lost: int
    recomputed: int
    shed: int
    opted_out: int
    rejected: int


class SourceCoverageAnswer(CoverageAnswer):
    """Coverage of one engine since its boot."""

    source: str
    steps: int
    requests: int


SummaryLevel = Literal["ok", "collecting", "ticket", "page", "blind"]


class SummaryAnswer(BaseModel):
    """Whether the model behaves as usual, in one sentence.

    level: ok; collecting (nothing judges it yet); ticket; page; blind (it cannot be said).
    since_ns: Unix time from which it has been so, as far as that is known.
    layers: global ids of the layers that moved most, the most first.
    """

    level: SummaryLevel
    sentence: str
    since_ns: int | None
    layers: list[int]


class StatusAnswer(BaseModel):
    """Everything but the layers."""

    version: str
    schema_version: int
    now_ns: int
    summary: SummaryAnswer
    ready: bool
    reasons: list[str]
    sources: list[SourceAnswer]
    frames_refused: dict[str, int]
    serving: list[ServingAnswer]
    coverage: list[SourceCoverageAnswer]


class SignalAnswer(BaseModel):
    """What a layer signal is, and under which name Prometheus has it."""

    id: str
    formula: str
    metric: str
    unit: str
    help: str
    normal: str
    change: str


class LayerStat(BaseModel):
    """One signal over the rows of one population at one layer, since the boot of the source.

    log_mean, log_std: of the natural logarithm. window_*: over the last closed 10 s.
    """

    mean: float
    log_mean: float
    log_std: float
    window_min: float | None
    window_max: float | None


class LayerRow(BaseModel):
    """One layer and population; `rows` counts the token rows behind the statistics."""

    source: str
    model_name: str
    engine: str
    layer: int
    phase: Phase
    position: Position
    rows: int
    signals: dict[str, LayerStat]


class NonfiniteAnswer(BaseModel):
    """NaN and Inf elements seen in the residual stream after a layer."""

    source: str
    layer: int
    values: int


class LayersAnswer(BaseModel):
    """All layers of all engines, populations without rows left out."""

    signals: list[SignalAnswer]
    rows: list[LayerRow]
    nonfinite: list[NonfiniteAnswer]


def ready_answer(snapshot: Snapshot) -> ReadyAnswer:
    """Readiness at one moment."""
    found = reasons(snapshot)
    return ReadyAnswer(ready=not found, reasons=found)


def status_answer(snapshot: Snapshot, summary: SummaryAnswer) -> StatusAnswer:
    """The state of every source, and ordinary stats."""
    ready = ready_answer(snapshot)
    return StatusAnswer(
        version=sidecar.__version__,
        schema_version=SCHEMA,
        now_ns=snapshot.now_ns,
        summary=summary,
        ready=ready.ready,
        reasons=ready.reasons,
        sources=[_source(view, snapshot.now_ns) for view in snapshot.sources],
        frames_refused=snapshot.refused,
        serving=[
            _serving(view.name, totals) for view in snapshot.sources for totals in view.serving
        ],
        coverage=[
            _source_coverage(view.name, view.totals)
            for view in snapshot.sources
            if view.totals is not None
        ],
    )


def layers_answer(snapshot: Snapshot) -> LayersAnswer:
    """Every layer's statistics."""
    views = [(view, view.totals) for view in snapshot.sources if view.totals is not None]
    return LayersAnswer(
        signals=list(_signals()),
        rows=[row for view, totals in views for row in _layer_rows(view, totals)],
        nonfinite=[
            NonfiniteAnswer(source=view.name, layer=layer, values=values)
            for view, totals in views
            for layer, values in zip(totals.layers, totals.moments.nonfinite.tolist(), strict=True)
        ],
    )


def coverage_answer(coverage: Coverage) -> CoverageAnswer:
    """Token rows by what became of them."""
    return CoverageAnswer(
        observed=_observed(coverage),
        prefix_cached=coverage.prefix_cached,
        lost=coverage.lost,
        recomputed=coverage.recomputed,
        shed=coverage.shed,
        opted_out=coverage.opted_out,
        rejected=coverage.rejected,
    )


def known(value: float) -> float | None:
    """A finite value; null for what does not exist."""
    return value if math.isfinite(value) else None


def _source(view: SourceView, now_ns: int) -> SourceAnswer:
    status = view.status or _NO_STATUS
    return SourceAnswer(
        source=view.name,
        role=view.source.role,
        state=status.state if view.status else None,
        reason=status.reason if view.status else "",
        detail=status.detail,
        boot=view.boot,
        last_frame_age_seconds=max(0, now_ns - view.heard_ns) / 1e9 if view.heard_ns else None,
        frames_sent=view.tally.sent,
        frames_received=view.tally.received,
        frames_lost=losses(view),
        model_name=status.model_name,
        vllm_version=status.vllm_version,
        runner=status.runner,
        dtype=status.dtype,
        num_layers=status.num_layers,
        dead_layers=status.dead_layers,
        errors=status.errors,
        fingerprint=status.fingerprint,
        absent=status.absent,
        shed_level=status.shed_level,
        cost_share=status.cost_share,
        control=status.control,
        identity=_identity(status.identity),
        manifest=None if view.manifest is None else _manifest(view.manifest),
    )


def _identity(identity: Identity) -> IdentityAnswer:
    return IdentityAnswer(**msgspec.structs.asdict(identity))


def _manifest(manifest: Manifest) -> ManifestAnswer:
    files = [FileAnswer(**msgspec.structs.asdict(file)) for file in manifest.files]
    return ManifestAnswer(**{**msgspec.structs.asdict(manifest), "files": files})


def _serving(source: str, totals: ServingTotals) -> ServingAnswer:
    return ServingAnswer(
        source=source,
        model_name=totals.model_name,
        engine=str(totals.engine),
        requests_running=totals.running,
        requests_waiting=totals.waiting,
        kv_cache_usage_ratio=totals.kv_cache_usage,
        prompt_tokens=totals.prompt_tokens,
        generated_tokens=totals.generated_tokens,
        cached_tokens=totals.cached_tokens,
        preempted_requests=totals.preempted,
        finished=totals.finished,
        ttft_seconds=_distribution(totals.first_token),
        time_per_output_token_seconds=_distribution(totals.output_token),
        e2e_seconds=_distribution(totals.e2e),
        queue_seconds=_distribution(totals.queue),
    )


def _distribution(held: Distribution) -> DistributionAnswer:
    return DistributionAnswer(count=held.num_values, mean=held.mean)


def _observed(coverage: Coverage) -> Observed:
    observed: Observed = {phase: {} for phase in Phase}
    for (phase, position), rows in zip(POPULATIONS, coverage.observed, strict=True):
        observed[phase][position] = rows
    return observed


def _source_coverage(source: str, totals: LayerTotals) -> SourceCoverageAnswer:
    return SourceCoverageAnswer(
        source=source,
        steps=totals.num_steps,
        requests=totals.num_requests,
        **coverage_answer(totals.coverage).model_dump(),
    )


def _signals() -> Iterator[SignalAnswer]:
    for signal in LAYER_SIGNALS:
        metric = SUMMARY_OF[signal.id]
        yield SignalAnswer(
            id=signal.id,
            formula=signal.formula,
            metric=metric.name,
            unit=metric.unit,
            help=metric.help,
            normal=metric.normal,
            change=metric.change,
        )


def _layer_rows(view: SourceView, totals: LayerTotals) -> Iterator[LayerRow]:
    counts = totals.moments.count
    window = totals.window
    if window is None:
        window = np.full_like(totals.moments.extremes, np.nan)
    model_name = view.status.model_name if view.status else ""
    for index, layer in enumerate(totals.layers):
        for population, (phase, position) in enumerate(POPULATIONS):
            rows = int(counts[population, index])
            if not rows:
                continue
            cell = (population, index)
            stats = zip(_SIGNAL_IDS, totals.moments.sums[cell], window[cell], strict=True)
            yield LayerRow(
                source=view.name,
                model_name=model_name,
                engine=str(view.source.dp),
                layer=layer,
                phase=phase,
                position=position,
                rows=rows,
                signals={name: _layer_stat(rows, sums, ends) for name, sums, ends in stats},
            )


def _layer_stat(rows: int, sums: NDArray[np.float64], ends: NDArray[np.float32]) -> LayerStat:
    mean, log_mean, log_square_mean = (sums / rows).tolist()
    smallest, largest = ends.tolist()
    return LayerStat(
        mean=mean,
        log_mean=log_mean,
        log_std=math.sqrt(max(0.0, log_square_mean - log_mean * log_mean)),
        window_min=known(smallest),
        window_max=known(largest),
    )
