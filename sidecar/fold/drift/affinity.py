"""Whether routing sends every replica the same mix of requests, as chance would.

The contrast of replicas rests on it: a router that keeps sessions together gives replicas
different users, and different users are no fault of a replica. Under random routing the replica
of a request says nothing of its kind, whatever the traffic does, so that the counts of kinds by
replica are independent, and

    G = 2 sum O log(O / E),  E = row total x column total / n,   is chi-square, (N-1)(K-1) degrees

(Sokal and Rohlf, "Biometry"). Kinds are what a client chose: route, adapter and length of the
prompt. How long an answer grew is left out: a broken replica may change it.

Guarantees: windows are judged together, the last `NUM_WINDOWS`; routing is called kept only where
chance gives such a G in less than 1 of 10^6 looks *and* the association is more than `MIN_SIZE`
(Cramér's V, without its bias): a difference too small to matter is not a reason to stop judging.
"""

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import UNREADABLE, StateError

NUM_WINDOWS: Final = 12
MIN_SIZE: Final = 0.05
_MIN_EXPECTED: Final = 5.0  # a kind with less for some replica is counted among the rest
_ENTER: Final = NormalDist().inv_cdf(1 - 1e-6)
_LEAVE: Final = NormalDist().inv_cdf(1 - 1e-3)


class _Look(NamedTuple):
    g: float
    freedom: int
    scale: float  # n x min(N - 1, K - 1): what V^2 is a share of


class Affinity:
    """Judges the routing of a fleet, window by window."""

    def __init__(self) -> None:
        self._looks: deque[_Look] = deque(maxlen=NUM_WINDOWS)
        self._is_kept = False

    @property
    def is_kept(self) -> bool:
        """Whether requests of a kind are kept at some replicas."""
        return self._is_kept

    @property
    def size(self) -> float:
        """Cramér's V over the last windows: 0 for the same mix everywhere, 1 for none in common."""
        scale = sum(look.scale for look in self._looks)
        excess = sum(look.g - look.freedom for look in self._looks)
        return math.sqrt(min(max(excess, 0.0) / scale, 1.0)) if scale else 0.0

    def update(self, replicas: Sequence[Mapping[str, int]]) -> bool:
        """Take one window's requests by stratum, one mapping for each replica; `is_kept`."""
        look = _look(replicas)
        if look is not None:
            self._looks.append(look)
            score = self._score()
            limit = _LEAVE if self._is_kept else _ENTER
            self._is_kept = score > limit and self.size > MIN_SIZE
        return self._is_kept

    def export(self) -> dict[str, Any]:
        """Plain values."""
        return {"is_kept": self._is_kept, "looks": [list(look) for look in self._looks]}

    def restore(self, exported: Mapping[str, Any]) -> None:
        """Go on from `export()`. Raises StateError when it is of something else."""
        try:
            looks = [_Look(float(g), int(f), float(s)) for g, f, s in exported["looks"]]
            is_kept = bool(exported["is_kept"])
        except UNREADABLE as error:
            raise StateError(f"no state of an affinity: {error!r}; delete the snapshot") from error
        self._looks = deque(looks, maxlen=NUM_WINDOWS)
        self._is_kept = is_kept

    def _score(self) -> float:
        """Normal score of the summed G, by Wilson and Hilferty (1931)."""
        freedom = sum(look.freedom for look in self._looks)
        ratio = max(sum(look.g for look in self._looks), 0.0) / freedom
        share = 2.0 / (9.0 * freedom)
        return float((ratio ** (1 / 3) - (1 - share)) / math.sqrt(share))


def kind_of(stratum: str) -> str:
    """What the client chose of a stratum: all but the length of the answer, its last part.

    >>> kind_of("chat|-|p64-127|g16-31")
    'chat|-|p64-127'
    """
    return stratum.rpartition("|")[0] or stratum


def _look(replicas: Sequence[Mapping[str, int]]) -> _Look | None:
    counts = _table(replicas)
    if min(counts.shape) < 2:
        return None
    n = counts.sum()
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / n
    seen = counts > 0
    g = 2.0 * float((counts[seen] * np.log(counts[seen] / expected[seen])).sum())
    rows, columns = counts.shape
    return _Look(g, (rows - 1) * (columns - 1), float(n) * (min(rows, columns) - 1))


def _table(replicas: Sequence[Mapping[str, int]]) -> NDArray[np.float64]:
    """[N, K] requests by kind; replicas without any are left out, rare kinds are put together."""
    by_kind = [Counter[str]() for _ in replicas]
    for counter, strata in zip(by_kind, replicas, strict=True):
        for stratum, count in strata.items():
            counter[kind_of(stratum)] += count
    busy = [counter for counter in by_kind if counter.total()]
    kinds = sorted({kind for counter in busy for kind in counter})
    counts = np.array([[counter[kind] for kind in kinds] for counter in busy], np.float64)
    if counts.size == 0:
        return np.zeros((0, 0))
    least = counts.sum(1).min() / counts.sum() * counts.sum(0)
    common = counts[:, least >= _MIN_EXPECTED]
    rare = counts[:, least < _MIN_EXPECTED].sum(1, keepdims=True)
    if rare.sum() * counts.sum(1).min() / counts.sum() < _MIN_EXPECTED:
        return common
    return np.hstack([common, rare])
