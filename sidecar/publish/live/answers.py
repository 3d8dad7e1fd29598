"""Answers about the last ten minutes, second by second.

Guarantees: a mean over no rows is null, never 0; six digits are told, since these are pictures and
not sums; a column that is told does not change any more; an answer holds as many numbers at most
as any other (`portion.MAX_NUMBERS`), the latest columns first.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from sidecar.fold.columns import COLUMN_NS, NUM_COLUMNS
from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.lines import Served
from sidecar.fold.reducer import Reducer
from sidecar.fold.timeline import CONFIDENCE, Picture
from sidecar.fold.usual import Usual, of_baseline
from sidecar.publish.api.answers import known
from sidecar.publish.api.portion import MAX_NUMBERS
from sidecar.publish.api.problems import Unanswerable
from sidecar.publish.live.choices import CHOICES, Choice
from sidecar.wire.frame import Source
from sidecar.wire.signals import BY_ID, Metric, Phase, Position

BASELINE: Final = "baseline"
OWN_START: Final = "own start"
NONE: Final = "none"
_DIGITS: Final = 6
_MAX_SOURCE: Final = 64
Floats = NDArray[np.float64]


class TimelineSignalAnswer(BaseModel):
    """A signal that a timeline can show. `has_positions`: first positions and the rest differ."""

    id: str
    formula: str
    unit: str
    metric: str
    help: str
    normal: str
    change: str
    phases: list[str]
    positions: list[str]


class TimelineSignalsAnswer(BaseModel):
    """What can be asked of /v1/timeline.

    sources: engines, each with all its ranks; and each rank for itself.
    """

    signals: list[TimelineSignalAnswer]
    sources: list[str]


class ColumnAnswer(BaseModel):
    """One second, per layer; `rows` counts the token rows of all layers' largest.

    t_ns: Unix time at which it begins. values: means; null where nothing was measured.
    z: how far from what is usual, in its own spread; null where nothing is known of that.
    """

    t_ns: int
    rows: int
    values: list[float | None] | None
    z: list[float | None] | None


class TimelineAnswer(BaseModel):
    """One signal of one population, per layer and second, the oldest column first.

    position: null where the signal does not tell positions apart.
    source: of whom it is: one rank, or all ranks of one engine; empty before any was heard.
    reference: what z is against: the baseline; the source's own first ten minutes; or none yet.
    num_left_out: columns after `after` that did not fit into one answer.
    """

    signal: str
    unit: str
    phase: Phase
    position: Position | None
    source: str
    layers: list[int]
    seconds_per_column: float
    columns: list[ColumnAnswer]
    reference: str
    num_left_out: int


class LineAnswer(BaseModel):
    """One quantity, a value per second; null where there was none."""

    unit: str
    help: str
    values: list[float | None]


class LinesAnswer(BaseModel):
    """All lines, over the same seconds: `t_ns` is the Unix time at which each begins."""

    t_ns: list[int]
    seconds_per_column: float
    lines: dict[str, LineAnswer]


_Seen = tuple[list[Source], Picture]


class Asked(NamedTuple):
    """What a client wants to see.

    source: a rank, or an engine such as `engine-dp0`; "" for the first engine.
    against: which reference it wants; "" for the baseline where it says anything.
    """

    signal: str
    phase: Phase
    position: Position
    source: str = ""
    after_ns: int = -1
    against: str = ""


def signals_answer(sources: list[Source]) -> TimelineSignalsAnswer:
    """What can be asked."""
    return TimelineSignalsAnswer(
        signals=[_signal(each) for each in CHOICES.values()], sources=_names(sources)
    )


def timeline_answer(
    asked: Asked,
    read: Callable[
        [Callable[[Reducer], tuple[list[Source], Picture]]], tuple[list[Source], Picture]
    ],
    baseline: Baseline | None,
) -> TimelineAnswer:
    """The closed columns of what was asked. Raises Unanswerable when there is no such thing."""
    choice = _choice(asked.signal)
    kind = choice.kind(asked.phase, asked.position)

    def copied(reducer: Reducer) -> _Seen:
        timelines = reducer.timelines
        chosen = _sources(asked.source, timelines.sources())
        picture = timelines.picture(chosen, choice.group, choice.signal, kind, asked.after_ns)
        return chosen, picture

    sources, picture = read(copied)
    usual, reference = _usual(asked, choice, picture, baseline)
    num_left_out = max(0, len(picture.t_ns) - MAX_NUMBERS // (2 * max(1, len(picture.layers))))
    return TimelineAnswer(
        signal=choice.id,
        unit=choice.metric.unit,
        phase=asked.phase,
        position=asked.position if choice.has_positions else None,
        source=asked.source or (_engine(sources[0]) if sources else ""),
        layers=list(picture.layers),
        seconds_per_column=COLUMN_NS / 1e9,
        columns=_columns(picture, usual, num_left_out),
        reference=reference,
        num_left_out=num_left_out,
    )


def lines_answer(
    read: Callable[[Callable[[Reducer], "_Lines"]], "_Lines"], after_ns: int = -1
) -> LinesAnswer:
    """All lines over the seconds that begin after `after_ns`."""
    found = read(lambda reducer: _lines(reducer, after_ns))
    served = found.served
    values = {
        **{name: getattr(served, name) for name in served._fields},
        "first_token_p50": served.first_token(0.5),
        "first_token_p99": served.first_token(0.99),
        **found.measured,
    }
    lines = {
        name: LineAnswer(unit=unit, help=text, values=_listed(_rounded(values[name])))
        for name, (unit, text) in LINES.items()
    }
    return LinesAnswer(
        t_ns=[second * COLUMN_NS for second in found.seconds],
        seconds_per_column=COLUMN_NS / 1e9,
        lines=lines,
    )


class _Lines(NamedTuple):
    seconds: range
    served: Served
    measured: dict[str, Floats]


def _lines(reducer: Reducer, after_ns: int) -> _Lines:
    timelines = reducer.timelines
    sources = timelines.sources()
    spans = [s for s in (reducer.lines.closed(), timelines.closed(sources)) if len(s)]
    # Of engine and front end, the one behind decides; unless it fell silent long ago.
    stop = max((span.stop for span in spans), default=0)
    stop = min((span.stop for span in spans if stop - span.stop <= _LAG), default=0)
    start = max(min((span.start for span in spans), default=0), after_ns // COLUMN_NS + 1)
    seconds = range(max(start, stop - NUM_COLUMNS), max(start, stop))
    attention = timelines.overall(sources, "attention", Phase.DECODE, seconds)
    confidence = timelines.overall(sources, CONFIDENCE, Phase.DECODE, seconds)
    measured = {
        "attention_entropy": attention["entropy"],
        "attention_effective_tokens": attention["effective_tokens"],
        "token_entropy": confidence["entropy"],
        "token_top1_probability": confidence["top1_probability"],
    }
    return _Lines(seconds, reducer.lines.read(seconds), measured)


_LAG: Final = 10


def _of(metric: Metric) -> tuple[str, str]:
    return metric.unit, metric.help


# Each line: its unit, and what it is.
LINES: Final = {
    "first_token_p50": ("seconds", "Half of the requests had their first token within this."),
    "first_token_p99": ("seconds", "99 % of the requests had their first token within this."),
    "tokens": ("tokens per second", "Tokens generated, of all engines together."),
    "prompt_tokens": ("tokens per second", "Tokens of prompts taken, of all engines together."),
    "finished": ("requests per second", "Requests that finished."),
    "running": ("requests", BY_ID["requests_running"].help),
    "waiting": ("requests", BY_ID["requests_waiting"].help),
    "kv_cache_usage": ("ratio", BY_ID["kv_cache_usage_ratio"].help),
    "attention_entropy": _of(BY_ID["attention_entropy_ratio"]),
    "attention_effective_tokens": _of(BY_ID["attention_effective_tokens"]),
    "token_entropy": _of(BY_ID["token_entropy_nats"]),
    "token_top1_probability": _of(BY_ID["token_top1_probability_ratio"]),
}


def _signal(choice: Choice) -> TimelineSignalAnswer:
    metric = choice.metric
    return TimelineSignalAnswer(
        id=choice.id,
        formula=choice.formula,
        unit=metric.unit,
        metric=metric.name,
        help=metric.help,
        normal=metric.normal,
        change=metric.change,
        phases=[str(phase) for phase in Phase],
        positions=[str(each) for each in Position] if choice.has_positions else [],
    )


def _choice(signal: str) -> Choice:
    if signal not in CHOICES:
        remedy = f"ask for one of {', '.join(CHOICES)}"
        raise Unanswerable(422, f"no signal {signal[:64]!r} with layers", remedy)
    return CHOICES[signal]


def _names(sources: list[Source]) -> list[str]:
    """Engines, and then their ranks where there are several."""
    engines = list(dict.fromkeys(map(_engine, sources)))
    return engines + [each.name for each in sources]


def _engine(source: Source) -> str:
    return f"engine-dp{source.dp}"


def _sources(name: str, known: list[Source]) -> list[Source]:
    """All ranks of an engine, or one; of the first engine when no name is given."""
    if not name:
        return [each for each in known if each.dp == known[0].dp]
    found = [each for each in known if name in (each.name, _engine(each))]
    if not found:
        remedy = f"ask for one of {', '.join(_names(known)) or 'none: no engine was heard yet'}"
        raise Unanswerable(404, f"no source {name[:_MAX_SOURCE]!r} told of layers", remedy)
    return found


def _usual(
    asked: Asked, choice: Choice, picture: Picture, baseline: Baseline | None
) -> tuple[Usual | None, str]:
    # A baseline says nothing of first positions, which are kept apart everywhere.
    is_covered = not choice.has_positions or asked.position is Position.REST
    if baseline is not None and is_covered and asked.against in ("", BASELINE):
        usual = of_baseline(baseline, choice.group, choice.signal, asked.phase, picture.layers)
        if usual.is_known:
            return usual, BASELINE
    if asked.against in ("", OWN_START) and picture.start.is_known:
        return picture.start, OWN_START
    return None, NONE


def _columns(picture: Picture, usual: Usual | None, skipped: int) -> list[ColumnAnswer]:
    rows = picture.rows.max(-1, initial=0.0)
    values = _rounded(picture.values)
    z = None if usual is None else np.round(usual.z(picture.phi), 3)
    return [
        ColumnAnswer(
            t_ns=t_ns,
            rows=round(float(rows[at])),
            values=_listed(values[at]) if rows[at] else None,
            z=_listed(z[at]) if z is not None and rows[at] else None,
        )
        for at, t_ns in enumerate(picture.t_ns)
        if at >= skipped
    ]


def _listed(values: Floats) -> list[float | None]:
    return [known(value) for value in values.tolist()]


def _rounded(values: Floats) -> Floats:
    """To six digits, so that a picture of 80 layers is not megabytes of noise."""
    with np.errstate(divide="ignore", invalid="ignore"):
        digits = _DIGITS - 1 - np.floor(np.log10(np.abs(values)))
        scale = np.power(10.0, np.clip(np.nan_to_num(digits), -300, 300))
        rounded: Floats = np.round(values * scale) / scale
    return np.where(np.isfinite(rounded), rounded, values)
