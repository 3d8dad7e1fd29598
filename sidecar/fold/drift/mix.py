"""The mix channel: whether other kinds of requests come than in the baseline. Never a page.

    G = 2 sum over strata of O log(O / E),  E = n x share in the baseline  (Woolf 1957)
    excess = (G - (strata - 1)) / (2 n), nats by which the window's mix differs beyond sampling

Windows differ in mix all day long, so that G's own p-value would raise a ticket in most of them:
the excess is ranked among the baseline's own windows, deflated, and goes into one-sided charts with
a false ticket a week (as `traffic`). A pure mix shift is no drift: strata are compared with their
like. Guarantee: the state is never `page`.
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
from sidecar.fold.drift.verdict import Cause, ChannelState, Verdict, worst_causes
from sidecar.fold.drift.window import Window

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIN_NEW_REQUESTS: Final = 30  # of strata never seen, for a ticket at once
MIN_NEW_SHARE: Final = 0.01  # of a window
_VERSION: Final = 1


def shares_of(mix: Ints) -> Floats:
    """[G] share of each stratum in windows [K, G]; never 0, so that any stratum may come."""
    counts = mix.sum(axis=0) + 0.5
    shares: Floats = counts / counts.sum()
    return shares


def excess(mix: Ints, shares: Floats) -> Floats:
    """[...] nats of windows [..., G] beyond sampling; NaN for a window without requests."""
    n = mix.sum(axis=-1, keepdims=True)
    expected = n * shares
    ratio = np.divide(mix, expected, out=np.ones(mix.shape), where=(mix > 0) & (n > 0))
    g = 2 * (mix * np.log(ratio)).sum(axis=-1)
    total = n[..., 0]
    above: Floats = np.divide(
        g - (len(shares) - 1), 2 * total, out=np.full(g.shape, np.nan), where=total > 0
    )
    return above


class MixChannel:
    """Judges the counts by stratum of closed windows made with the baseline's plan."""

    name = "mix"

    def __init__(self, baseline: Baseline, policy: Policy = Policy()) -> None:  # noqa: B008
        self._baseline = baseline
        self._policy = policy
        self._shares = shares_of(baseline.mix)
        own = excess(baseline.mix, self._shares)[:, None]
        self._ranks = Ranks(own)
        self._eta = long_run_eta(self._ranks.score(own))
        charts = Charts.of(1, policy.ticket_run_length, baseline.num_windows, sides=(1.0,))
        self._cusum = Cusum(charts, 1)
        self._latest: Floats = np.zeros(len(self._shares))
        self._expects_new = True
        self._latch = Latch()
        self._judged_ns = 0

    def update(self, window: Window) -> Verdict:
        """Take a closed window."""
        if not self._refusal:
            counts = self._baseline.mix_of(window)
            scores = self._ranks.score(excess(counts, self._shares)[None]) / self._eta
            self._cusum.update(scores, window.start_ns)
            self._latest = counts / max(int(counts.sum()), 1) - self._shares
            self._judged_ns = window.end_ns
            self._raise(window)
        return self.get(window.end_ns)

    def get(self, now_ns: int) -> Verdict:  # noqa: ARG002 - the seam's; nothing here ages
        """What it concludes so far."""
        refusal = self._refusal
        calm = Verdict(
            self.name,
            ChannelState.COLLECTING if refusal else ChannelState.ARMED,
            self._policy.said(refusal or "the mix of requests is as in the baseline"),
            float(self._cusum.shares().max()),
            judged_ns=self._judged_ns,
        )
        return self._latch.get(calm)

    def acknowledge(self, now_ns: int) -> None:
        """Somebody has seen it: charts start at 0, and new strata are known from now on."""
        if self._latch.raised is not None:
            self._expects_new = False
        self._latch.acknowledge(now_ns)
        self._cusum.zero()

    def export(self) -> Plain:
        """What `restore` goes on from."""
        fields: dict[str, Any] = {
            "baseline": self._baseline.digest,
            "cusum": self._cusum.export(),
            "latest": exported.packed(self._latest),
            "expects_new": int(self._expects_new),
            "latch": self._latch.export(),
            "judged_ns": self._judged_ns,
        }
        return exported.tagged(self.name, _VERSION, fields)

    def restore(self, exported_: Plain) -> None:
        """Go on from `export()`; StateError when it is of another baseline or policy."""
        held = exported.checked(exported_, self.name, _VERSION)
        exported.same(held, "baseline", self._baseline.digest)
        latest = exported.floats(held, "latest", self._latest.shape)
        expects_new = bool(exported.number(held, "expects_new"))
        judged_ns = exported.number(held, "judged_ns")
        latch = Latch()
        latch.restore(held.get("latch"))
        self._cusum.restore(held.get("cusum"))
        self._latest, self._expects_new = latest, expects_new
        self._latch, self._judged_ns = latch, judged_ns

    @property
    def _refusal(self) -> str:
        num, least = self._baseline.num_windows, self._policy.min_ticket_windows
        if num < least:
            return f"{num} of {least} windows; record longer and fit again"
        if largest(num) / self._eta <= self._cusum.charts.dead_bands.min():
            return (
                f"deflation {self._eta:.1f}: the mix moves too slowly to tell a shift; fit longer"
            )
        return ""

    def _raise(self, window: Window) -> None:
        share = float(self._cusum.shares().max())
        if share >= 1:
            since_ns = int(self._cusum.since_ns[self._cusum.shares().argmax(), 0])
            self._ticket("other kinds of requests than in the baseline", share, since_ns, window)
        new = window.num_new
        if self._expects_new and new >= max(MIN_NEW_REQUESTS, MIN_NEW_SHARE * window.num_requests):
            reason = f"{new} requests of kinds that the baseline never saw; fit again with them"
            self._ticket(reason, share, window.start_ns, window)

    def _ticket(self, reason: str, share: float, since_ns: int, window: Window) -> None:
        causes = [
            Cause(stratum, None, "mix", "", "high" if by > 0 else "low", share, since_ns)
            for stratum, by in zip(self._baseline.plan.strata, self._latest, strict=True)
            if by
        ]
        order = np.argsort(-np.abs(self._latest[self._latest != 0]), kind="stable")
        worst = worst_causes(causes[at] for at in order)
        said = self._policy.said(reason)
        self._latch.update(Raised(ChannelState.TICKET, said, since_ns, worst, window.end_ns))
