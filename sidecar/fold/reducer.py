"""The whole state: frames go in, a snapshot of everything publishable comes out.

Guarantees: at most `Limits.max_sources` sources, `requests.MAX_BYTES` bytes of requests,
`signatures.MAX_BYTES` of signatures, `scans.MAX_BYTES` of scans and `timeline.MAX_BYTES` of columns
are held; a source unheard for `Limits.stale_ns` is in no snapshot except as silent, and not even as
that after `FORGET_NS`; when the clock is set back, what was heard is as old as it was before.
Nothing here reads a clock: every call is told the time.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from sidecar.fold.confidence import CallersOfConfidence, Pointed
from sidecar.fold.histogram import FRAME_AGE_SECONDS, Distribution, Histogram
from sidecar.fold.lines import ServingLines
from sidecar.fold.requests import Measured, RecentRequests
from sidecar.fold.scans import RecentScans, Scanned
from sidecar.fold.signatures import RecentSignatures, Signed
from sidecar.fold.source import SourceState, SourceView
from sidecar.fold.timeline import Timelines
from sidecar.wire.frame import CAUSES, Frame, Requests, Serving, Signatures, Source
from sidecar.wire.scan import Scan

# Causes of refusal beyond those of the wire: a number heard before; a life that another one has
# replaced; more sources than are held; an error of ours.
REFUSALS: Final = (*CAUSES, "replayed", "superseded", "sources", "internal")
FORGET_NS: Final = 600 * 10**9
_SET_BACK_NS: Final = 10**9  # threads that read one clock are not this far apart


class Limits(NamedTuple):
    """What bounds the state.

    stale_ns: a source unheard for longer is not published.
    max_age_ns: a frame older than this when read is counted, not used.
    max_sources: sources held at once.
    """

    stale_ns: int
    max_age_ns: int
    max_sources: int = 256


class Snapshot(NamedTuple):
    """Everything publishable at `now_ns`; later updates leave it alone.

    sources: those heard within the staleness limit, in order of rank.
    silent: those that were heard before it, but within `FORGET_NS`.
    refused: messages refused, by cause.
    refused_ns: when a message was last refused, by cause.
    ages: seconds from packing to reading, of every frame counted for a source.
    """

    now_ns: int
    limits: Limits
    sources: Sequence[SourceView]
    silent: Sequence[SourceView]
    refused: dict[str, int]
    refused_ns: dict[str, int]
    ages: Distribution


class Reducer:
    """Folds frames of all sources.

    timelines, lines: what grew second by second, of layers and of what was served.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sources: dict[str, SourceState] = {}
        self._requests = RecentRequests()
        self._callers = CallersOfConfidence()
        self._signatures = RecentSignatures()
        self.timelines = Timelines()
        self.lines = ServingLines()
        self._scans = RecentScans()
        self._refused = dict.fromkeys(REFUSALS, 0)
        self._refused_ns: dict[str, int] = {}
        self._ages = Histogram(FRAME_AGE_SECONDS)
        self._latest_ns = 0

    def update(self, frame: Frame, now_ns: int) -> bool:
        """Take a frame read at `now_ns`; whether what it tells is used, not only counted."""
        self._see(now_ns)
        state = self._state_of(frame.header.source, now_ns)
        if state is None:
            self.refuse("sources", now_ns)
            return False
        age_ns = max(0, now_ns - frame.header.t_ns)
        stale = age_ns > self._limits.max_age_ns
        cause = state.update(frame, now_ns, stale=stale)
        if cause is not None:
            self.refuse(cause, now_ns)
            return False
        self._ages.update([age_ns / 1e9])
        if not stale:
            self._remember(frame)
        return not stale

    def refuse(self, cause: str, now_ns: int) -> None:
        """Count a message refused for one of `REFUSALS`."""
        self._refused[cause] += 1
        self._refused_ns[cause] = now_ns

    def get(self, now_ns: int) -> Snapshot:
        """Everything publishable at `now_ns`."""
        self._see(now_ns)
        views = [state.get(now_ns) for state in sorted(self._sources.values(), key=_rank)]
        silence = [(view, now_ns - view.arrived_ns) for view in views]
        stale_ns = self._limits.stale_ns
        return Snapshot(
            now_ns,
            self._limits,
            tuple(view for view, ns in silence if ns <= stale_ns),
            tuple(view for view, ns in silence if stale_ns < ns <= stale_ns + FORGET_NS),
            dict(self._refused),
            dict(self._refused_ns),
            self._ages.get(),
        )

    def requests(self, limit: int) -> list[Measured]:
        """The latest `limit` finished requests, latest first."""
        return self._requests.get(limit)

    def find(self, request_id: str) -> list[Measured]:
        """Finished requests with this engine id or client id."""
        return self._requests.find(request_id)

    def signatures(self, limit: int) -> list[Signed]:
        """The latest signatures of `limit` requests, latest first."""
        return self._signatures.get(limit)

    def canaries(self) -> dict[str, str]:
        """`<prompt>@<round>` of the proven canaries whose signatures are held, by engine id."""
        return self._signatures.canaries()

    def scans(self) -> list[Scanned]:
        """The scanned requests, latest first."""
        return self._scans.get()

    def find_scans(self, request_id: str) -> list[Scanned]:
        """Scanned requests with this engine id or client id, latest first."""
        return self._scans.find(request_id)

    def _state_of(self, source: Source, now_ns: int) -> SourceState | None:
        if source.name not in self._sources:
            if not self._make_room(now_ns):
                return None
            self._sources[source.name] = SourceState(source, self._limits.stale_ns)
        return self._sources[source.name]

    def _see(self, now_ns: int) -> None:
        """Take the time. Set back, sources that died would else be fresh until it catches up."""
        by_ns = self._latest_ns - now_ns
        if by_ns > _SET_BACK_NS:
            for state in self._sources.values():
                state.set_back(by_ns)
            self._refused_ns = {cause: ns - by_ns for cause, ns in self._refused_ns.items()}
        if not 0 <= by_ns <= _SET_BACK_NS:
            self._latest_ns = now_ns

    def _make_room(self, now_ns: int) -> bool:
        if len(self._sources) < self._limits.max_sources:
            return True
        oldest = min(self._sources.values(), key=lambda state: state.arrived_ns)
        if now_ns - oldest.arrived_ns <= self._limits.stale_ns:
            return False
        del self._sources[oldest.source.name]
        return True

    def _remember(self, frame: Frame) -> None:
        self.timelines.update(frame)
        self.lines.update(frame)
        source = frame.header.source.name
        match frame.body:
            case Requests() as body:
                self._requests.measure(source, body)
                self._point(self._callers.measure(source, body.requests))
            case Serving() as body:
                self._requests.finish(body.finished)
                self._point(self._callers.finish(body.finished))
                self._requests.abort(body.aborted)
            case Signatures() as body:
                self._signatures.update(source, body)
            case Scan() as body:
                self._scans.update(source, frame.header.t_ns, body)

    def _point(self, exemplars: Iterable[Pointed]) -> None:
        for pointed in exemplars:
            if state := self._sources.get(pointed.source):
                state.point(pointed.exemplar)


def _rank(state: SourceState) -> tuple[str, int, int, int]:
    source = state.source
    return (source.role, source.dp, source.pp, source.tp)
