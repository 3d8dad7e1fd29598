"""Everything known of one source: who speaks, in which life, what it told, and when.

Guarantees: a new life (boot id) starts from nothing; while the life heard last is fresh, frames
of a life it replaced change nothing; the size is bounded whatever the source sends.
"""

from collections import deque
from typing import Final, NamedTuple

from sidecar.fold.confidence import confidence
from sidecar.fold.exemplars import Exemplar
from sidecar.fold.histogram import CONFIDENCE_RATIOS, Distribution, Histogram
from sidecar.fold.series import LayerSeries, LayerTotals, ServingSeries, ServingTotals
from sidecar.fold.stream import Stream, Tally
from sidecar.fold.tables import TableSeries, TableTotals
from sidecar.wire.frame import (
    Body,
    Frame,
    Header,
    Layers,
    Manifest,
    Requests,
    Serving,
    Source,
    Status,
    Totals,
)

MAX_ENGINES: Final = 64  # engines that one front end may speak of
_MAX_RETIRED: Final = 8


class SourceView(NamedTuple):
    """One source at one moment.

    t_ns: time of its last accepted frame, by its own clock; 0 when none was accepted.
    heard_ns: when that frame was read, by our clock; 0 when none was.
    arrived_ns: when any frame of it was read, too old ones included.
    contested_ns: when a frame of a replaced life was last read; 0 when none was.
    confidence: of the finished requests that it measured, see `fold.confidence`.
    status, totals, tables, serving, manifest, confidence: empty unless a frame was accepted within
        the staleness limit.
    """

    source: Source
    boot: str
    t_ns: int
    heard_ns: int
    arrived_ns: int
    contested_ns: int
    tally: Tally
    status: Status | None
    totals: LayerTotals | None
    tables: tuple[TableTotals, ...]
    serving: tuple[ServingTotals, ...]
    manifest: Manifest | None = None
    confidence: Distribution | None = None

    @property
    def name(self) -> str:
        """Value of the `source` label."""
        return self.source.name


class SourceState:
    """One source, from its first frame on."""

    def __init__(self, source: Source, stale_ns: int) -> None:
        self.source = source
        self.arrived_ns = 0
        self._stale_ns = stale_ns
        self._heard_ns = 0
        self._contested_ns = 0
        self._stamp_ns = 0  # of the last frame used: what a new life must be later than
        self._retired: deque[str] = deque(maxlen=_MAX_RETIRED)
        self._life = _Life("")

    def update(self, frame: Frame, now_ns: int, *, stale: bool) -> str | None:
        """Take a frame; the cause when it is refused, which changes nothing else."""
        header = frame.header
        if self._is_superseded(header, now_ns):
            self._contested_ns = now_ns
            return "superseded"
        if header.boot != self._life.boot:
            self._retired.append(self._life.boot)
            self._life = _Life(header.boot)
        if not self._life.has_room(frame.body):
            return "sources"
        if not self._life.stream.update(header, stale=stale):
            return "replayed"
        self.arrived_ns = now_ns
        if not stale:
            self._heard_ns = now_ns
            # What was on its way when the clock was set back is stamped ahead of its time.
            self._stamp_ns = min(header.t_ns, now_ns)
            self._life.take(frame)
        return None

    def get(self, now_ns: int) -> SourceView:
        """The source as it is known now; without what it told, when that is stale."""
        life, fresh = self._life, self._is_fresh(now_ns)
        return SourceView(
            self.source,
            life.boot,
            life.t_ns,
            self._heard_ns,
            self.arrived_ns,
            self._contested_ns,
            life.stream.get(),
            life.status if fresh else None,
            life.layers.get() if fresh else None,
            life.tables.get() if fresh else (),
            life.serving() if fresh else (),
            life.manifest if fresh else None,
            life.confidence.get() if fresh else None,
        )

    def set_back(self, by_ns: int) -> None:
        """The clock, which is the source's too, was set back by so much."""
        self.arrived_ns -= by_ns
        self._contested_ns -= by_ns if self._contested_ns else 0
        self._heard_ns -= by_ns if self._heard_ns else 0
        self._stamp_ns -= by_ns if self._stamp_ns else 0

    def point(self, exemplar: Exemplar) -> None:
        """Take the exemplar of the confidence of a request that it measured."""
        self._life.confidence.point(exemplar)

    def _is_superseded(self, header: Header, now_ns: int) -> bool:
        if header.boot == self._life.boot or not self._is_fresh(now_ns):
            return False
        return header.boot in self._retired or header.t_ns <= self._stamp_ns

    def _is_fresh(self, now_ns: int) -> bool:
        return bool(self._heard_ns) and now_ns - self._heard_ns <= self._stale_ns


class _Life:
    """What a source told between two restarts of it."""

    def __init__(self, boot: str) -> None:
        self.boot = boot
        self.t_ns = 0
        self.stream = Stream()
        self.status: Status | None = None
        self.manifest: Manifest | None = None
        self.layers = LayerSeries()
        self.tables = TableSeries()
        self.confidence = Histogram(CONFIDENCE_RATIOS)
        self._serving: dict[int, ServingSeries] = {}

    def has_room(self, body: Body) -> bool:
        if not isinstance(body, Serving) or body.engine in self._serving:
            return True
        return len(self._serving) < MAX_ENGINES

    def take(self, frame: Frame) -> None:
        self.t_ns = frame.header.t_ns
        match frame.body:
            case Layers() as body:
                self.layers.update(self.t_ns, body)
            case Totals() as body:
                self.tables.update(self.t_ns, body)
            case Serving() as body:
                self._serving.setdefault(body.engine, ServingSeries()).update(self.t_ns, body)
            case Requests() as body:
                self.confidence.update([confidence(request) for request in body.requests])
            case Status() as body:
                self.status = body
            case Manifest() as body:
                self.manifest = body
        self.layers.advance(self.t_ns)
        self.tables.advance(self.t_ns)

    def serving(self) -> tuple[ServingTotals, ...]:
        told = [series.get() for _, series in sorted(self._serving.items())]
        return tuple(totals for totals in told if totals is not None)
