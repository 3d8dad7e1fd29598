"""Everything that one thread folds for drift: the windows, and the channels that judge them.

Guarantees: not thread-safe, and waits for nothing but its channels; a channel that fails takes no
other with it (`seat.Seat`); a view is a value that later items leave alone. Canary requests reach
the canary channel alone, all others the windows alone.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from sidecar.errors import StateError
from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.drift.channel import Channel
from sidecar.fold.drift.observation import observation_of
from sidecar.fold.drift.window import Window
from sidecar.fold.signatures import Signed
from sidecar.publish.book import Book, Closed, Counts
from sidecar.publish.seat import ChannelView, Seat, absent
from sidecar.wire.frame import Identity, Manifest, Serving, Signatures, Source, Status

MAX_SOURCES: Final = 256
MAX_DEPLOYMENTS: Final = 32
_VERSION: Final = 1
Told = Signatures | Status | Manifest | Serving

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
    manifest: Manifest | None = None


class WindowChannel(Channel, Protocol):
    """A channel that judges closed windows."""

    def update(self, window: Window) -> object:
        """Take one."""


class Terms(NamedTuple):
    """How is judged: the preset's name, and the length of a window."""

    preset: str
    window_ns: int

    @property
    def note(self) -> str:
        """What every reason begins with."""
        if self.preset == "production":
            return ""
        seconds = self.window_ns / 1e9
        return f"{self.preset} preset, windows of {seconds:g} s: its alarms prove nothing"


class Canaries(NamedTuple):
    """Rounds of known-safe tasks by outcome, and how far each layer was off in the last one."""

    rounds: dict[str, int]
    deviations: dict[int, float]


class DriftView(NamedTuple):
    """Everything publishable about drift at `now_ns`.

    channels: all there could be, also those that are not configured, in order of `CHANNELS`.
    executed: what each engine says that it executes, by source.
    baseline: what traffic is compared with; None without.
    num_canary: canary requests taken; num_left_out: items that found no room before the judges.
    num_errors: exceptions outside of the channels.
    windows: closed ones, the oldest first; forgotten: cursor of the last one no longer held.
    keeping: what is wrong with keeping the state over a restart; "" when all is well.
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
    canaries: Canaries = Canaries({}, {})
    num_canary: int = 0
    num_scored: int = 0
    num_errors: int = 0
    num_left_out: int = 0
    keeping: str = ""


class Judges:
    """Windows and channels, fed by one thread.

    terms: how is judged, for whoever reads.
    """

    def __init__(self, terms: Terms, book: Book, seats: Iterable[Seat[WindowChannel]]) -> None:
        self.has_news = False  # something closed that is worth keeping
        self.num_errors = 0
        self._terms = terms
        self._book = book
        self._seats = {seat.channel.name: seat for seat in seats}
        self._executed: dict[str, Executed] = {}
        self._deployments: deque[Deployment] = deque(maxlen=MAX_DEPLOYMENTS)
        self._num_canary = self._num_scored = 0

    def take(self, heard: Heard) -> None:
        """Take what a source told."""
        name = heard.source.name
        match heard.body:
            case Signatures() as body:
                self._observe(name, body, heard.now_ns)
            case Status() as body:
                self._execute(name, heard.source.role, identity=body.identity)
            case Manifest() as body:
                self._execute(name, heard.source.role, manifest=body)

    def advance(self, now_ns: int) -> None:
        """Close what is over by `now_ns`."""
        self._judge(self._book.advance(now_ns))

    def get(self, now_ns: int) -> DriftView:
        """Everything publishable at `now_ns`."""
        windows, forgotten = self._book.held()
        return DriftView(
            now_ns=now_ns,
            terms=self._terms,
            channels=tuple(self._channel(name, now_ns) for name in CHANNELS),
            executed=dict(self._executed),
            counts=self._book.counts(),
            windows=windows,
            forgotten=forgotten,
            deployments=tuple(self._deployments),
            num_canary=self._num_canary,
            num_scored=self._num_scored,
            num_errors=self.num_errors,
        )

    def acknowledge(self, name: str, now_ns: int) -> ChannelView:
        """Somebody has seen what channel `name` found; how it stands now."""
        seat = self._seats.get(name)
        if seat is not None:
            seat.run("acknowledge", lambda channel: channel.acknowledge(now_ns))
            self.has_news = True
        return self._channel(name, now_ns)

    def announce(self, note: str, now_ns: int) -> Deployment:
        """The operator changes what is executed; a finding of that is then a note."""
        made = Deployment(now_ns, note)
        self._deployments.append(made)
        self.has_news = True
        return made

    def export(self) -> dict[str, Any]:
        """Everything that goes on after a restart, msgpack-able."""
        channels = {name: seat.export() for name, seat in self._seats.items()}
        return {
            "version": _VERSION,
            "book": self._book.export(),
            "deployments": [list(each) for each in self._deployments],
            "channels": {name: state for name, state in channels.items() if state is not None},
        }

    def restore(self, exported: Any) -> None:
        """Go on from `exported`: each part that is refused starts again, and says so.

        Raises StateError when it is not a state of this version at all.
        """
        if not isinstance(exported, dict) or exported.get("version") != _VERSION:
            raise StateError(f"not a state of drift channels, version {_VERSION}")
        channels = exported.get("channels")
        for name, seat in self._seats.items():
            if isinstance(channels, Mapping) and name in channels:
                seat.restore(channels[name])
        try:
            self._deployments.extend(Deployment(*each) for each in exported["deployments"])
            self._book.restore(exported["book"])
        except (KeyError, TypeError) as error:
            raise StateError(f"a part is missing: {error!r}") from error

    def _observe(self, source: str, body: Signatures, now_ns: int) -> None:
        items = [observation_of(Signed(source, body.layout, each)) for each in body.signatures]
        traffic = [item for item in items if not item.canary]
        self._num_canary += len(items) - len(traffic)
        # The clock of a backlog is when each item was read, or all of it would be late or early.
        self._judge(self._book.advance(now_ns))
        self._judge(self._book.update(body.layout, traffic, now_ns))

    def _judge(self, windows: Iterable[Closed]) -> None:
        for closed in windows:
            self.has_news = True
            for seat in self._seats.values():
                seat.run("judge", partial(_judge, closed.window))
            self._num_scored += "traffic" in self._seats

    def _execute(self, source: str, role: str, **told: Any) -> None:
        if role == "engine" and (source in self._executed or len(self._executed) < MAX_SOURCES):
            self._executed[source] = self._executed.get(source, Executed())._replace(**told)

    def _channel(self, name: str, now_ns: int) -> ChannelView:
        seat = self._seats.get(name)
        return seat.get(now_ns) if seat else absent(name, CHANNELS[name])


def _judge(window: Window, channel: WindowChannel) -> None:
    channel.update(window)
