"""Simulated traffic without any change: what a month of window scores can look like, and stay well.

A world gives scores [T windows, p streams] of mean 0 and variance 1 over its whole life (one unit
is a window-sd), consecutive, so that a baseline and the month after it share its history. Streams
are dependent where real ones are: through factors that all of them load on.

`MIXED` worlds are of strata: requests counted and averaged by stratum, to be scored like served
ones.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], Floats]

WINDOW_MINUTES: Final = 5
DAY: Final = 24 * 60 // WINDOW_MINUTES  # windows
WEEK: Final = 7 * DAY
BASELINE: Final = 14 * DAY
MONTH: Final = 30 * DAY
NUM_STREAMS: Final = 96
NUM_FACTORS: Final = 4
AR_SHARE: Final = 0.3  # of a stream's variance, in the autocorrelated worlds
SEASON: Final = 0.7  # amplitude in window-sd, before the whole is scaled to variance 1
REPLICA_SPREAD: Final = 1.0  # of what a replica adds to every window it serves, in window-sd
REPLICA_LIFE: Final = 2 * DAY


def iid(rng: np.random.Generator, num_windows: int, num_streams: int) -> Floats:
    """Independent normal scores: the world every formula is derived in."""
    return rng.standard_normal((num_windows, num_streams))


def student(rng: np.random.Generator, num_windows: int, num_streams: int) -> Floats:
    """Student's t with 5 degrees of freedom: heavy tails on both sides."""
    return rng.standard_t(5, (num_windows, num_streams)) / math.sqrt(5 / 3)


def lognormal(rng: np.random.Generator, num_windows: int, num_streams: int) -> Floats:
    """Lognormal with sigma 1: a heavy tail on one side."""
    drawn = np.exp(rng.standard_normal((num_windows, num_streams)))
    return (drawn - math.exp(0.5)) / math.sqrt((math.e - 1) * math.e)


def autocorrelated(coefficient: float, share: float = AR_SHARE) -> Draw:
    """AR(1) for `share` of the variance, half of that common to all streams; the rest is iid."""

    def drawn(rng: np.random.Generator, num_windows: int, num_streams: int) -> Floats:
        own = _ar(rng, coefficient, (num_windows, num_streams))
        common = _ar(rng, coefficient, (num_windows, NUM_FACTORS)) @ _loadings(rng, num_streams)
        slow = (own + common) * math.sqrt(share / 2)
        fast: Floats = slow + math.sqrt(1 - share) * iid(rng, num_windows, num_streams)
        return fast

    return drawn


def seasonal(period: int) -> Draw:
    """A sine of amplitude `SEASON`, each stream with a phase of its own, over iid noise."""

    def drawn(rng: np.random.Generator, num_windows: int, num_streams: int) -> Floats:
        phase = rng.uniform(0, 2 * math.pi, num_streams)
        angle = 2 * math.pi * np.arange(num_windows)[:, None] / period + phase
        summed = SEASON * np.sin(angle) + iid(rng, num_windows, num_streams)
        return np.asarray(summed / math.sqrt(1 + SEASON**2 / 2))

    return drawn


def churned(rng: np.random.Generator, num_windows: int, num_streams: int) -> Floats:
    """Replicas come and go, each a little different: 4 at night, 12 at noon, some days old each.

    A window is the mean over its replicas, so a departure is a small lasting step.
    """
    num_replicas = 8 + np.rint(4 * np.sin(2 * math.pi * np.arange(num_windows) / DAY)).astype(int)
    leaves = rng.random((num_windows, 12)) < 1 / REPLICA_LIFE
    offsets = REPLICA_SPREAD * rng.standard_normal((12, num_streams))
    scores = iid(rng, num_windows, num_streams)
    for window in range(num_windows):
        for gone in np.flatnonzero(leaves[window]):
            offsets[gone] = REPLICA_SPREAD * rng.standard_normal(num_streams)
        scores[window] += offsets[: num_replicas[window]].mean(0)
    variance = 1 + REPLICA_SPREAD**2 * float(np.mean(1 / num_replicas))
    return np.asarray(scores / math.sqrt(variance))


SCORED: Final[Mapping[str, Draw]] = {
    "iid": iid,
    "t5": student,
    "lognormal": lognormal,
    "AR(0.9)": autocorrelated(0.9),
    "AR(0.98)": autocorrelated(0.98),
    "diurnal": seasonal(DAY),
    "weekly": seasonal(WEEK),
    "replica churn": churned,
}
# Worlds in which a plain CUSUM on z must fail, or the comparison proves nothing.
HARD: Final = ("t5", "lognormal", "AR(0.9)", "AR(0.98)")


class Day(NamedTuple):
    """Consecutive windows by stratum: num [T, G] requests; mean, m2 [T, G, p] as in `Moments`."""

    num: NDArray[np.int64]
    mean: Floats
    m2: Floats


class Mixed(NamedTuple):
    """A world of strata whose shares walk: nothing changes inside any stratum.

    centres: [G, p] mean of each stratum, several request-sd apart. walk: sd of a step of the log
    shares between two windows. between: sd of a window around its stratum's mean, request-sd.
    """

    centres: Floats
    num_requests: int = 600
    walk: float = 0.02
    between: float = 0.03

    def days(self, rng: np.random.Generator, num_windows: int) -> Iterator[Day]:
        """`num_windows` consecutive windows, a day at a time."""
        num_strata = len(self.centres)
        log_shares = np.zeros(num_strata)
        for start in range(0, num_windows, DAY):
            steps = self.walk * rng.standard_normal((min(DAY, num_windows - start), num_strata))
            walked = np.empty_like(steps)
            for window, step in enumerate(steps):
                # A pull back of a week, or in the end one stratum would have it all.
                log_shares = (1 - 1 / WEEK) * log_shares + step
                walked[window] = log_shares
            yield self._day(rng, walked)

    def _day(self, rng: np.random.Generator, log_shares: Floats) -> Day:
        shares = np.exp(log_shares)
        num = rng.poisson(self.num_requests * shares / shares.sum(1, keepdims=True))
        shape = (*num.shape, self.centres.shape[1])
        held = np.maximum(num, 1)[..., None]
        spread = np.sqrt(1 / held + self.between**2)
        mean = self.centres + spread * rng.standard_normal(shape)
        m2 = 1.0 * rng.chisquare(np.maximum(num - 1, 1)[..., None], shape)
        m2[num < 2] = 0.0
        mean[num < 1] = 0.0
        return Day(num, mean, m2)


def mixed(rng: np.random.Generator, num_strata: int = 6, num_streams: int = NUM_STREAMS) -> Mixed:
    """The mix random walk: strata whose means lie 2 request-sd apart on average."""
    return Mixed(math.sqrt(2) * rng.standard_normal((num_strata, num_streams)))


def pooled(day: Day) -> Floats:
    """[T, p] mean of each window over all its requests, whatever their stratum."""
    weights = day.num / day.num.sum(1, keepdims=True)
    return np.asarray(np.einsum("tg,tgp->tp", weights, day.mean))


def _ar(rng: np.random.Generator, coefficient: float, shape: tuple[int, int]) -> Floats:
    """[T, n] AR(1) of variance 1, from its stationary law."""
    noise = math.sqrt(1 - coefficient**2) * rng.standard_normal(shape)
    noise[0] /= math.sqrt(1 - coefficient**2)
    for window in range(1, len(noise)):
        noise[window] += coefficient * noise[window - 1]
    return noise


def _loadings(rng: np.random.Generator, num_streams: int) -> Floats:
    """[factors, p] of unit length for each stream."""
    drawn = rng.standard_normal((NUM_FACTORS, num_streams))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=0))
