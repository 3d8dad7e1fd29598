"""The integrity channel: catastrophic rules, which page at once.

    overflow      the residual stream held NaN or Inf, by the tap's own count
    non-finite    a request's signature has an infinite value
    constant      what was constant in the baseline had another value
    extreme       3 streams or more beyond 8 sd of the baseline in 2 windows one after the other
    header        another model, dtype, kernel, ... executes, and nobody announced a deployment
    silent        requests finish and none of them is measured

What was found and acknowledged is not raised again while it lasts, and is when it comes back.
Guarantees: an announced deployment is never a page; an unannounced one is, once per changed field;
without a baseline the rules that need one say nothing, and the reason says so.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from sidecar.errors import StateError
from sidecar.fold.drift import exported
from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.drift.exported import Plain
from sidecar.fold.drift.header import Header, compare
from sidecar.fold.drift.latch import Latch, Raised
from sidecar.fold.drift.rules import EXTREME_SD, Extremes, Mask, deviations, nonfinite
from sidecar.fold.drift.verdict import Cause, ChannelState, Verdict, worst_causes
from sidecar.fold.drift.window import Window

SILENT_NS: Final = 300 * 10**9  # one window's length
MIN_SILENT_REQUESTS: Final = 30  # as many as a window needs
ANNOUNCED_NS: Final = 6 * 3600 * 10**9  # for so long a deployment may take to arrive
_RULES: Final = ("overflow", "nonfinite", "constant", "extreme", "header", "silent")
_SAID: Final = {
    "overflow": "NaN or Inf in the residual stream: what was answered since is not to be trusted",
    "nonfinite": "not finite: look for overflow, a broken kernel or broken weights",
    "constant": "constant in the baseline and no longer: another model or engine is running",
    "extreme": f"more than {EXTREME_SD:.0f} sd from the baseline in 2 windows running",
    "header": "not what the baseline was made of; announce deployments, or look who changed it",
    "silent": "requests finish but the tap measures none of them; look at its state",
}
_MAX_SOURCES: Final = 256
_VERSION: Final = 2


class Announcement(NamedTuple):
    """A deployment that somebody told of: when, and in which words."""

    announced_ns: int
    note: str


class _Found(NamedTuple):
    """One thing that a rule finds now; `key` is what acknowledging it silences."""

    key: str
    cause: Cause


class IntegrityChannel:
    """Judges windows, headers and the tap's silence; every rule is armed by what it needs alone.

    announcement: the latest; kept as an annotation after its changes have arrived.
    """

    name = "integrity"

    def __init__(
        self, baseline: Baseline | None = None, min_silent_requests: int = MIN_SILENT_REQUESTS
    ) -> None:
        self.announcement: Announcement | None = None
        self._baseline = baseline
        self._min_silent_requests = min_silent_requests
        self._extremes = Extremes(baseline.schema.num_streams if baseline else 0)
        self._found: dict[str, tuple[_Found, ...]] = dict.fromkeys(_RULES, ())
        self._seen: dict[str, set[str]] = {rule: set() for rule in _RULES}
        self._accepted: set[str] = set()  # header values that an announcement covered
        self._overflowed: dict[str, dict[int, int]] = {}  # elements so far, by source and layer
        self._silence = (0, 0)  # requests without a measurement, and since when
        self._latch = Latch()
        self._judged_ns = 0

    def update(self, window: Window) -> Verdict:
        """Take a closed window; it is made with the baseline's plan where there is one."""
        if self._baseline is not None:
            schema = self._baseline.schema
            infinite = nonfinite(window, schema.num_streams) > 0
            self._take("nonfinite", window, self._marked(infinite, window))
            changed = self._baseline.changed_constants(window)
            self._take("constant", window, self._marked(changed, window))
            deviation = deviations(self._baseline.score(window), self._baseline.reservoir)
            lasting = self._extremes.update(deviation)
            low = deviation < 0
            self._take("extreme", window, self._marked(lasting, window, low))
        return self.get(window.end_ns)

    def identify(self, header: Header, now_ns: int) -> Verdict:
        """Take what the engine executes now."""
        if self._baseline is not None:
            refusals, findings, _ = compare(self._baseline.header, header)
            differences = {f"{each.field}={each.compared}": each for each in refusals + findings}
            if self._is_announced(now_ns):
                self._accepted |= differences.keys()
            since = {each.key: each.cause.since_ns for each in self._found["header"]}
            found = [
                _Found(key, _cause(f"header/{each.field}", since.get(key, now_ns)))
                for key, each in differences.items()
                if key not in self._accepted
            ]
            told = "; ".join(str(differences[each.key]) for each in found)
            self._judge("header", found, now_ns, told)
        return self.get(now_ns)

    def count(self, num_finished: int, num_measured: int, now_ns: int) -> Verdict:
        """Take how many requests finished since the last call, and how many were measured."""
        num, since_ns = self._silence
        if num_measured or not num:
            since_ns = now_ns
        num = 0 if num_measured else num + num_finished
        since_ns = min(since_ns, now_ns)  # a clock may be set back
        self._silence = num, since_ns
        is_silent = num >= self._min_silent_requests and now_ns - since_ns >= SILENT_NS
        found = [_Found("tap", _cause("tap", since_ns))] if is_silent else []
        self._judge("silent", found, now_ns)
        return self.get(now_ns)

    def overflow(self, source: str, totals: Mapping[int, int], now_ns: int) -> Verdict:
        """Take how many elements of the residual stream were NaN or Inf so far, by layer.

        A total that shrank is that of a new life of the source. Needs no baseline.
        """
        before = self._overflowed.get(source, {})
        if source in self._overflowed or len(self._overflowed) < _MAX_SOURCES:
            self._overflowed[source] = {layer: n for layer, n in totals.items() if n}
        since = {each.key: each.cause.since_ns for each in self._found["overflow"]}
        found = [each for each in self._found["overflow"] if each.key.split("/")[0] != source]
        for layer, total in totals.items():
            if total and total != before.get(layer, 0):
                key = f"{source}/{layer}"
                cause = _cause("overflow/residual", since.get(key, now_ns))
                found.append(_Found(key, cause._replace(layer=layer)))
        self._judge("overflow", found, now_ns)
        return self.get(now_ns)

    def announce(self, now_ns: int, note: str) -> None:
        """A deployment: what the header shows changed, now and in the next 6 hours, is wanted."""
        self.announcement = Announcement(now_ns, note)
        self._accepted |= {each.key for each in self._found["header"]}
        self._found["header"] = ()

    def get(self, now_ns: int) -> Verdict:  # noqa: ARG002 - the seam's; nothing here ages
        """What it concludes so far."""
        causes = worst_causes(each.cause for rule in _RULES for each in self._found[rule])
        calm = Verdict(
            self.name,
            ChannelState.ARMED,
            self._calm_reason(),
            float(bool(causes)),
            causes=causes,
            judged_ns=self._judged_ns,
        )
        return self._latch.get(calm)

    def acknowledge(self, now_ns: int) -> None:
        """Somebody has seen it: what is found now is not raised again while it lasts."""
        self._latch.acknowledge(now_ns)
        for rule, found in self._found.items():
            self._seen[rule] = {each.key for each in found}

    def export(self) -> Plain:
        """What `restore` goes on from."""
        fields: dict[str, Any] = {
            "baseline": self._digest,
            "runs": exported.packed(self._extremes.runs),
            "found": msgspec.to_builtins(self._found),
            "seen": {rule: sorted(keys) for rule, keys in self._seen.items()},
            "accepted": sorted(self._accepted),
            "silence": list(self._silence),
            "overflowed": {name: dict(totals) for name, totals in self._overflowed.items()},
            "announcement": msgspec.to_builtins(self.announcement),
            "latch": self._latch.export(),
            "judged_ns": self._judged_ns,
        }
        return exported.tagged(self.name, _VERSION, fields)

    def restore(self, exported_: Plain) -> None:
        """Go on from `export()`; StateError when it is of another baseline."""
        held = exported.checked(exported_, self.name, _VERSION)
        exported.same(held, "baseline", self._digest)
        state = _state_of(held)
        runs = exported.integers(held, "runs", self._extremes.runs.shape)
        latch = Latch()
        latch.restore(held.get("latch"))
        self._extremes.runs, self._latch = runs, latch
        self._found, self._seen = state.found, state.seen
        self._accepted, self._silence = state.accepted, state.silence
        self._overflowed = state.overflowed
        self.announcement, self._judged_ns = state.announcement, state.judged_ns

    @property
    def _digest(self) -> str:
        return self._baseline.digest if self._baseline else ""

    def _is_announced(self, now_ns: int) -> bool:
        told = self.announcement
        return told is not None and 0 <= now_ns - told.announced_ns <= ANNOUNCED_NS

    def _marked(self, mask: Mask, window: Window, low: Mask | None = None) -> list[_Found]:
        if self._baseline is None:
            return []
        found = []
        for j in np.flatnonzero(mask):
            stream = self._baseline.schema.streams[j]
            cause = Cause(
                stream.name,
                stream.layer,
                stream.signal,
                stream.phase,
                "low" if low is not None and low[j] else "high",
                1.0,
                window.start_ns,
            )
            found.append(_Found(stream.name, cause))
        return found

    def _take(self, rule: str, window: Window, found: list[_Found]) -> None:
        """What a rule finds in a window, with the time at which it was first found."""
        since = {each.key: each.cause.since_ns for each in self._found[rule]}
        dated = [
            each._replace(
                cause=each.cause._replace(since_ns=since.get(each.key, each.cause.since_ns))
            )
            for each in found
        ]
        self._judge(rule, dated, window.end_ns)

    def _judge(self, rule: str, found: Iterable[_Found], now_ns: int, told: str = "") -> None:
        """Raise what is found and was not seen; what is gone may be raised again."""
        self._found[rule] = tuple(found)
        self._seen[rule] &= {each.key for each in self._found[rule]}
        self._judged_ns = max(self._judged_ns, now_ns)
        fresh = [each.cause for each in self._found[rule] if each.key not in self._seen[rule]]
        if fresh:
            causes = worst_causes(fresh)
            more = f" and {len(fresh) - 1} more" if len(fresh) > 1 else ""
            reason = told or f"{causes[0].stream}{more}"
            raised = f"{reason}: {_SAID[rule]}"
            since_ns = min(each.since_ns or now_ns for each in fresh)
            self._latch.update(Raised(ChannelState.PAGE, raised, since_ns, causes, now_ns))

    def _calm_reason(self) -> str:
        if self._baseline is None:
            return "no baseline: only NaN, Inf and the tap's silence are judged; fit one"
        note = f"; deployment announced: {self.announcement.note}" if self.announcement else ""
        return f"no catastrophic rule is broken{note}"


class _State(NamedTuple):
    found: dict[str, tuple[_Found, ...]]
    seen: dict[str, set[str]]
    accepted: set[str]
    silence: tuple[int, int]
    overflowed: dict[str, dict[int, int]]
    announcement: Announcement | None
    judged_ns: int


def _state_of(held: Mapping[str, Any]) -> _State:
    try:
        state = msgspec.convert([held[field] for field in _State._fields], _State)
    except (KeyError, msgspec.ValidationError) as error:
        raise StateError(f"no state of integrity: {error}; delete the snapshot") from error
    if set(state.found) != set(_RULES) or set(state.seen) != set(_RULES):
        raise StateError("the state of integrity is of other rules; delete the snapshot")
    return state


def _cause(stream: str, since_ns: int | None) -> Cause:
    rule, _, field = stream.partition("/")
    return Cause(stream, None, field or rule, "", "high", 1.0, since_ns)
