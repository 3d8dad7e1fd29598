"""What each layer did second by second, over the last ten minutes: columns of a heatmap.

The running totals of a source are turned into what grew between two of its frames, per signal,
population and layer, and kept in columns of one second (`columns.Ring`). Ranks of one engine tell
of layers or heads of their own; read together, they are one picture.

Guarantees: at most `MAX_BYTES` in all, whatever labels a sender makes up: what was unheard the
longest goes first, and what finds no room is counted. A mean is over the rows of one population.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.columns import COLUMN_NS, MAX_SPREAD, NUM_COLUMNS, Ring, spread
from sidecar.fold.usual import OwnStart, Usual
from sidecar.wire.frame import Arrays, Body, Cells, Frame, Layers, Source, Table, Totals
from sidecar.wire.signals import GROUPS, LAYER_SIGNALS, POPULATIONS, Phase

MAX_BYTES: Final = 96 << 20
MAX_TRACK_BYTES: Final = 32 << 20
RESIDUAL: Final = "residual"
CONFIDENCE: Final = "confidence"
_KEPT_POWERS: Final = 2  # sums of v and of phi
_FLOAT_BYTES: Final = 4
_TRACK_BYTES: Final = 4096  # beside its rings
_MAX_DIGITS: Final = 6  # of a layer's id
_ALL: Final = slice(None)
Floats = NDArray[np.float64]
Kind = tuple[str, str]  # phase and position; "" where a group does not tell them apart


class Reading(NamedTuple):
    """Running totals of one group: rows [K, L], sums of v and phi [K, L, S, 2]."""

    rows: Floats
    sums: Floats


class Shape(NamedTuple):
    """What the cells of a track are of.

    group: `residual`, or one of `GROUPS`. kinds: [K]. layers: [L] global ids; [0] of a group that
    belongs to no layer. signals: [S] ids.
    """

    group: str
    kinds: tuple[Kind, ...]
    layers: tuple[int, ...]
    signals: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Memory of a track, about."""
        num_cells = len(self.kinds) * len(self.layers)
        per_cell = 1 + _KEPT_POWERS * len(self.signals)
        return _TRACK_BYTES + _FLOAT_BYTES * NUM_COLUMNS * num_cells * per_cell


class Picture(NamedTuple):
    """One signal of one kind, over T columns and L layers.

    t_ns: [T] Unix time at which each column begins, one second after another.
    rows: [T, L]. values: mean of v; phi: mean of phi; NaN where there were no rows.
    start: what was usual in the source's own first ten minutes.
    """

    layers: tuple[int, ...]
    t_ns: tuple[int, ...]
    rows: Floats
    values: Floats
    phi: Floats
    start: Usual


class Track:
    """The columns of one group of one source."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.t_ns = 0  # of the latest reading
        cells = (len(shape.kinds), len(shape.layers))
        self._cells = cells
        self._rows = Ring(cells)
        self._sums = Ring((*cells, len(shape.signals), _KEPT_POWERS))
        self._boot = ""
        self._before: Reading | None = None
        self._settled = 0  # the seconds before it were told to the start

    @property
    def last(self) -> int:
        """The second of the latest reading; it may still grow."""
        return self._rows.last

    @property
    def first(self) -> int:
        """The earliest second held."""
        return self._rows.first

    def update(self, boot: str, t_ns: int, reading: Reading) -> None:
        """Take a later reading; the first one of a life only tells where growth begins."""
        if boot != self._boot or self._before is None:
            self._boot = boot
            self._start = OwnStart((*self._cells, len(self.shape.signals)))
            self._settled = t_ns // COLUMN_NS
            seconds, growth = spread(t_ns, t_ns), None
        else:
            seconds, growth = spread(self.t_ns, t_ns), _growth(self._before, reading)
        self._settle(seconds)
        for second in seconds:
            rows, sums = self._rows.open(second), self._sums.open(second)
            if growth is not None and rows is not None and sums is not None:
                rows += growth.rows / len(seconds)
                sums += growth.sums / len(seconds)
        self._before, self.t_ns = reading, t_ns

    def read(self, seconds: range, kind: int | slice = _ALL, signal: int | slice = _ALL) -> Reading:
        """Rows and sums of each second, [T, K, L] and [T, K, L, S, 2]; or of one kind or signal."""
        return Reading(
            self._rows.read(seconds, (kind,)).astype(np.float64),
            self._sums.read(seconds, (kind, _ALL, signal)).astype(np.float64),
        )

    def start(self) -> Usual:
        """What was usual at the start of this life, [K, L, S] each."""
        return self._start.get()

    def _settle(self, seconds: range) -> None:
        """Let the start take the columns that no later reading adds to."""
        done = range(max(self._settled, self.first), min(seconds.start, self.last + 1))
        for second in filter(self._start.takes, done):
            _, phi = means(self.read(range(second, second + 1)))
            self._start.update(second, phi[0])
        self._settled = max(self._settled, done.stop)


class Timelines:
    """The tracks of all sources."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.num_left_out = 0  # readings that found no room
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._tracks: dict[tuple[Source, Shape], Track] = {}

    def update(self, frame: Frame) -> None:
        """Take the totals of a frame, if it has any."""
        header = frame.header
        with np.errstate(over="ignore", invalid="ignore"):  # sums of a stranger may be absurd
            for shape, reading in _readings(frame.body):
                track = self._track(header.source, shape, header.t_ns)
                if track is None:
                    self.num_left_out += 1
                else:
                    track.update(header.boot, header.t_ns, reading)

    def sources(self) -> list[Source]:
        """Engines that told of layers, in order of rank."""
        told = {source for source, shape in self._tracks if shape.group != CONFIDENCE}
        return sorted(told, key=_rank)

    def closed(self, sources: Iterable[Source], group: str = RESIDUAL) -> range:
        """The seconds that are held, and grow no more, of these sources."""
        return _closed(self._found(sources, group))

    @np.errstate(over="ignore", invalid="ignore")
    def picture(
        self, sources: Iterable[Source], group: str, signal: str, kind: Kind, after_ns: int = -1
    ) -> Picture:
        """One signal of these sources together: the closed columns that begin after `after_ns`."""
        tracks = [t for t in self._found(sources, group) if kind in t.shape.kinds]
        seconds = _later(_closed(tracks), after_ns)
        layers = tuple(sorted({layer for track in tracks for layer in track.shape.layers}))
        total = Reading(
            np.zeros((len(seconds), len(layers))),
            np.zeros((len(seconds), len(layers), 1, _KEPT_POWERS)),
        )
        starts = []
        for track in tracks:
            k, s = track.shape.kinds.index(kind), track.shape.signals.index(signal)
            at = [layers.index(layer) for layer in track.shape.layers]
            reading = track.read(seconds, k, slice(s, s + 1))
            total.rows[:, at] += reading.rows
            total.sums[:, at] += reading.sums
            starts.append((at, track.start(), (k, slice(None), s)))
        values, phi = means(total)
        t_ns = tuple(second * COLUMN_NS for second in seconds)
        start = _joined(len(layers), starts)
        return Picture(layers, t_ns, total.rows, values[..., 0], phi[..., 0], start)

    @np.errstate(over="ignore", invalid="ignore")
    def overall(
        self, sources: Iterable[Source], group: str, phase: str, seconds: range
    ) -> dict[str, Floats]:
        """Mean of v of each signal, [T], over all rows, layers and heads of a phase."""
        rows = np.zeros(len(seconds))
        sums = np.zeros((len(seconds), len(GROUPS[group].signals)))
        for track in self._found(sources, group):
            for k, kind in enumerate(track.shape.kinds):
                if kind[0] == phase:
                    reading = track.read(seconds, k)
                    rows += reading.rows.sum(-1)
                    sums += reading.sums[..., 0].sum(1)
        mean = _divided(sums, rows[:, None])
        return {signal.id: mean[:, s] for s, signal in enumerate(GROUPS[group].signals)}

    def _found(self, sources: Iterable[Source], group: str) -> list[Track]:
        wanted = set(sources)
        return [
            track
            for (source, shape), track in self._tracks.items()
            if source in wanted and shape.group == group
        ]

    def _track(self, source: Source, shape: Shape, t_ns: int) -> Track | None:
        key = (source, shape)
        if key not in self._tracks:
            if not self._make_room(shape.num_bytes, t_ns):
                return None
            self._tracks[key] = Track(shape)
            self._num_bytes += shape.num_bytes
        return self._tracks[key]

    def _make_room(self, num_bytes: int, t_ns: int) -> bool:
        if num_bytes > MAX_TRACK_BYTES:
            return False
        while self._num_bytes + num_bytes > self._max_bytes:
            oldest = min(self._tracks, key=lambda key: self._tracks[key].t_ns, default=None)
            if oldest is None or t_ns - self._tracks[oldest].t_ns <= MAX_SPREAD * COLUMN_NS:
                return False
            del self._tracks[oldest]
            self._num_bytes -= oldest[1].num_bytes
        return True


@np.errstate(over="ignore", invalid="ignore")
def means(reading: Reading) -> tuple[Floats, Floats]:
    """Mean of v and of phi, [..., L, S]; NaN where there were no rows."""
    made = _divided(reading.sums, reading.rows[..., None, None])
    return made[..., 0], made[..., 1]


def _readings(body: Body) -> Iterable[tuple[Shape, Reading]]:
    match body:
        case Layers():
            yield _of_layers(body)
        case Totals():
            yield from _of_tables(body.tables).items()


def _of_layers(body: Layers) -> tuple[Shape, Reading]:
    arrays = Arrays.unpack(body.moments, len(body.layers))
    kinds = tuple((str(phase), str(position)) for phase, position in POPULATIONS)
    shape = Shape(RESIDUAL, kinds, tuple(body.layers), tuple(each.id for each in LAYER_SIGNALS))
    return shape, Reading(arrays.count.astype(np.float64), arrays.sums[..., :_KEPT_POWERS])


def _of_tables(tables: Iterable[Table]) -> dict[Shape, Reading]:
    found: dict[Shape, Reading] = {}
    for shape, reading in filter(None, map(_of_table, tables)):
        known = found.get(shape)  # tables of other heads, or of other adapters, add up
        found[shape] = reading if known is None else _sum(known, reading)
    return found


def _sum(one: Reading, other: Reading) -> Reading:
    return Reading(one.rows + other.rows, one.sums + other.sums)


@np.errstate(over="ignore", invalid="ignore")  # a peer's numbers may overflow
def _of_table(table: Table) -> tuple[Shape, Reading] | None:
    """What a table says of layers and phases, over its heads; None when it says nothing of them."""
    group = GROUPS[table.group]
    if not group.signals or (group.axes[:2] != ("layer", "phase") and group.id != CONFIDENCE):
        return None
    cells = Cells.unpack(table)
    signals = tuple(each.id for each in group.signals)
    rows, sums = cells.count.astype(np.float64), cells.sums[..., :_KEPT_POWERS]
    if group.id == CONFIDENCE:
        shape = Shape(group.id, ((str(Phase.DECODE), ""),), (0,), signals)
        return shape, Reading(rows.sum()[None, None], sums.sum(0)[None, None])
    layers, phases = table.axes[:2]
    if not all(map(_is_layer, layers)) or not set(phases) <= set(Phase):
        return None
    heads = tuple(range(2, rows.ndim))
    shape = Shape(group.id, tuple((p, "") for p in phases), tuple(map(int, layers)), signals)
    by_phase = Reading(rows.sum(heads).swapaxes(0, 1), sums.sum(heads).swapaxes(0, 1))
    return shape, by_phase


def _is_layer(label: str) -> bool:
    return label.isascii() and label.isdecimal() and len(label) <= _MAX_DIGITS


def _growth(before: Reading, now: Reading) -> Reading:
    grew = now.rows >= before.rows  # a sender that breaks its word, that counts grow, gets 0
    rows = np.where(grew, now.rows - before.rows, 0.0)
    return Reading(rows, np.where((rows > 0)[..., None, None], now.sums - before.sums, 0.0))


def _closed(tracks: Sequence[Track]) -> range:
    """From the earliest second held to the one that some track may still add to."""
    latest = max((track.last for track in tracks), default=-1)
    fresh = [track for track in tracks if latest - track.last <= MAX_SPREAD]
    stop = min((track.last for track in fresh), default=0)
    return range(min((track.first for track in tracks), default=0), stop)


def _later(seconds: range, after_ns: int) -> range:
    start = max(seconds.start, after_ns // COLUMN_NS + 1, seconds.stop - NUM_COLUMNS)
    return range(start, max(start, seconds.stop))


def _joined(
    num_layers: int, starts: Sequence[tuple[list[int], Usual, tuple[int, slice, int]]]
) -> Usual:
    """Several tracks' starts as one: where they share a layer, the mean of both.

    The spread of a mean of two is at most the mean of their spreads.
    """
    n, mean, sd = np.zeros(num_layers), np.zeros(num_layers), np.zeros(num_layers)
    for at, usual, place in starts:
        n[at] += 1
        mean[at] += usual.mean[place]
        sd[at] += usual.sd[place]
    return Usual(_divided(mean, n), _divided(sd, n))


def _divided(sums: Floats, rows: Floats) -> Floats:
    return np.divide(sums, rows, out=np.full_like(sums, np.nan), where=rows > 0)


def _rank(source: Source) -> tuple[int, int, int]:
    return (source.dp, source.pp, source.tp)
