"""The traffic channel: served requests against the baseline; it pages by the CUSUM pair.

D of a window (`baseline.score`) becomes a rank-normal score among the baseline's own windows, is
divided by the long-run deflation eta, and goes into the charts of every stream (DRIFT.md, "Traffic
page alarm"). What it may claim: internals shifted, given the mix of traffic; not why.

Guarantees: false pages are designed to be 3 months apart, checked by replay and simulation, not
guaranteed; the channel does not arm where it would be blind or guess; the baseline never adapts; a
stream that a window says nothing of keeps its charts as they were.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift import exported
from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.drift.cusum import Charts, Cusum
from sidecar.fold.drift.deflation import long_run_eta
from sidecar.fold.drift.exported import Plain
from sidecar.fold.drift.latch import Latch, Raised
from sidecar.fold.drift.policy import Policy
from sidecar.fold.drift.ranks import Ranks, largest
from sidecar.fold.drift.schema import Stream
from sidecar.fold.drift.verdict import Cause, ChannelState, Verdict, worst_causes
from sidecar.fold.drift.window import Window

Floats = NDArray[np.float64]

SCALE: Final = "cusum/scale"  # of the limits, in `Calibration.thresholds`; from the replay
_VERSION: Final = 1


class TrafficChannel:
    """Judges closed windows made with the baseline's plan.

    eta: the deflation in use; of the calibration, or of the reservoir where there is none.
    """

    name = "traffic"

    def __init__(self, baseline: Baseline, policy: Policy = Policy()) -> None:  # noqa: B008
        self._baseline = baseline
        self._policy = policy
        self._streams = baseline.schema.streams
        self._ranks = ranks_of(baseline.reservoir)
        self._num_judged = int(judgeable(baseline.reservoir).sum())
        calibration = baseline.calibration
        self.eta = calibration.eta if calibration else eta_of(baseline.reservoir)
        scale = calibration.thresholds.get(SCALE, 1.0) if calibration else 1.0
        page, ticket = (
            Charts.pair(max(self._num_judged, 1), length, baseline.num_windows)
            for length in (policy.run_length, policy.ticket_run_length)
        )
        self._cusum = Cusum(page.scaled(scale), len(self._streams))
        self._ticket_share = ticket.limits / page.limits
        self._refusal = self._refused()
        self._latch = Latch()
        self._judged_ns = 0

    def update(self, window: Window) -> Verdict:
        """Take a closed window."""
        if not self._refusal:
            self.judge(self._baseline.score(window), window.start_ns, window.end_ns)
        return self.get(window.end_ns)

    def judge(self, scores: Floats, start_ns: int, end_ns: int) -> None:
        """Take D [p] of the window between these Unix times; NaN where nothing was measured."""
        self._cusum.update(self._ranks.score(scores) / self.eta, start_ns)
        self._judged_ns = end_ns
        self._raise(end_ns)

    def get(self, now_ns: int) -> Verdict:  # noqa: ARG002 - the seam's; nothing here ages
        """What it concludes so far."""
        state = ChannelState.COLLECTING if self._refusal else ChannelState.ARMED
        calm = Verdict(
            self.name,
            state,
            self._policy.said(self._refusal or self._calm_reason()),
            self._level,
            causes=self._causes(),
            judged_ns=self._judged_ns,
        )
        return self._latch.get(calm)

    def acknowledge(self, now_ns: int) -> None:
        """Somebody has seen it: all charts start again at 0."""
        self._latch.acknowledge(now_ns)
        self._cusum.zero()

    def export(self) -> Plain:
        """What `restore` goes on from."""
        fields: dict[str, Any] = {
            "baseline": self._baseline.digest,
            "eta": self.eta,
            "cusum": self._cusum.export(),
            "latch": self._latch.export(),
            "judged_ns": self._judged_ns,
        }
        return exported.tagged(self.name, _VERSION, fields)

    def restore(self, exported_: Plain) -> None:
        """Go on from `export()`; StateError when it is of another baseline or policy."""
        held = exported.checked(exported_, self.name, _VERSION)
        exported.same(held, "baseline", self._baseline.digest)
        exported.same(held, "eta", self.eta)
        judged_ns = exported.number(held, "judged_ns")
        latch = Latch()
        latch.restore(held.get("latch"))
        self._cusum.restore(held.get("cusum"))
        self._latch, self._judged_ns = latch, judged_ns

    @property
    def _level(self) -> float:
        return float(self._cusum.shares().max(initial=0.0))

    @property
    def _may_page(self) -> bool:
        return self._baseline.num_windows >= self._policy.min_windows

    def _refused(self) -> str:
        """Why it is not armed; "" when it is."""
        num, policy = self._baseline.num_windows, self._policy
        if num < policy.min_ticket_windows:
            return (
                f"{num} of {policy.min_windows} windows, ticket only from "
                f"{policy.min_ticket_windows}; record longer and fit again"
            )
        if not self._num_judged:
            return "no stream moves in the baseline; fit it on served requests"
        reach, least = largest(num) / self.eta, float(self._cusum.charts.dead_bands.min())
        if reach <= least:
            return (
                f"deflation {self.eta:.1f} leaves scores of at most {reach:.2f}, within the "
                f"dead-band {least:.2f}: blind; fit on a longer or calmer time"
            )
        return ""

    def _calm_reason(self) -> str:
        if self._may_page:
            return "internals are as in the baseline, given the mix"
        return (
            f"ticket only: {self._baseline.num_windows} of {self._policy.min_windows} windows; "
            "record longer and fit again"
        )

    def _raise(self, end_ns: int) -> None:
        shares = self._cusum.shares()
        if not (shares >= self._ticket_share[:, None]).any():
            return
        state = ChannelState.PAGE if self._may_page and self._level >= 1 else ChannelState.TICKET
        causes = self._causes()
        self._latch.update(
            Raised(state, self._found(causes[0]), causes[0].since_ns, causes, end_ns)
        )

    def _found(self, cause: Cause) -> str:
        side = "above" if cause.side == "high" else "below"
        return self._policy.said(f"{cause.stream} is {side} the baseline for its stratum")

    def _causes(self) -> tuple[Cause, ...]:
        """The worst chart of each stream and side that is above 0."""
        shares, since_ns = self._cusum.shares(), self._cusum.since_ns
        causes = []
        for side, sign in (("high", 1.0), ("low", -1.0)):
            rows = np.flatnonzero(self._cusum.charts.signs == sign)
            chart = rows[shares[rows].argmax(axis=0)]
            for j in np.flatnonzero(shares[rows].max(axis=0) > 0):
                share, since = float(shares[chart[j], j]), int(since_ns[chart[j], j])
                causes.append(_cause(self._streams[j], side, share, since))
        return worst_causes(causes)


def eta_of(reservoir: Floats) -> float:
    """Long-run deflation of a reservoir's [K, p] own rank scores."""
    return long_run_eta(ranks_of(reservoir).score(reservoir))


def ranks_of(reservoir: Floats) -> Ranks:
    """Ranks among a reservoir [K, p]; what cannot be judged scores NaN."""
    return Ranks(np.where(judgeable(reservoir), reservoir, np.nan))


def judgeable(reservoir: Floats) -> NDArray[np.bool_]:
    """[p] streams that can alarm: they move, and half of the windows or more [K, p] say how.

    A constant has a rule of its own, and what is measured rarely has no reference worth the name.
    """
    known = np.isfinite(reservoir)
    low = np.min(reservoir, axis=0, initial=np.inf, where=known)
    high = np.max(reservoir, axis=0, initial=-np.inf, where=known)
    usable: NDArray[np.bool_] = (low < high) & (2 * known.sum(axis=0) >= len(reservoir))
    return usable


def _cause(stream: Stream, side: Any, share: float, since_ns: int) -> Cause:
    return Cause(stream.name, stream.layer, stream.signal, stream.phase, side, share, since_ns)
