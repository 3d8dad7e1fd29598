"""Baselines and windows of a made-up model, for tests of what is judged with them.

Every request has independent standard normal streams, so every window mean is known.
"""

import numpy as np

from sidecar.fold.drift.baseline import Baseline, TailCalibration
from sidecar.fold.drift.header import Header
from sidecar.fold.drift.moments import Moments
from sidecar.fold.drift.plan import Plan
from sidecar.fold.drift.related import Related, groups_of
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.spread import NUM_BUCKETS
from sidecar.fold.drift.strata import OTHER
from sidecar.fold.drift.window import Tail, Window
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout

FIVE_MINUTES = 300 * 10**9
START = 20_000 * 24 * 3600 * 10**9  # midnight
LAYOUT = Layout([0, 3])
SCHEMA = Schema.of(LAYOUT)
P = SCHEMA.num_streams
STRATA = ("chat|-|p8-15|g8-15", "code|-|p8-15|g8-15", OTHER)
HEADER = Header(Identity(), LAYOUT)
NO_TAIL = Tail()
NUM_REQUESTS = (60, 40, 0)  # of a window, by stratum


def moments(rows: np.ndarray) -> Moments:
    folded = Moments(rows.shape[1])
    folded.update(rows)
    return folded


def baseline(
    num_windows: int = 2016,
    *,
    reservoir: np.ndarray | None = None,
    mix: np.ndarray | None = None,
    header: Header = HEADER,
    constant: int | None = None,
    tail: TailCalibration | None = None,
    seed: int = 20,
) -> Baseline:
    """Of `num_windows` windows; stream `constant` is 1 in every request."""
    rng = np.random.default_rng(seed)
    p = Schema.of(header.layout).num_streams
    rows = rng.normal(size=(300, p))
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)  # so that the mean of windows is known
    if reservoir is None:
        reservoir = rng.normal(size=(num_windows, p))
    if constant is not None:
        rows[:, constant] = 1.0
        reservoir[:, constant] = 0.0
    num_windows = len(reservoir)
    if mix is None:
        mix = rng.multinomial(100, (0.6, 0.39, 0.01), size=num_windows)
    related = tuple(
        Related(
            group,
            np.zeros((3, len(group.places))),
            np.ones((3, len(group.places))),
            np.eye(len(group.places)),
            np.full(3, 300),
        )
        for group in groups_of(header.layout)
    )
    bounds = np.full((3, p), -np.inf), np.full((3, p), np.inf)
    return Baseline(
        header=header,
        plan=Plan(STRATA, frozenset(), *bounds),
        strata=tuple(moments(rows) for _ in STRATA),
        spread=np.zeros((3, p, NUM_BUCKETS), np.int64),
        tau2=np.zeros((3, p)),
        reservoir=reservoir,
        times_ns=START + FIVE_MINUTES * np.arange(1, num_windows + 1),
        mix=mix,
        related=related,
        tail=tail,
    )


def window(
    rng: np.random.Generator,
    at: int = 0,
    *,
    shift: float = 0.0,
    stream: int = 0,
    num_requests: tuple[int, ...] = NUM_REQUESTS,
    constant: int | None = None,
    tail: Tail = NO_TAIL,
    num_new: int = 0,
    num_streams: int = P,
) -> Window:
    """The window number `at`; `shift` request-sd on one stream."""
    strata = {}
    for name, num in zip(STRATA, num_requests, strict=True):
        rows = rng.normal(size=(num, num_streams))
        rows[:, stream] += shift
        if constant is not None:
            rows[:, constant] = 1.0
        if num:
            strata[name] = moments(rows)
    start_ns = START + FIVE_MINUTES * at
    num = sum(num_requests)
    return Window(start_ns, start_ns + FIVE_MINUTES, num, strata, tail, num_new)
