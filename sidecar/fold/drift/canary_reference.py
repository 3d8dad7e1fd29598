"""What canaries looked like while they were learnt: a mean and a floor for each prompt and stream.

    f[c,s] = max(rms over entries of the sd over repeats, floor of the stream)
    z[c,s] = sqrt(mean over entries j of s of ((y[c,j] - mu[c,j]) / f[c,s])^2)
    Z[s]   = median over prompts c of z[c,s]

so Z is about 1 for a repeat and does not depend on how noisy a kernel is. One prompt that behaves
oddly moves no median. After shared/DRIFT.md, canary channel; what is changed there is in
docs/decisions/0014-canary.md.
"""

from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift.canary_streams import CanaryStreams

MIN_REPEATS_SHARE: Final = 0.5  # of the rounds learnt: a prompt seen less has no reference
MIN_PROMPTS_SHARE: Final = 0.5  # of the prompts with a reference: a median of fewer says nothing
DISAGREEMENT: Final = 4.0

Floats = NDArray[np.float64]


class Reference(NamedTuple):
    """mean: [P, m], NaN where a prompt was seen too seldom. floor: [P, S]."""

    mean: Floats
    floor: Floats

    @classmethod
    def of(cls, streams: CanaryStreams, rounds: Floats) -> Self:
        """Learnt from `rounds` [n, P, m], n >= 2, NaN where nothing was measured."""
        count, mean, squares = _moments(rounds)
        mean[count < max(2.0, MIN_REPEATS_SHARE * len(rounds))] = np.nan
        with np.errstate(invalid="ignore", divide="ignore"):
            deviation = np.sqrt(squares / (count - 1))
        return cls(mean, _floor(streams, mean, np.where(np.isfinite(mean), deviation, np.nan)))

    def score(self, streams: CanaryStreams, values: Floats) -> Floats:
        """Z [S] of one round [P, m]; NaN for a stream that too few prompts measured."""
        z = np.sqrt(streams.mean_square(values - self.mean)) / self.floor
        return _median(z, MIN_PROMPTS_SHARE * np.isfinite(self.floor).sum(0))


def benign_scores(streams: CanaryStreams, rounds: Floats) -> Floats:
    """Z [n, S] of each of `rounds` [n, P, m] against the reference of the others."""
    others = [np.delete(rounds, each, axis=0) for each in range(len(rounds))]
    return np.array(
        [
            Reference.of(streams, rest).score(streams, values)
            for rest, values in zip(others, rounds, strict=True)
        ]
    )


def disagreement(streams: CanaryStreams, rounds: Floats) -> tuple[float, int]:
    """How far `rounds` [n, P, m] fall into two parts: (distance, first of the later part).

    The largest over streams and over ways to cut the rounds in two, of the median over prompts, of
    the distance of the two means in standard errors. About 1 for repeats, and at least
    `DISAGREEMENT` when the model changed in between by more than 2.4 of its floors; 0 for n < 4.
    """
    found = [(_distance(streams, rounds, cut), cut) for cut in range(2, len(rounds) - 1)]
    return max(found, key=lambda pair: pair[0], default=(0.0, 0))


def _distance(streams: CanaryStreams, rounds: Floats, cut: int) -> float:
    count, mean, squares = zip(*map(_moments, (rounds[:cut], rounds[cut:])), strict=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        pooled = np.sqrt((squares[0] + squares[1]) / (count[0] + count[1] - 2))
        error = np.sqrt(1 / count[0] + 1 / count[1])
        apart = (mean[1] - mean[0]) / error
    floor = _floor(streams, mean[0], pooled)
    z = np.sqrt(streams.mean_square(apart)) / floor
    scores = _median(z, np.full(z.shape[1], MIN_PROMPTS_SHARE * len(z)))
    return float(np.nanmax(scores, initial=0.0))


def _moments(rounds: Floats) -> tuple[Floats, Floats, Floats]:
    """Count, mean and sum of squared deviations [P, m] over rounds; mean is NaN where none is."""
    known = np.isfinite(rounds)
    count = known.sum(0).astype(np.float64)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, rounds, 0.0).sum(0) / count
    squares = np.where(known, (rounds - mean) ** 2, 0.0).sum(0)
    return count, mean, squares


def _floor(streams: CanaryStreams, mean: Floats, deviation: Floats) -> Floats:
    noise = np.sqrt(streams.mean_square(deviation))
    floor: Floats = np.fmax(noise, streams.floors(mean))
    return floor


def _median(z: Floats, at_least: Floats) -> Floats:
    """Median over prompts of z [P, S]; NaN where fewer than `at_least` [S] are known."""
    known = np.isfinite(z)
    count = known.sum(0)
    ordered = np.sort(np.where(known, z, np.inf), axis=0)
    columns = np.arange(z.shape[1])
    low = ordered[np.maximum((count - 1) // 2, 0), columns]
    high = ordered[np.minimum(count // 2, len(z) - 1), columns]
    median: Floats = np.where((count > 0) & (count >= at_least), (low + high) / 2, np.nan)
    return median
