"""The request tail: single requests unlike any of the baseline, and how often they come.

For a request in stratum g, and each group of its entries (a phase and layer, or a sketch):

    z = (x - mean_g) / sd_g,  T = z' Rho^-1 z (Mahalanobis 1936),
    S = max over groups of T as a normal deviate,  p = (1 + #{calibration >= S}) / (n + 1)

p is a conformal p-value (Vovk et al. 2005): P(p <= a) <= a for requests like those of the
calibration. Groups differ in size, so T is brought to one scale by Wilson and Hilferty's cube root
(1931) before the maximum; without it the largest group would win always. A request with p < 1e-3 is
in the tail. Of n requests in a window, Y such give evidence (DRIFT.md, "Request tail channel"):

    log e = Y log(lam1 / lam0) - (lam1 - lam0),  lam0 = 2 x 1e-3 x n,  lam1 in {2, 4, 16} lam0

Guarantees: a request with nothing whole to judge is not judged; the log-evidence of a binomial
count is at most that of the Poisson count it is taken for. A trigger used once is not detectable as
drift: only the score of its request shows it.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift import exported
from sidecar.fold.drift.baseline import Baseline, TailCalibration
from sidecar.fold.drift.evidence import Evidence
from sidecar.fold.drift.exported import Plain
from sidecar.fold.drift.latch import Latch, Raised
from sidecar.fold.drift.observation import Observation
from sidecar.fold.drift.policy import Policy
from sidecar.fold.drift.related import Group, Related
from sidecar.fold.drift.strata import stratum_of
from sidecar.fold.drift.verdict import Cause, ChannelState, Verdict
from sidecar.fold.drift.window import Window

Floats = NDArray[np.float64]

ALPHA: Final = 1e-3  # p below it is the tail
MIN_CALIBRATION: Final = round(10 / ALPHA)  # requests
MARGIN: Final = 2.0  # more of them than in the baseline is no evidence below this factor
FACTORS: Final = (2.0, 4.0, 16.0)
_VERSION: Final = 1


class TailScore(NamedTuple):
    """How unusual one request is.

    deviation: S, a normal deviate of its most unusual group. group, layer: which one.
    p: conformal; NaN without a calibration.
    """

    deviation: float
    group: str
    layer: int
    p: float


class TailRule:
    """Judges requests one by one against a baseline; a `window.TailRule`."""

    def __init__(self, baseline: Baseline) -> None:
        self._plan = baseline.plan
        self._tail = baseline.tail
        sizes = sorted({len(each.group.places) for each in baseline.related})
        self._batches = [
            _Batch([each for each in baseline.related if len(each.group.places) == size])
            for size in sizes
        ]

    @property
    def is_calibrated(self) -> bool:
        """Whether there are requests enough for a p-value below `ALPHA` to mean something."""
        return self._tail is not None and self._tail.num_requests >= MIN_CALIBRATION

    def __call__(self, item: Observation) -> bool | None:
        """Whether the request is in the tail; None when it cannot be said."""
        score = self.score(item) if self.is_calibrated else None
        return None if score is None else score.p < ALPHA

    def score(self, item: Observation) -> TailScore | None:
        """How unusual the request is; None when no group of it was measured whole."""
        values = item.values.astype(np.float64)
        place = self._plan.place(stratum_of(item))
        found = [best for each in self._batches if (best := each.worst(values, place))]
        if not found:
            return None
        deviation, related = max(found, key=lambda each: each[0])
        p = math.nan if self._tail is None else conformal(self._tail, deviation)
        return TailScore(deviation, related.group.name, related.group.layer, p)

    def deviations(self, item: Observation) -> list[tuple[Group, float]]:
        """Every group that was measured whole, and its normal deviate; the largest is `score`'s."""
        values = item.values.astype(np.float64)
        place = self._plan.place(stratum_of(item))
        return [each for batch in self._batches for each in batch.all_of(values, place)]


class _Batch:
    """Groups of d entries each, judged at once: m groups, G strata."""

    def __init__(self, groups: list[Related]) -> None:
        self._groups = groups
        self._places = np.array([each.group.places for each in groups], np.intp)  # [m, d]
        self._mean = np.stack([each.mean for each in groups])  # [m, G, d]
        sd = np.stack([each.sd for each in groups])
        self._sd = np.where(sd > 0, sd, np.inf)  # a constant has a rule of its own
        self._whiten = np.linalg.inv(np.linalg.cholesky(np.stack([g.rho for g in groups])))

    def worst(self, values: Floats, place: int) -> tuple[float, Related] | None:
        """The most unusual group measured whole, and its deviate."""
        deviates = self._deviates(values, place)
        if not np.isfinite(deviates).any():
            return None
        at = int(np.nanargmax(np.where(np.isfinite(deviates), deviates, np.nan)))
        return float(deviates[at]), self._groups[at]

    def all_of(self, values: Floats, place: int) -> Iterator[tuple[Group, float]]:
        """Groups measured whole, with their deviates."""
        deviates = self._deviates(values, place).tolist()
        for related, deviate in zip(self._groups, deviates, strict=True):
            if math.isfinite(deviate):
                yield related.group, deviate

    def _deviates(self, values: Floats, place: int) -> Floats:
        """[m]; not finite where something was not measured."""
        z: Floats = (values[self._places] - self._mean[:, place]) / self._sd[:, place]
        squared = np.square(np.einsum("mij,mj->mi", self._whiten, z)).sum(axis=1)
        return normal_deviate(squared, z.shape[1])


def normal_deviate(squared: Floats, size: int) -> Floats:
    """A chi-squared of `size` degrees as a normal deviate: ((T/d)^(1/3) - 1 + v) / sqrt v.

    v = 2 / (9 d); Wilson and Hilferty, PNAS 17 (1931).
    """
    v = 2 / (9 * size)
    deviate: Floats = (np.cbrt(squared / size) - 1 + v) / math.sqrt(v)
    return deviate


def conformal(tail: TailCalibration, deviation: float) -> float:
    """P = (1 + #{calibration >= S}) / (n + 1); of many, only the largest are kept, as one asks."""
    at_least = len(tail.largest) - int(np.searchsorted(tail.largest, deviation, "left"))
    return (1 + at_least) / (tail.num_requests + 1)


def calibrated_tail(baseline: Baseline, observations: Iterable[Observation]) -> TailCalibration:
    """The calibration by these benign requests; canary requests are left out."""
    rule = TailRule(baseline)
    scores = [rule.score(each) for each in observations if not each.canary]
    return TailCalibration.of(np.array([each.deviation for each in scores if each], np.float64))


def log_evidence(num_judged: int, num_beyond: int) -> Floats:
    """Log e [1, 3, 1] of one window, one per factor."""
    factors = np.array(FACTORS)
    expected = MARGIN * ALPHA * num_judged
    log_e: Floats = num_beyond * np.log(factors) - (factors - 1) * expected
    return log_e[None, :, None]


class TailChannel:
    """Whether more requests than usual are in the tail; pages at most once in 12 months by chance.

    A ticket where the same evidence is reached by chance once a week. The rate is a bound: it holds
    for any dependence between windows as long as the tail is at most twice what it was.
    """

    name = "tail"

    def __init__(self, baseline: Baseline, policy: Policy = Policy()) -> None:  # noqa: B008
        self._digest = baseline.digest
        self._tail = baseline.tail
        self._policy = policy
        self._evidence = Evidence((1, len(FACTORS), 1), policy.contrast_run_length)
        self._latch = Latch()
        self._judged_ns = 0

    def update(self, window: Window) -> Verdict:
        """Take the counts of a closed window."""
        if self._is_armed and window.tail.num_judged:
            self._evidence.update(log_evidence(*window.tail), window.start_ns)
            self._judged_ns = window.end_ns
            self._raise(window.end_ns)
        return self.get(window.end_ns)

    def get(self, now_ns: int) -> Verdict:  # noqa: ARG002 - the seam's; nothing here ages
        """What it concludes so far."""
        if not self._is_armed:
            num = self._tail.num_requests if self._tail else 0
            reason = (
                f"{num} of {MIN_CALIBRATION} requests of calibration; "
                "record more and run `sidecar baseline calibrate`"
            )
            return Verdict(self.name, ChannelState.COLLECTING, reason, judged_ns=self._judged_ns)
        reason = "no more unusual requests than in the baseline"
        causes = (self._cause(),) if self._evidence.level > 0 else ()
        calm = Verdict(
            self.name,
            ChannelState.ARMED,
            self._policy.said(reason),
            self._evidence.level,
            causes=causes,
            judged_ns=self._judged_ns,
        )
        return self._latch.get(calm)

    def acknowledge(self, now_ns: int) -> None:
        """Somebody has seen it: the evidence starts again at 0."""
        self._latch.acknowledge(now_ns)
        self._evidence.zero()

    def export(self) -> Plain:
        """What `restore` goes on from."""
        fields: dict[str, Any] = {
            "baseline": self._digest,
            "evidence": self._evidence.export(),
            "latch": self._latch.export(),
            "judged_ns": self._judged_ns,
        }
        return exported.tagged(self.name, _VERSION, fields)

    def restore(self, exported_: Plain) -> None:
        """Go on from `export()`; StateError when it is of another baseline or policy."""
        held = exported.checked(exported_, self.name, _VERSION)
        exported.same(held, "baseline", self._digest)
        judged_ns = exported.number(held, "judged_ns")
        latch = Latch()
        latch.restore(held.get("latch"))
        self._evidence.restore(held.get("evidence"))
        self._latch, self._judged_ns = latch, judged_ns

    @property
    def _is_armed(self) -> bool:
        return self._tail is not None and self._tail.num_requests >= MIN_CALIBRATION

    def _cause(self) -> Cause:
        since_ns = int(self._evidence.onsets()[0, 0])
        return Cause("request_tail", None, "unusual_requests", "", "high", self._level, since_ns)

    @property
    def _level(self) -> float:
        return self._evidence.level

    def _raise(self, end_ns: int) -> None:
        week = math.log1p(self._policy.ticket_run_length) / math.log1p(self._evidence.run_length)
        if self._evidence.level < week:
            return
        state = ChannelState.PAGE if self._evidence.is_alarming else ChannelState.TICKET
        cause = self._cause()
        reason = "more requests than in the baseline are unlike any of it; read their captures"
        self._latch.update(
            Raised(state, self._policy.said(reason), cause.since_ns, (cause,), end_ns)
        )
