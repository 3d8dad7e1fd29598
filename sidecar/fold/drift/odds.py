"""What the scores of all the others say about chance: the normaliser of a replica's evidence.

The evidence of a score u is exp(lambda u - psi(lambda)), and keeps its promise when its mean under
chance is at most 1, which psi(lambda) = log mean exp(lambda u) sees to. For normal scores that is
lambda^2 / 2. Means of few skewed values are not normal, and replicas on different machines are not
quite alike, so the mean is learnt from the scores of the *other* replicas, and the larger of the
two is used: learning only ever raises the bar (docs/decisions/0015-replica-contrast.md).

Guarantees: a replica never lowers or raises its own bar; what is used for a window was learnt
before it; memory is one array [2, L, p] per replica and one for all that have left.
"""

from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift import exported
from sidecar.fold.drift.evidence import LAMBDAS

Floats = NDArray[np.float64]

CLIP: Final = 3.0  # of a score: with it a skewed stream's evidence has a third of the excess
_PRIOR: Final = 64.0  # scores as good as normal that stand before the first
_HALF: Final = 4032.0  # counts are halved at so many: two weeks of one replica's windows
_KIND: Final = "odds"
_VERSION: Final = 1


class Odds:
    """Sums of exp(lambda u): 2 sides (high, low), L values of lambda, p streams."""

    __slots__ = ("num", "total")

    def __init__(self, num_streams: int) -> None:
        self.num: Floats = np.zeros(num_streams)
        self.total: Floats = np.zeros((2, len(LAMBDAS), num_streams))

    def update(self, scores: Floats) -> None:
        """Take the scores [2, p] of one window; NaN takes no part."""
        known = np.isfinite(scores[0])
        raised = np.exp(_lambdas() * np.where(known, scores, 0.0)[:, None])
        self.num = self.num + known
        self.total = self.total + raised * known
        self._fade()

    def merge(self, other: Self) -> None:
        """Take everything that `other` took."""
        self.num = self.num + other.num
        self.total = self.total + other.total

    def retire(self, other: Self) -> None:
        """Take everything that `other` took, for good: it will not be taken away again."""
        self.merge(other)
        self._fade()

    def less(self, other: Self) -> Self:
        """A copy without what `other` took, which must have been merged into this one."""
        copy = type(self)(len(self.num))
        copy.num = np.maximum(self.num - other.num, 0.0)
        copy.total = np.maximum(self.total - other.total, 0.0)
        return copy

    def log_evidence(self, scores: Floats) -> Floats:
        """The log e [2, L, p] of scores [2, p]: lambda u - psi; NaN for NaN."""
        log_e: Floats = _lambdas() * scores[:, None] - self.psi()
        return log_e

    def psi(self) -> Floats:
        """[2, L, p]: log mean exp(lambda u), at least lambda^2 / 2."""
        normal = np.exp(np.square(_lambdas()) / 2)
        learnt = (self.total + _PRIOR * normal) / (self.num + _PRIOR)
        psi: Floats = np.log(np.maximum(learnt, normal))
        return psi

    def export(self) -> dict[str, Any]:
        """Plain values and bytes."""
        fields = {"num": exported.packed(self.num), "total": exported.packed(self.total)}
        return exported.tagged(_KIND, _VERSION, fields)

    @classmethod
    def restored(cls, plain: object, num_streams: int) -> Self:
        """What `export()` told. Raises StateError when it is of other streams."""
        odds = cls(num_streams)
        held = exported.checked(plain, _KIND, _VERSION)
        odds.num = exported.floats(held, "num", odds.num.shape)
        odds.total = exported.floats(held, "total", odds.total.shape)
        return odds

    def _fade(self) -> None:
        share = np.where(self.num >= _HALF, 0.5, 1.0)
        self.num = self.num * share
        self.total = self.total * share


def _lambdas() -> Floats:
    return np.array(LAMBDAS)[:, None]
