"""What is shown, read from the sidecar's JSON.

Guarantee: any JSON gives a `Reading`; what it lacks, or holds in another shape, is missing from it.
Numbers that are not finite are None.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from sidecar.wire.signals import Phase

Ask = Callable[[str], Any]  # a path of the API to its JSON; raises OSError
Numbers = tuple[float | None, ...]
OK: Final = frozenset({"ok", "collecting"})  # levels at which nobody needs to do anything
MAX_CAUSES: Final = 3
_UNTOLD: Final = "the sidecar does not say how things stand; is it of this release?"


class Choice(NamedTuple):
    """Which signal of which rows is shown per layer."""

    signal: str = "residual_rms"
    phase: Phase = Phase.DECODE

    @property
    def path(self) -> str:
        """Where the API has it."""
        asked = {"signal": self.signal, "phase": self.phase, "position": "rest"}
        return f"/v1/timeline?{urlencode(asked)}"


class Channel(NamedTuple):
    """What a drift channel that is configured concludes; since: Unix seconds, None without."""

    name: str
    state: str
    reason: str
    level: float | None
    since: float | None
    causes: tuple[str, ...]


class Layer(NamedTuple):
    """One layer, second by second; z: how far from usual, in its own spread."""

    layer: int
    values: Numbers
    z: Numbers

    @property
    def latest(self) -> tuple[float | None, float | None]:
        """Value and z of the last second in which there was one."""
        pairs = zip(reversed(self.values), reversed(self.z), strict=True)
        return next(((value, z) for value, z in pairs if value is not None), (None, None))


class Layers(NamedTuple):
    """One signal of all layers. quiet: seconds since a row was measured; None if there was none."""

    choice: Choice
    unit: str
    reference: str
    rows: tuple[Layer, ...]
    quiet: float | None


class Line(NamedTuple):
    """One quantity of the whole server, second by second."""

    name: str
    unit: str
    values: Numbers


class Heard(NamedTuple):
    """One source of frames. age: seconds since it was last heard."""

    name: str
    state: str
    age: float | None
    why: str


class Reading(NamedTuple):
    """Everything on one screen, at `now` (Unix seconds, of the sidecar's clock).

    signals: ids that can be chosen.
    """

    now: float | None
    level: str
    sentence: str
    channels: tuple[Channel, ...]
    layers: Layers
    lines: tuple[Line, ...]
    sources: tuple[Heard, ...]
    signals: tuple[str, ...]


def take(ask: Ask, choice: Choice) -> Reading:
    """Ask a sidecar for everything. Raises OSError when it does not answer."""
    status, drift = ask("/v1/status"), ask("/v1/drift")
    now_ns = _number(status, "now_ns")
    now = None if now_ns is None else now_ns / 1e9
    return Reading(
        now=now,
        level=str(_at(status, "summary", "level") or "blind"),
        sentence=str(_at(status, "summary", "sentence") or _UNTOLD),
        channels=tuple(_channels(drift)),
        layers=_layers(ask(choice.path), choice, now),
        lines=tuple(_lines(ask("/v1/timeline/lines"))),
        sources=tuple(_sources(status)),
        signals=tuple(str(_at(e, "id")) for e in _items(ask("/v1/timeline/signals"), "signals")),
    )


def _channels(drift: Any) -> Iterator[Channel]:
    for each in _items(drift, "channels"):
        if _at(each, "is_configured") is not True:
            continue
        since_ns = _number(each, "since_ns")
        yield Channel(
            name=str(_at(each, "channel")),
            state=str(_at(each, "state")),
            reason=str(_at(each, "reason") or ""),
            level=_number(each, "level"),
            since=None if since_ns is None else since_ns / 1e9,
            causes=tuple(_cause(cause) for cause in _items(each, "causes")[:MAX_CAUSES]),
        )


def _cause(cause: Any) -> str:
    share, layer = _number(cause, "share"), _number(cause, "layer")
    where = "" if layer is None else f"layer {layer:g} "
    told = "" if share is None else f" {share:.1f}x"
    return f"{where}{_at(cause, 'signal')}{told}"


def _layers(document: Any, choice: Choice, now: float | None) -> Layers:
    columns = _items(document, "columns")
    ids = [int(each) for each in _items(document, "layers") if isinstance(each, int)]
    measured = [column for column in columns if _number(column, "rows")]
    last_ns = _number(measured[-1], "t_ns") if measured else None
    return Layers(
        choice=choice,
        unit=str(_at(document, "unit") or ""),
        reference=str(_at(document, "reference") or "none"),
        rows=tuple(
            Layer(
                layer,
                tuple(_item(column, "values", place) for column in columns),
                tuple(_item(column, "z", place) for column in columns),
            )
            for place, layer in enumerate(ids)
        ),
        quiet=None if last_ns is None or now is None else max(0.0, now - last_ns / 1e9 - 1.0),
    )


def _lines(document: Any) -> Iterator[Line]:
    lines = _at(document, "lines")
    for name, line in lines.items() if isinstance(lines, Mapping) else ():
        values = tuple(_finite(value) for value in _items(line, "values"))
        yield Line(str(name), str(_at(line, "unit") or ""), values)


def _sources(status: Any) -> Iterator[Heard]:
    for each in _items(status, "sources"):
        yield Heard(
            name=str(_at(each, "source")),
            state=str(_at(each, "state") or "silent"),
            age=_number(each, "last_frame_age_seconds"),
            why=str(_at(each, "detail") or _at(each, "reason") or ""),
        )


def _at(document: Any, *path: str) -> Any:
    for key in path:
        if not isinstance(document, Mapping):
            return None
        document = document.get(key)
    return document


def _items(document: Any, key: str) -> list[Any]:
    found = _at(document, key)
    return found if isinstance(found, list) else []


def _item(document: Any, key: str, place: int) -> float | None:
    found = _items(document, key)
    return _finite(found[place]) if place < len(found) else None


def _number(document: Any, *path: str) -> float | None:
    return _finite(_at(document, *path))


def _finite(found: Any) -> float | None:
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found) if math.isfinite(found) else None
