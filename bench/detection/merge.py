"""The merge law on real requests: eight replicas fitted apart and merged in any order.

Differences are of the pooled fit: of means in units of their stratum's sd, of M2 and of window
scores relative to their own size (a score's at least 1).
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.detection.pools import Pool
from bench.detection.stand import Stand
from bench.detection.traffic import PER_WINDOW, observations
from bench.report import Section, progress
from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.drift.fit import Fit
from sidecar.fold.drift.header import Header
from sidecar.fold.drift.observation import Observation
from sidecar.fold.drift.plan import Survey
from sidecar.fold.drift.schema import Schema
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout

LIMIT: Final = 1e-12
REPLICAS: Final = 8

Floats = NDArray[np.float64]


class Size(NamedTuple):
    """Requests to fit, and orders to merge in."""

    requests: int = 12_288
    orders: int = 40


class Apart(NamedTuple):
    """Largest differences from the pooled fit."""

    mean: float
    m2: float
    score: float


def run(size: Size) -> Section:
    """Real requests, randomly routed, merged in random orders."""
    stand = Stand.of()
    progress("merge: pool")
    pool = stand.pool("baseline", size.requests)
    found = compared(stand.layout(), pool, size.orders, np.random.default_rng(17))
    worst = Apart(*(max(each) for each in zip(*found, strict=True)))
    is_kept = all(each <= LIMIT for each in worst)
    return Section(
        f"Merge law: {REPLICAS} replicas in {size.orders} random orders, of {pool.num} requests",
        ("largest difference from the pooled fit", "figure"),
        [
            ["mean, in sd", f"{worst.mean:.1e}"],
            ["M2, relative", f"{worst.m2:.1e}"],
            ["window score D, relative", f"{worst.score:.1e}"],
        ],
        {"size": size._asdict(), "worst": worst._asdict(), "limit": LIMIT, "is_kept": is_kept},
        [f"Limit {LIMIT:g}: {'kept' if is_kept else 'BROKEN'}."],
    )


def compared(layout: Layout, pool: Pool, orders: int, rng: np.random.Generator) -> list[Apart]:
    """One comparison with the pooled fit for each order."""
    starts = range(0, pool.num - PER_WINDOW + 1, PER_WINDOW)
    items = list(observations(pool, [np.arange(start, start + PER_WINDOW) for start in starts]))
    survey = Survey(Schema.of(layout))
    for item in items:
        survey.update(item)
    new = Header(Identity(dtype="bfloat16"), layout), survey.get()
    pooled = _fit(Fit(*new), items).get()
    replicas = rng.integers(REPLICAS, size=len(items))
    parts = [
        _fit(Fit(*new), [items[i] for i in np.flatnonzero(replicas == each)])
        for each in range(REPLICAS)
    ]
    found = []
    for number in range(orders):
        progress(f"merge: order {number + 1} of {orders}")
        whole = Fit(*new)
        for place in rng.permutation(REPLICAS):
            whole.merge(parts[place])
        found.append(_apart(whole.get(), pooled))
    return found


def _fit(fit: Fit, items: list[Observation]) -> Fit:
    for item in items:
        fit.update(item)
    return fit


def _apart(merged: Baseline, pooled: Baseline) -> Apart:
    mean = m2 = 0.0
    for ours, theirs in zip(merged.strata, pooled.strata, strict=True):
        if not (theirs.m2 > 0).all():
            continue  # nothing, or next to nothing, was folded into "other"
        sd = np.sqrt(theirs.variance)
        mean = max(mean, _worst((ours.mean - theirs.mean) / sd))
        m2 = max(m2, _worst((ours.m2 - theirs.m2) / theirs.m2))
    apart = (merged.reservoir - pooled.reservoir) / np.maximum(np.abs(pooled.reservoir), 1.0)
    return Apart(mean, m2, _worst(apart))


def _worst(apart: Floats) -> float:
    return float(np.abs(apart).max())  # NaN stays, and is no figure to pass with


def settings(*, is_quick: bool) -> Size:
    """The full size, or one that keeps the quick run short."""
    return Size(768, 4) if is_quick else Size()
