"""What the contrast of replicas promises and how fast it is: the figures of decision 0015.

    python -m bench.contrast [--quick]

Prints three tables: the excess of the evidence's mean for values that are not normal, by clip;
pages of fleets whose windows scatter more than chance, with and without the learnt normaliser; the
windows until one bad replica of eight pages. All from seeds; some 4 minutes, 40 s quick.
"""

import argparse
import math
from collections.abc import Callable
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift.contrast import ContrastChannel
from sidecar.fold.drift.evidence import LAMBDAS
from sidecar.fold.drift.odds import Odds
from tests.fold.drift.fleets import LENGTH, SCHEMA, Fleet, shift

NUM_REPLICAS = 8
YEAR = 360 * 86_400 * 10**9 // LENGTH
Floats = NDArray[np.float64]
VALUES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Floats]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "Student t, 5": lambda rng, shape: rng.standard_t(5, shape),
    "exponential": lambda rng, shape: rng.standard_exponential(shape),
    "log-normal": lambda rng, shape: np.exp(rng.standard_normal(shape)),
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer windows and seeds")
    quick = parser.parse_args().quick
    excess(4_000 if quick else 40_000)
    bursts(1 if quick else 3, 250)
    delays(3 if quick else 7)


def excess(num_windows: int) -> None:
    """How much the limit A shrinks for one stream of values that are not normal; lambda = 2."""
    rng = np.random.default_rng(1)
    log_limit = math.log(YEAR * NUM_REPLICAS * 96 * 2 * len(LAMBDAS))
    print("values, requests a window; clip 4, clip 3: mean of e, factor by which A shrinks")
    for name, draw in VALUES.items():
        for num_requests in (30, 300):
            count = num_windows if num_requests == 30 else num_windows * 3 // 10
            scores = _scores(draw, rng, num_requests, count)
            told = [_excess(np.clip(scores, -clip, clip), log_limit) for clip in (4.0, 3.0)]
            cells = "  ".join(f"{mean:.2f} x{factor:.3g}" for mean, factor in told)
            print(f"  {name:14} {num_requests:4}  {cells}", flush=True)


def _scores(draw: Any, rng: np.random.Generator, num_requests: int, num_windows: int) -> Floats:
    parts = []
    for _ in range(0, num_windows, 1000):
        values = draw(rng, (min(1000, num_windows), NUM_REPLICAS, num_requests))
        means, sigma2 = values.mean(2), values.var(2, ddof=1).mean(1, keepdims=True)
        rest = (means.sum(1, keepdims=True) - means) / (NUM_REPLICAS - 1)
        spread = sigma2 / num_requests * (1 + 1 / (NUM_REPLICAS - 1))
        parts.append((means - rest) / np.sqrt(spread))
    return np.concatenate(parts).ravel()


def _excess(scores: Floats, log_limit: float, size: float = 2.0) -> tuple[float, float]:
    log_e = size * scores - size * size / 2
    low, high = 0.05, 3.0  # theta with E[e^theta] = 1 lies between
    for _ in range(40):
        theta = (low + high) / 2
        low, high = (theta, high) if np.exp(theta * log_e).mean() < 1 else (low, theta)
    return float(np.exp(log_e).mean()), math.exp(log_limit * (1 - low))


def bursts(num_seeds: int, num_windows: int) -> None:
    """First page of fleets that are alike but for bursts of like requests."""
    print(f"bursts: window of the first page of {num_windows}, by seed")
    for size in (1.5, 2.0):
        for name, normaliser in (("normal psi", _no_learning), ("learnt psi", _learning)):
            with normaliser():
                fleets = [Fleet(seed=seed, bursts=size) for seed in range(num_seeds)]
                first = [_first_page(fleet, num_windows) for fleet in fleets]
            print(f"  {size:.1f} sd  {name}: {first}", flush=True)


@contextmanager
def _learning() -> Any:
    yield


@contextmanager
def _no_learning() -> Any:
    normal = np.square(np.array(LAMBDAS))[:, None] / 2
    with patch.object(Odds, "psi", lambda odds: np.broadcast_to(normal, odds.total.shape)):
        yield


def delays(num_seeds: int) -> None:
    """Windows until the bad one of eight pages; it is always that one."""
    print(f"delay in windows, median of {num_seeds}: 1, 2 and 10 streams of {SCHEMA.num_streams}")
    for size in (2.0, 1.5, 1.0):
        row = []
        for num_streams in (1, 2, 10):
            found = []
            for seed in range(num_seeds):
                fleet = Fleet(seed=seed)
                fleet.shifts = {fleet.names[3]: shift(size, num_streams)}
                found.append(_first_page(fleet, 150, fleet.names[3]) or 150)
            row.append(median(found))
        print(f"  {size:.1f} sd: {row}", flush=True)


def _first_page(fleet: Fleet, num_windows: int, guilty: str = "") -> int | None:
    channel = ContrastChannel(SCHEMA, length_ns=LENGTH)
    channel.expect(fleet.names)
    for index in range(num_windows):
        for name, window in fleet.windows(index).items():
            channel.update(name, window)
        if channel.num_pages:
            paged = [each.name for each in channel.replicas() if each.state == "page"]
            assert guilty in {"", *paged}, paged
            return index
    return None


if __name__ == "__main__":
    main()
