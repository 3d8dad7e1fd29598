"""Everything that one thread folds for drift: the windows, and the channels that judge them.

Guarantees: not thread-safe, and waits for nothing but its channels; a channel that fails takes no
other with it (`seat.Seat`); a view is a value that later items leave alone. Canary requests reach
the canary channel alone, all others the windows alone.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sidecar.errors import UNREADABLE, StateError
from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.drift.canary import CanaryChannel
from sidecar.fold.drift.history import Change, History
from sidecar.fold.drift.observation import Observation, observation_of
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.window import Window, Windows
from sidecar.fold.signatures import Signed
from sidecar.publish.drift.book import Book, Closed, Counts
from sidecar.publish.drift.panel import Panel, Terms, WindowChannel
from sidecar.publish.drift.seat import ChannelView, Seat, absent
from sidecar.store.snapshot import Saved, Snapshot
from sidecar.wire.frame import Identity, Manifest, Signatures, Source, Status
from sidecar.wire.signature import Layout

if TYPE_CHECKING:
    from sidecar.store.recorder import Recorder  # brings pyarrow, which is an extra of its own

MAX_SOURCES: Final = 256
MAX_DEPLOYMENTS: Final = 32
_OWN: Final = "judges"  # where our own state stands beside that of the channels
_BY_LAYOUT: Final = ("traffic", "mix", "tail")  # these judge nothing but the baseline's layout


class Served(NamedTuple):
    """Requests that a front end saw the end of."""

    num_finished: int


class Overflow(NamedTuple):
    """How many elements of the residual stream were not finite so far, by layer."""

    totals: dict[int, int]


Told = Signatures | Status | Manifest | Served | Overflow

_BY_BASELINE: Final = "set SIDECAR_BASELINE_FILE to what `sidecar baseline fit` wrote"

# Every channel that can be, in the order in which they are told, and how to get it.
CHANNELS: Final = {
    "canary": "set SIDECAR_CANARY_URL to the served model, and SIDECAR_CANARY_KEY_FILE",
    "traffic": _BY_BASELINE,
    "mix": _BY_BASELINE,
    "tail": _BY_BASELINE,
    "integrity": "it needs nothing but a tap",
    "replica": "it is judged over the whole fleet: run `sidecar fleet` beside Prometheus",
}


class Heard(NamedTuple):
    """What a source told, and when that was read."""

    source: Source
    body: Told
    now_ns: int


class Deployment(NamedTuple):
    """A change that the operator announced."""

    t_ns: int
    note: str


class Executed(NamedTuple):
    """What one engine executes, as far as it said so."""

    identity: Identity | None = None
    layout: Layout | None = None
    manifest: Manifest | None = None


class Canaries(NamedTuple):
    """How far each layer was off in the last round of known-safe tasks, in units of its noise."""

    deviations: dict[int, float]
    is_learning: bool


class Recording(NamedTuple):
    """What the recorder did: requests written and lost, files removed; why the last was lost."""

    num_recorded: int
    num_lost: int
    num_removed: int
    reason: str


class DriftView(NamedTuple):
    """Everything publishable about drift at `now_ns`.

    channels: all there could be, also those that are not configured, in order of `CHANNELS`.
    executed: what each engine says that it executes, by source.
    baseline: what traffic is compared with; None without.
    num_canary: canary requests taken; num_left_out: items that found no room before the judges.
    num_errors: exceptions outside of the channels.
    windows: closed ones, the oldest first; forgotten: cursor of the last one no longer held.
    keeping: what is wrong with keeping the state over a restart; "" when all is well.
    history: changes of verdicts, the oldest first; all there were since complete_ns.
    """

    now_ns: int
    terms: Terms
    channels: tuple[ChannelView, ...]
    executed: dict[str, Executed]
    counts: Counts
    windows: tuple[Closed, ...]
    forgotten: int
    deployments: tuple[Deployment, ...] = ()
    baseline: Baseline | None = None
    canaries: Canaries = Canaries({}, is_learning=False)
    num_canary: int = 0
    num_scored: int = 0
    num_errors: int = 0
    num_left_out: int = 0
    keeping: str = ""
    recording: Recording | None = None
    history: tuple[Change, ...] = ()
    complete_ns: int | None = None


class Judges:
    """Windows and channels, fed by one thread.

    panel: judges windows. canary: judges known-safe tasks. recorder: takes requests of traffic.
    """

    def __init__(
        self,
        terms: Terms,
        panel: Panel,
        canary: Seat[CanaryChannel] | None = None,
        recorder: "Recorder | None" = None,
    ) -> None:
        self.has_news = False  # something closed that is worth keeping
        self.num_errors = 0
        self._terms = terms
        self._panel = panel
        self._canary = canary
        self._recorder = recorder
        self._book = Book(self._open_windows)
        self._executed: dict[str, Executed] = {}
        self._deployments: deque[Deployment] = deque(maxlen=MAX_DEPLOYMENTS)
        self._history = History()
        self._num_canary = self._num_scored = 0
        self._was_measured = False

    def take(self, heard: Heard) -> None:
        """Take what a source told."""
        name, now_ns = heard.source.name, heard.now_ns
        match heard.body:
            case Signatures() as body:
                self._observe(name, body, now_ns)
            case Served(num_finished=num_finished):
                self._count(num_finished, 0, now_ns)
            case Overflow(totals=totals):
                self._overflow(name, totals, now_ns)
            case Status() as body if heard.source.role == "engine":
                self._execute(name, now_ns, identity=body.identity)
            case Manifest() as body if heard.source.role == "engine":
                self._execute(name, now_ns, manifest=body)

    def advance(self, now_ns: int) -> None:
        """Close what is over by `now_ns`."""
        self._judge(self._book.advance(now_ns))
        if self._canary:
            self._canary.run("advance", lambda channel: channel.advance(now_ns))
        if self._recorder:
            self._recorder.advance(now_ns)

    def get(self, now_ns: int) -> DriftView:
        """Everything publishable at `now_ns`."""
        windows, forgotten = self._book.held()
        channels = tuple(self._channel(name, now_ns) for name in CHANNELS)
        told = (each.verdict for each in channels if each.is_configured)
        self.has_news |= self._history.update(told, now_ns)
        return DriftView(
            now_ns=now_ns,
            terms=self._terms._replace(window_ns=self._panel.assembly.length_ns),
            channels=channels,
            executed=dict(self._executed),
            counts=self._book.counts(),
            windows=windows,
            forgotten=forgotten,
            deployments=tuple(self._deployments),
            baseline=self._panel.baseline,
            canaries=self._canaries(),
            num_canary=self._num_canary,
            num_scored=self._num_scored,
            num_errors=self.num_errors,
            recording=self._recording(),
            history=self._history.get(),
            complete_ns=self._history.since_ns,
        )

    def acknowledge(self, name: str, now_ns: int) -> ChannelView:
        """Somebody has seen what channel `name` found; how it stands now."""
        seat = self._seats.get(name)
        if seat is not None:
            seat.run("acknowledge", lambda channel: channel.acknowledge(now_ns))
            self.has_news = True
        return self._channel(name, now_ns)

    def discard(self, now_ns: int) -> ChannelView:
        """Forget what canaries looked like, and learn it anew; how that channel stands now."""
        if self._canary is not None:
            self._canary.run("discard", lambda channel: channel.discard(now_ns))
            self.has_news = True
        return self._channel("canary", now_ns)

    def announce(self, note: str, now_ns: int) -> Deployment:
        """The operator changes what is executed; a finding of that is then a note."""
        made = Deployment(now_ns, note)
        self._deployments.append(made)
        self._tell(made)
        self.has_news = True
        return made

    def use(self, panel: Panel, now_ns: int) -> None:
        """Judge by another baseline from now on; what the former's channels found is forgotten.

        The same one read again changes nothing: a page stays, and so do open windows.
        """
        if panel.digest == self._panel.digest:
            return
        self._panel = panel
        self._book.reopen()
        for made in self._deployments:
            self._tell(made)
        for name in self._executed:
            self._identify(name, now_ns)
        self.has_news = True

    def close(self) -> None:
        """Finish what is written to disk."""
        if self._recorder:
            self._recorder.close()

    def export(self, now_ns: int) -> Snapshot:
        """Everything that goes on after a restart."""
        states = {name: seat.export() for name, seat in self._seats.items()}
        saved = {
            name: Saved(self._bound_to(name), state)
            for name, state in states.items()
            if state is not None
        }
        own = {
            "book": self._book.export(),
            "deployments": [list(each) for each in self._deployments],
            "was_measured": self._was_measured,
            "history": self._history.export(),
        }
        return Snapshot(now_ns, {**saved, _OWN: Saved("", own)})

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from `export()`: a part that is refused starts again, and says so."""
        for name, seat in self._seats.items():
            seat.restore(partial(snapshot.state, name, self._bound_to(name)))
        own = snapshot.state(_OWN, "") or {}
        try:
            deployments = [Deployment(int(t), str(note)) for t, note in own["deployments"]]
            if "history" in own:  # a release before kept none
                self._history.restore(own["history"])
            self._book.restore(own["book"])
        except UNREADABLE as error:
            raise StateError(f"no state of the judges: {error!r}") from error
        self._deployments.extend(deployments)
        self._was_measured = own.get("was_measured") is True

    def _open_windows(self, schema: Schema) -> tuple[Windows, str]:
        return self._panel.open_windows(schema)  # of the panel in force then

    @property
    def _seats(self) -> dict[str, Seat[Any]]:
        canary: dict[str, Seat[Any]] = {"canary": self._canary} if self._canary else {}
        return {**canary, **self._panel.seats}

    def _bound_to(self, name: str) -> str:
        return self._panel.digest if name in self._panel.seats else ""

    def _observe(self, source: str, body: Signatures, now_ns: int) -> None:
        self._see_layout(source, body.layout, now_ns)
        signed = [Signed(source, body.layout, each) for each in body.signatures]
        traffic = [observation_of(each) for each in signed if not each.signature.canary]
        canaries = [each for each in signed if each.signature.canary]
        self._num_canary += len(canaries)
        self._was_measured = True
        self._count(0, len(signed), now_ns)
        if self._canary is not None:
            for each in canaries:
                self._canary.run("judge", partial(_take, each))
        self._record(source, body.layout, traffic, now_ns)
        # The clock of a backlog is when each item was read, or all of it would be late or early.
        self._judge(self._book.advance(now_ns))
        self._judge(self._book.update(body.layout, traffic, now_ns))

    def _record(
        self, source: str, layout: Layout, items: Sequence[Observation], now_ns: int
    ) -> None:
        if self._recorder is not None:
            identity = self._executed.get(source, Executed()).identity or Identity()
            for item in items:
                self._recorder.update(item, layout, identity, now_ns)

    def _judge(self, windows: Iterable[Closed]) -> None:
        for closed in windows:
            self.has_news = True
            if closed.baseline == self._panel.digest:
                for seat in self._panel.seats.values():
                    seat.run("judge", partial(_judge, closed.window))
                self._num_scored += "traffic" in self._panel.seats

    def _count(self, num_finished: int, num_measured: int, now_ns: int) -> None:
        # Whoever never measured anything has no tap that could have fallen silent.
        if self._panel.integrity is not None and self._was_measured:
            self._panel.integrity.run(
                "count", lambda channel: channel.count(num_finished, num_measured, now_ns)
            )

    def _overflow(self, source: str, totals: dict[int, int], now_ns: int) -> None:
        if self._panel.integrity is not None:
            self._panel.integrity.run(
                "look for overflow", lambda channel: channel.overflow(source, totals, now_ns)
            )

    def _tell(self, made: Deployment) -> None:
        if self._panel.integrity is not None:
            self._panel.integrity.run("announce", lambda channel: channel.announce(*made))

    def _see_layout(self, source: str, layout: Layout, now_ns: int) -> None:
        self._execute(source, now_ns, layout=layout)

    def _execute(self, source: str, now_ns: int, **told: Any) -> None:
        before = self._executed.get(source)
        if before is None and len(self._executed) >= MAX_SOURCES:
            return
        after = (before or Executed())._replace(**told)
        self._executed[source] = after
        if before is None or after[:2] != before[:2]:
            self._identify(source, now_ns)

    def _identify(self, source: str, now_ns: int) -> None:
        identity, layout, _ = self._executed[source]
        if identity is None:
            return
        if self._canary is not None:
            self._canary.run("identify", lambda channel: channel.identify(source, identity))
        # Each stage of a pipeline has a layout of its own: one that fits is enough.
        fits = not self._panel.doubt(self._layouts())
        header = self._panel.header(identity, None if fits else layout)
        if self._panel.integrity is not None and header is not None:
            self._panel.integrity.run("identify", lambda channel: channel.identify(header, now_ns))

    def _layouts(self) -> list[Layout]:
        return [each.layout for each in self._executed.values() if each.layout is not None]

    def _canaries(self) -> Canaries:
        if self._canary is None:
            return Canaries({}, is_learning=False)
        told: list[Canaries] = []
        self._canary.run("tell", lambda channel: told.append(_canaries(channel)))
        return told[0] if told else Canaries({}, is_learning=False)

    def _recording(self) -> Recording | None:
        made = self._recorder
        if made is None:
            return None
        return Recording(made.num_recorded, made.num_lost, made.num_removed, made.reason)

    def _channel(self, name: str, now_ns: int) -> ChannelView:
        seat = self._seats.get(name)
        if seat is None:
            return absent(name, CHANNELS[name])
        doubt = self._panel.doubt(self._layouts()) if name in _BY_LAYOUT else ""
        return seat.get(now_ns).doubted(doubt) if doubt else seat.get(now_ns)


def _take(signed: Signed, channel: CanaryChannel) -> None:
    channel.update(signed)


def _judge(window: Window, channel: WindowChannel) -> None:
    channel.update(window)


def _canaries(channel: CanaryChannel) -> Canaries:
    """How far each layer is off: its worst stream, of the worst source."""
    worst: dict[int, float] = {}
    for each in channel.deviations():
        layer = each.stream.layer
        if layer is not None and not each.score <= worst.get(layer, -1.0):
            worst[layer] = each.score
    return Canaries(worst, channel.is_learning)
