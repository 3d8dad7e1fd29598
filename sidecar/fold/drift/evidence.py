"""Averaged Shiryaev-Roberts e-detectors: evidence that adds up whatever the streams depend on.

For c = (side, lambda) of every stream:

    log e_c = lambda (+-u - eps) - psi(lambda),  psi(lambda) = log mean_{i=0..K} exp(lambda g_i)
    R_c <- (1 + R_c) e_c ;  Rbar = mean_c R_c ;  it alarms when Rbar >= A

with the grid g of rank-normal scores (`ranks.grid`). Where E[e_c | past] <= 1 for every c,
(Rbar - number of windows) is a supermartingale, so the mean run length without a change is at least
A *for any dependence between streams* (DRIFT.md, "Evidence statistic"; Shin, Ramdas, Rinaldo,
"E-detectors", 2022). Guarantees: all is kept as logarithms and capped, so nothing overflows; a cap
only lowers R, and a NaN leaves its R as it was, so both keep the bound.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift import exported
from sidecar.fold.drift.exported import Plain
from sidecar.fold.drift.ranks import grid

Floats = NDArray[np.float64]

LAMBDAS: Final = (0.125, 0.25, 0.5, 1.0, 2.0)
MARGIN: Final = 0.25  # eps0, in window-sd: shifts below it are no evidence
BOTH: Final = (1.0, -1.0)  # sides: high, low
MAX_LOG: Final = 500.0  # of any R; exp of it is finite, and far above every A
_KEPT: Final = 2  # of the largest lambdas, however short the baseline is
_KIND: Final = "evidence"
_VERSION: Final = 1


class Bets(NamedTuple):
    """What is bet on rank-normal scores.

    signs: [s, 1, 1] of the sides. lambdas, psi: [l, 1]. margin: eps, in units of u.
    """

    signs: Floats
    lambdas: Floats
    psi: Floats
    margin: float

    @classmethod
    def of_ranks(
        cls,
        num_windows: int,
        eta: float = 1.0,
        lambdas: Sequence[float] = LAMBDAS,
        margin: float = MARGIN,
        sides: Sequence[float] = BOTH,
    ) -> Self:
        """Bets on scores against `num_windows` baseline windows, divided by eta.

        eps = max(margin / eta, 2 / sqrt K); of lambda < 4 eta / sqrt K only the two largest stay.
        """
        root = math.sqrt(max(num_windows, 1))
        ordered = sorted(lambdas)
        kept = [each for each in ordered[:-_KEPT] if each >= 4 * eta / root] + ordered[-_KEPT:]
        return cls._made(kept, num_windows, max(margin / eta, 2 / root), sides)

    @classmethod
    def exchangeable(
        cls, num_ranks: int, lambdas: Sequence[float] = LAMBDAS, sides: Sequence[float] = BOTH
    ) -> Self:
        """Bets whose condition genuinely holds: ranks within permutations; eps = 0, eta = 1."""
        return cls._made(sorted(lambdas), num_ranks, 0.0, sides)

    @classmethod
    def _made(
        cls, lambdas: Sequence[float], num_windows: int, margin: float, sides: Sequence[float]
    ) -> Self:
        scores = grid(num_windows)
        psi = [math.log(np.exp(each * scores).mean()) for each in lambdas]
        signs = np.array(sides, np.float64)
        return cls(signs[:, None, None], _column(lambdas), _column(psi), margin)

    def log_evidence(self, scores: Floats) -> Floats:
        """The log e [s, l, p] of scores u [p]; NaN for NaN."""
        log_e: Floats = self.lambdas * (self.signs * scores - self.margin) - self.psi
        return log_e


class Evidence:
    """The e-detectors of p streams with s sides and l bets each; times in Unix ns.

    log_r: float64 [s, l, p], log R_c, -Inf for 0. run_length: A, in windows.
    since_ns: int64 [s, l, p], the last time that the log-likelihood of "changed" was at its lowest,
    which is where its CUSUM was 0 (the estimate of Page, 1954).
    """

    def __init__(self, shape: tuple[int, int, int], run_length: float) -> None:
        self.run_length = run_length
        self.log_r: Floats = np.full(shape, -np.inf)
        self.since_ns: NDArray[np.int64] = np.zeros(shape, np.int64)
        self._likelihood: Floats = np.zeros(shape)

    @classmethod
    def of(cls, bets: Bets, num_streams: int, run_length: float) -> Self:
        """With room for what `bets.log_evidence` gives of `num_streams` streams."""
        return cls((len(bets.signs), len(bets.lambdas), num_streams), run_length)

    def update(self, log_e: Floats, start_ns: int) -> None:
        """Take log e [s, l, p] of the window, or round, that began at `start_ns`."""
        told = ~np.isnan(log_e)
        self.since_ns[self._likelihood == 0] = start_ns
        grown = np.minimum(np.logaddexp(0.0, self.log_r) + log_e, MAX_LOG)
        self.log_r = np.where(told, grown, self.log_r)
        likelihood = np.maximum(self._likelihood + log_e, 0.0)
        self._likelihood = np.where(told, likelihood, self._likelihood)

    @property
    def log_mean(self) -> float:
        """The logarithm of Rbar; -Inf at the start."""
        return _log_sum(self.log_r) - math.log(self.log_r.size) if self.log_r.size else -math.inf

    @property
    def is_alarming(self) -> bool:
        """Rbar >= A."""
        return self.log_mean >= math.log(self.run_length)

    @property
    def level(self) -> float:
        """log(1 + Rbar) / log(1 + A): 0 without evidence, 1 and more when it alarms."""
        return float(np.logaddexp(0.0, self.log_mean)) / math.log1p(self.run_length)

    def shares(self) -> Floats:
        """[s, p]: the level that Rbar would have from this side of this stream alone."""
        totals = np.logaddexp.reduce(self.log_r, axis=1) - math.log(max(self.log_r.size, 1))
        shares: Floats = np.logaddexp(0.0, totals) / math.log1p(self.run_length)
        return shares

    def portions(self) -> Floats:
        """[s, p]: sum of R_c / sum of all R, adding up to 1; 0 without evidence."""
        totals = np.logaddexp.reduce(self.log_r, axis=1)
        whole = _log_sum(totals)
        return np.exp(totals - whole) if math.isfinite(whole) else np.zeros_like(totals)

    def onsets(self) -> NDArray[np.int64]:
        """[s, p]: Unix ns of the change, by the lambda with the most evidence."""
        most = self.log_r.argmax(axis=1, keepdims=True)
        onsets: NDArray[np.int64] = np.take_along_axis(self.since_ns, most, axis=1)[:, 0]
        return onsets

    def zero(self) -> None:
        """Start again, as after an acknowledged page."""
        self.log_r[:] = -np.inf
        self._likelihood[:] = 0.0

    def export(self) -> Plain:
        """What `restore` goes on from."""
        fields = {
            "run_length": float(self.run_length),
            "log_r": exported.packed(self.log_r),
            "likelihood": exported.packed(self._likelihood),
            "since_ns": exported.packed(self.since_ns),
        }
        return exported.tagged(_KIND, _VERSION, fields)

    def restore(self, plain: object) -> None:
        """Go on from `export()`; StateError when it is of another shape or another A."""
        held = exported.checked(plain, _KIND, _VERSION)
        exported.same(held, "run_length", float(self.run_length))
        shape = self.log_r.shape
        log_r = exported.floats(held, "log_r", shape)
        likelihood = exported.floats(held, "likelihood", shape)
        since_ns = exported.integers(held, "since_ns", shape)
        self.log_r, self._likelihood, self.since_ns = log_r, likelihood, since_ns


def _column(values: Sequence[float]) -> Floats:
    return np.array(values, np.float64)[:, None]


def _log_sum(logs: Floats) -> float:
    most = float(logs.max(initial=-np.inf))
    return most + math.log(np.exp(logs - most).sum()) if math.isfinite(most) else -math.inf
