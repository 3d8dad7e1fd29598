"""What the screen shows, read from the sidecar's JSON.

Guarantee: any JSON object gives a `Reading`; what it lacks, or holds in another shape, is None or
missing from the table. Values of the first positions (attention sinks) are left out.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from sidecar.wire.signals import Phase, Position

Json = Mapping[str, Any]


class LayerReading(NamedTuple):
    """Mean signals of one decoder layer over token rows, by phase; None before the first row."""

    layer: int
    prefill_rms: float | None
    decode_rms: float | None
    decode_peak: float | None
    prefill_influence: float | None
    decode_influence: float | None


class ServingReading(NamedTuple):
    """Ordinary stats of the server; times in seconds, tokens since it started."""

    running: float | None = None
    waiting: float | None = None
    generated_tokens: float | None = None
    time_to_first_token: float | None = None
    time_per_output_token: float | None = None


class TapReading(NamedTuple):
    """What one source says of its tap."""

    source: str
    state: str
    reason: str


class CanaryReading(NamedTuple):
    """What the canary channel concludes; since: Unix seconds of the change, None without one."""

    state: str
    reason: str
    since: float | None = None


class Reading(NamedTuple):
    """Everything on one screen; no canary where the sidecar told of none."""

    ready: bool
    reasons: tuple[str, ...]
    taps: tuple[TapReading, ...]
    layers: tuple[LayerReading, ...]
    serving: ServingReading
    canary: CanaryReading | None = None


def read(status: Any, layers: Any, drift: Any = None) -> Reading:
    """Reading of GET /v1/status, /v1/layers and /v1/drift; None stands for an answer not had."""
    return Reading(
        ready=_at(status, "ready") is True,
        reasons=tuple(str(reason) for reason in _items(status, "reasons")),
        taps=tuple(_taps(status)),
        layers=tuple(_layers(layers)),
        serving=_serving(status),
        canary=_canary(drift),
    )


def _canary(drift: Any) -> CanaryReading | None:
    for channel in _items(drift, "channels"):
        if _at(channel, "channel") == "canary":
            since_ns = _number(channel, "since_ns")
            return CanaryReading(
                str(_at(channel, "state")),
                str(_at(channel, "reason") or ""),
                None if since_ns is None else since_ns / 1e9,
            )
    return None


def _taps(status: Any) -> Iterator[TapReading]:
    for source in _items(status, "sources"):
        if _at(source, "role") == "engine":
            reason = _at(source, "detail") or _at(source, "reason") or ""
            yield TapReading(str(_at(source, "source")), str(_at(source, "state")), str(reason))


def _serving(status: Any) -> ServingReading:
    first = next(iter(_items(status, "serving")), None)
    return ServingReading(
        running=_number(first, "requests_running"),
        waiting=_number(first, "requests_waiting"),
        generated_tokens=_number(first, "generated_tokens"),
        time_to_first_token=_number(first, "ttft_seconds", "mean"),
        time_per_output_token=_number(first, "time_per_output_token_seconds", "mean"),
    )


def _layers(document: Any) -> Iterator[LayerReading]:
    rows: dict[int, dict[str, Any]] = {}
    for row in _items(document, "rows"):
        layer = _at(row, "layer")
        if isinstance(layer, int) and _at(row, "position") == Position.REST:
            rows.setdefault(layer, {})[str(_at(row, "phase"))] = _at(row, "signals")
    for layer, phases in sorted(rows.items()):
        prefill, decode = phases.get(Phase.PREFILL), phases.get(Phase.DECODE)
        yield LayerReading(
            layer=layer,
            prefill_rms=_number(prefill, "residual_rms", "mean"),
            decode_rms=_number(decode, "residual_rms", "mean"),
            decode_peak=_number(decode, "residual_peak", "mean"),
            prefill_influence=_number(prefill, "block_influence", "mean"),
            decode_influence=_number(decode, "block_influence", "mean"),
        )


def _at(document: Any, *path: str) -> Any:
    for key in path:
        if not isinstance(document, Mapping):
            return None
        document = document.get(key)
    return document


def _items(document: Any, key: str) -> Iterable[Any]:
    found = _at(document, key)
    return found if isinstance(found, list) else ()


def _number(document: Any, *path: str) -> float | None:
    found = _at(document, *path)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found) if math.isfinite(found) else None
