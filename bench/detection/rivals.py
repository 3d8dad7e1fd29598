"""What people use instead, as their documentation has it, on the same windows.

Two look at the requests of a window against those of a reference, and forget it afterwards:
Kolmogorov-Smirnov at 5 % with Bonferroni's correction, and the population stability index over
deciles with its usual limit of 0.2. Two follow the window means: CUSUM with the textbook's k = 1/2
and h = 5 (Montgomery, Introduction to Statistical Quality Control), and river's ADWIN as it comes.

Each gives [T] bool: in which windows at least one stream alarms.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from river.drift import ADWIN
from scipy.stats import kstwo

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

LEVEL: Final = 0.05
PSI_LIMIT: Final = 0.2
PSI_BINS: Final = 10
PSI_SMALLEST: Final = 1e-4  # in place of an empty bin, or the index is infinite
TEXTBOOK_K, TEXTBOOK_H = 0.5, 5.0


def requests_of(scores: Floats, rng: np.random.Generator, num: int) -> Floats:
    """[T, num, p] requests, of sd 1, whose window means are exactly scores / sqrt(num)."""
    noise = rng.standard_normal((len(scores), num, scores.shape[1]))
    return np.asarray(noise - noise.mean(1, keepdims=True) + scores[:, None] / np.sqrt(num))


def kolmogorov_smirnov(reference: Floats, windows: Floats) -> Bools:
    """reference: [N, p] requests. windows: [T, n, p]. Two-sample test, of n N / (n + N) values."""
    num_windows, num, num_streams = windows.shape
    size = round(num * len(reference) / (num + len(reference)))
    limit = float(kstwo.isf(LEVEL / num_streams, size))
    largest = np.zeros(num_windows)
    below = np.arange(num)[:, None] / num
    for stream in range(num_streams):
        ordered = np.sort(windows[:, :, stream], axis=1)
        share = np.searchsorted(np.sort(reference[:, stream]), ordered) / len(reference)
        apart = np.maximum(share.T - below, below + 1 / num - share.T).max(0)
        np.maximum(largest, apart, out=largest)
    return largest > limit


def stability_index(reference: Floats, windows: Floats) -> Bools:
    """reference: [N, p] requests. windows: [T, n, p]. Sum over bins of (q - p) log(q / p)."""
    num_windows, num, num_streams = windows.shape
    largest = np.zeros(num_windows)
    expected = 1 / PSI_BINS
    for stream in range(num_streams):
        edges = np.quantile(reference[:, stream], np.linspace(0, 1, PSI_BINS + 1)[1:-1])
        places = np.searchsorted(edges, windows[:, :, stream])
        cells = places + PSI_BINS * np.arange(num_windows)[:, None]
        counts = np.bincount(cells.ravel(), minlength=PSI_BINS * num_windows)
        found = np.maximum(counts.reshape(num_windows, PSI_BINS) / num, PSI_SMALLEST)
        index = ((found - expected) * np.log(found / expected)).sum(1)
        np.maximum(largest, index, out=largest)
    return largest > PSI_LIMIT


def cusum(z: Floats, allowance: float, limit: float) -> Bools:
    """z: [T, p] raw scores over mean and sd of the baseline. Both sides; back to 0 at an alarm."""
    high, low = np.zeros(z.shape[1]), np.zeros(z.shape[1])
    alarms = np.zeros(len(z), bool)
    for window, each in enumerate(z):
        high = np.maximum(0.0, high + each - allowance)
        low = np.maximum(0.0, low - each - allowance)
        if max(high.max(), low.max()) >= limit:
            alarms[window] = True
            high[:], low[:] = 0.0, 0.0
    return alarms


def adaptive_window(z: Floats) -> Bools:
    """z: [T, p] raw scores; one ADWIN a stream (Bifet and Gavalda, 2007), as river sets it up."""
    alarms = np.zeros(len(z), bool)
    for stream in z.T:
        detector = ADWIN()
        for window, value in enumerate(stream.tolist()):
            detector.update(value)
            alarms[window] |= detector.drift_detected
    return alarms


def standardised(baseline: Floats, scores: Floats) -> Floats:
    """[T, p] z of `scores` over the mean and sd of the `baseline` [K, p]."""
    return np.asarray((scores - baseline.mean(0)) / baseline.std(0))


def pages(alarms: Bools) -> int:
    """Times somebody is woken: runs of alarming windows, each of which counts once."""
    return int(alarms[:1].sum() + (alarms[1:] & ~alarms[:-1]).sum())


def textbook(before: Floats, after: Floats) -> Bools:
    """CUSUM with the textbook's k and h on z; `before` has done its work in making them z."""
    del before
    return cusum(after, TEXTBOOK_K, TEXTBOOK_H)


def adaptive(before: Floats, after: Floats) -> Bools:
    """ADWIN that has read z of the baseline first."""
    return adaptive_window(np.concatenate([before, after]))[len(before) :]


# (requests of the reference [N, p], requests of windows [T, n, p])
BY_REQUESTS: Final[Mapping[str, Callable[[Floats, Floats], Bools]]] = {
    "KS, 5 % with Bonferroni": kolmogorov_smirnov,
    "PSI > 0.2": stability_index,
}
# (z of the baseline [K, p], z of windows [T, p])
BY_MEANS: Final[Mapping[str, Callable[[Floats, Floats], Bools]]] = {
    "CUSUM, textbook limits": textbook,
    "river ADWIN": adaptive,
}
RIVALS: Final = (*BY_REQUESTS, *BY_MEANS)
