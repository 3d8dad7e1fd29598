"""Each replica of a fleet beside all the others, in one window: who differs, and by how much.

No baseline takes part: the others, serving the same minutes of the same traffic, are the reference.

For replica q, stratum g and stream j, with `rest` the other replicas:

    r = mean_q - mean_rest,  v = sigma2 / n_q + sigma2 / n_rest,  t = sum_g r/v / sqrt(sum_g 1/v)

which is DRIFT's window score with the rest in place of the baseline. sigma2 is the variance within
replicas, pooled over them, so t is Student's with as many degrees of freedom, and is taken to the
normal score of the same tail by Wallace's formula ("Bounds on normal approximations to Student's
and the chi-square distributions", 1959), which is good to 0.02 up to 4.

Guarantees: a replica adds nothing to its own reference; whatever variance one of N tells, it makes
sigma2 at most 1 + 15 / N times what it is; a stream without enough values is NaN, never 0: no data
is not agreement.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift.moments import Moments

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

MIN_PER_REPLICA: Final = 5  # values of one stream in one stratum of one replica
MIN_PER_STRATUM: Final = 30  # and of all replicas together, for the variance
# One replica whose numbers are wild, or a lie, must not widen everybody's variance without end.
_MAX_SPREAD: Final = 16.0
_ROUNDING: Final = 2.0**-8  # of bfloat16: a constant's values differ by no less, relatively


class Differences(NamedTuple):
    """What one window says of N replicas and p streams.

    score: [N, p] standard normal when the replica is as the others; NaN without enough values.
    slack: [N, p] what a difference of one request's standard deviation would add to the score.
    """

    score: Floats
    slack: Floats


def differences(
    replicas: Sequence[Mapping[str, Moments]], is_reference: Flags, num_streams: int
) -> Differences:
    """Compare each of N replicas, given as its strata, with the others that may be a reference.

    is_reference: [N]; the others are judged, and count in nobody's reference.
    """
    shape = (len(replicas), num_streams)
    pulls, weights, slack = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    freedom = np.zeros(shape)
    for name in sorted({name for strata in replicas for name in strata}):
        held = _Stratum.of((strata.get(name) for strata in replicas), num_streams)
        difference, variance, sigma2, free = held.differences(is_reference)
        usable = np.isfinite(difference)
        pulls += np.where(usable, difference / variance, 0.0)
        weights += np.where(usable, 1.0 / variance, 0.0)
        slack += np.where(usable, np.sqrt(sigma2) / variance, 0.0)
        freedom += np.where(usable, free, 0.0)
    root = np.sqrt(np.where(weights > 0, weights, np.nan))
    return Differences(normal_score(pulls / root, freedom), slack / root)


def normal_score(t: Floats, freedom: Floats) -> Floats:
    """The standard normal value with about the tail that Student's `t` has.

    Wallace (1959): sign(t) (8 f + 1)/(8 f + 3) sqrt(f log(1 + t^2 / f)), f degrees of freedom.
    """
    f = np.maximum(freedom, 1.0)
    size: Floats = (8 * f + 1) / (8 * f + 3) * np.sqrt(f * np.log1p(np.square(t) / f))
    return np.copysign(size, t)


class _Stratum(NamedTuple):
    """One stratum of all replicas; arrays [N, p]."""

    n: Floats
    total: Floats
    m2: Floats

    @classmethod
    def of(cls, replicas: Iterable[Moments | None], num_streams: int) -> "_Stratum":
        nothing = Moments(num_streams)
        held = [each or nothing for each in replicas]
        n = np.stack([each.n for each in held]).astype(np.float64)
        return cls(n, np.stack([each.total for each in held]), np.stack([each.m2 for each in held]))

    def differences(self, is_reference: Flags) -> tuple[Floats, Floats, Floats, Floats]:
        """Return r, v [N, p], sigma2 and its degrees of freedom [p]; r is NaN where too little."""
        counted = np.where(is_reference[:, None], self.n, 0.0)
        all_n = counted.sum(0)
        # Deviations from the common mean: differences of large sums would lose what matters.
        center = (self.total * is_reference[:, None]).sum(0) / np.maximum(all_n, 1.0)
        deviation = self.total - self.n * center
        rest_n = all_n - counted
        rest_deviation = -np.where(is_reference[:, None], deviation, 0.0)  # the parts add up to 0
        free = np.maximum(counted - 1.0, 0.0)
        sigma2 = (self._bounded(free) * free).sum(0) / np.maximum(free.sum(0), 1.0)
        sigma2 = np.maximum(sigma2, np.square(_ROUNDING * center))
        ours, theirs = np.maximum(self.n, 1.0), np.maximum(rest_n, 1.0)
        variance = sigma2 * (1.0 / ours + 1.0 / theirs)
        enough = np.minimum(self.n, rest_n) >= MIN_PER_REPLICA
        enough &= (all_n >= MIN_PER_STRATUM) & (variance > 0)
        difference = np.where(enough, deviation / ours - rest_deviation / theirs, np.nan)
        return difference, np.where(variance > 0, variance, 1.0), sigma2, free.sum(0)

    def _bounded(self, free: Floats) -> Floats:
        """Variances [N, p], none more than `_MAX_SPREAD` times that of the middle replica."""
        told = free >= MIN_PER_REPLICA - 1
        variances = self.m2 / np.maximum(self.n - 1.0, 1.0)
        ordered = np.sort(np.where(told, variances, np.inf), axis=0)
        middle = np.maximum(told.sum(0) - 1, 0) // 2
        usual = np.take_along_axis(ordered, middle[None], axis=0)[0]
        bounded: Floats = np.minimum(variances, _MAX_SPREAD * usual)
        return bounded
