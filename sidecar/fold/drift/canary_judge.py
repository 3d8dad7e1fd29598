"""The judge of one source: learns what its canaries look like, then says how far they are from it.

Stages, by benign rounds: before `min_rounds` nothing is known; from then on the hard rule is armed;
from `num_rounds` on the averaged e-SR statistic is armed too, and nothing is learnt any more.

    hard rule   Z > HARD x max(largest benign Z, 1) in two consecutive rounds, any stream
    e-SR        s = Phi^-1((R + 1/2)/(K + 1)), R the mid-rank of max(Z, 1) among K benign rounds
                log e = lambda (s - eps) - psi(lambda),  lambda in {1, 2},  eps = 2 / sqrt(K)
                R_c <- (1 + R_c) e_c;  page when the mean over c of R_c >= A

Guarantees: the reference and its limits never follow what is judged; a round beyond the hard limit
is never learnt from; the first rounds are learnt only when they agree with one another, so a change
in the middle of them delays arming and does not widen the floors.
"""

import math
from statistics import NormalDist
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift.canary_reference import (
    DISAGREEMENT,
    Reference,
    benign_scores,
    disagreement,
)
from sidecar.fold.drift.canary_rounds import Round
from sidecar.fold.drift.canary_streams import CanaryStream, CanaryStreams
from sidecar.wire.frame import Identity

HARD: Final = 3.0
LAMBDAS: Final = np.array([1.0, 2.0])
MIN_SHARE: Final = 0.75  # of the prompts: a round with fewer is not judged, nor learnt from
KERNELS: Final = ("kernels", "attention_backend", "dtype")
_MAX_LOG: Final = 600.0  # of R: beyond any limit, below where exp overflows

Floats = NDArray[np.float64]


class Pace(NamedTuple):
    """How much is learnt, and how rare a false page is.

    min_rounds: benign rounds that arm the hard rule. num_rounds: that arm everything.
    mean_rounds: A, rounds between false pages of the e-SR by design.
    """

    min_rounds: int = 20
    num_rounds: int = 200
    mean_rounds: float = 365 * 86400 / 300

    @classmethod
    def of(cls, seconds: float) -> Self:
        """A false page in 12 months, of rounds `seconds` apart."""
        return cls(mean_rounds=365 * 86400 / seconds)


class Deviation(NamedTuple):
    """How far one stream is from its reference.

    score: Z of the latest round, in floors. limit: of the hard rule. share: of the nearer limit, 1
    and more pages. since_ns: when it left what is benign; None while it is there.
    """

    source: str
    stream: CanaryStream
    score: float
    limit: float
    share: float
    since_ns: int | None


class Judge:
    """Rounds of one source under one kernel configuration; all arrays are over its S streams."""

    def __init__(self, source: str, streams: CanaryStreams, pace: Pace, num_prompts: int) -> None:
        num = len(streams.streams)
        self.source = source
        self.streams = streams
        self.pace = pace
        self.mean_rounds = pace.mean_rounds
        self.identity: Identity | None = None
        self.adapters: frozenset[str] = frozenset()
        self.num_tokens = np.zeros(num_prompts, np.int64)
        self.first: list[Floats] = []  # values of the first rounds, until they are learnt
        self.reference: Reference | None = None
        self.benign = np.zeros((0, num))  # Z of the benign rounds
        self.limit = np.full(num, np.inf)
        self.ordered = np.zeros((0, num))  # what ranks are taken among, once all is learnt
        self.score = np.full(num, np.nan)
        self.before = np.full(num, np.nan)  # the score before that
        self.log_r = np.full((num, len(LAMBDAS)), -np.inf)
        self.since_ns = np.zeros(num, np.int64)  # 0: benign
        self.judged_ns = 0
        self.num_short = 0
        self.num_rejected = 0
        self.note = ""  # why learning takes longer

    @property
    def num_learnt(self) -> int:
        """Benign rounds so far."""
        return len(self.benign) if self.reference else len(self.first)

    @property
    def is_armed(self) -> bool:
        """Whether it can page at all."""
        return self.reference is not None

    @property
    def is_complete(self) -> bool:
        """Whether all is learnt."""
        return len(self.benign) >= self.pace.num_rounds

    def update(self, each: Round) -> None:
        """Judge one round, and learn from it while there is something to learn."""
        if each.share < MIN_SHARE:
            self.num_short += 1
            return
        self.judged_ns = each.end_ns
        if self.reference is None:
            self._learn_first(each)
            return
        self.before = np.where(np.isfinite(self.score), self.score, self.before)
        self.score = self.reference.score(self.streams, each.values)
        if self.is_complete:
            self._accumulate()
        self._mark(each.start_ns)
        if not self.is_complete:
            self._learn_more()

    def share(self) -> Floats:
        """[S] of the nearer limit; 1 and more pages.

        The e-SR counts in logarithms, and by what a stream alone brings to the mean.
        """
        with np.errstate(invalid="ignore"):
            hard = np.fmin(self.score, self.before) / self.limit
        # A score without one before it is no pair of consecutive rounds.
        hard = np.where(np.isfinite(self.score) & np.isfinite(self.before), hard, 0.0)
        alone = np.logaddexp.reduce(self.log_r, axis=1) - math.log(self.log_r.size)
        share: Floats = np.fmax(hard, np.logaddexp(0.0, alone) / math.log1p(self.mean_rounds))
        return share

    def level(self) -> float:
        """The largest share of a limit; of the e-SR it is the mean over everything that counts."""
        if not self.is_armed or not self.log_r.size:
            return 0.0
        mean = np.logaddexp.reduce(self.log_r.ravel()) - math.log(self.log_r.size)
        together = float(np.logaddexp(0.0, mean)) / math.log1p(self.mean_rounds)
        return max(float(self.share().max()), together)

    def deviations(self) -> list[Deviation]:
        """Every stream, in order; none before the hard rule is armed."""
        if not self.is_armed:
            return []
        rows = zip(self.score, self.limit, self.share(), self.since_ns, strict=True)
        return [
            Deviation(self.source, stream, float(z), float(limit), float(share), int(since) or None)
            for stream, (z, limit, share, since) in zip(self.streams.streams, rows, strict=True)
        ]

    def onset(self) -> int | None:
        """The first layer that has left what is benign in both of the last two rounds."""
        low = np.fmin(self.score, self.before)
        above = np.isfinite(self.before) & (low > self._benign_most())
        layers = [
            stream.layer
            for stream, is_above in zip(self.streams.streams, above, strict=True)
            if is_above and stream.layer is not None
        ]
        return min(layers, default=None)

    def changed_prompts(self, each: Round) -> NDArray[np.int64]:
        """Places of prompts that have another number of tokens than when they were learnt."""
        both = (self.num_tokens > 0) & (each.num_tokens > 0)
        return np.flatnonzero(both & (self.num_tokens != each.num_tokens))

    def calm(self) -> None:
        """Statistics start again at 0; what was learnt stays."""
        self.score = np.full_like(self.score, np.nan)
        self.before = np.full_like(self.before, np.nan)
        self.log_r = np.full_like(self.log_r, -np.inf)
        self.since_ns = np.zeros_like(self.since_ns)

    def _learn_first(self, each: Round) -> None:
        if len(self.changed_prompts(each)):
            self.first, self.num_tokens = [], np.zeros_like(self.num_tokens)
            self.note = "prompts changed their number of tokens, so learning began anew"
        self.num_tokens = np.where(each.num_tokens > 0, each.num_tokens, self.num_tokens)
        self.adapters |= each.adapters
        self.first.append(each.values)
        if len(self.first) < self.pace.min_rounds:
            return
        rounds = np.array(self.first[-self.pace.min_rounds :])
        distance, cut = disagreement(self.streams, rounds)
        if distance >= DISAGREEMENT:
            # The oldest go, so that rounds of one kind are soon all that is left.
            self.first = self.first[cut:]
            self.note = (
                f"the rounds learnt disagree ({distance:.1f} standard errors), so the first {cut} "
                "were dropped; if this goes on, look at what changes on the server"
            )
            return
        self.reference = Reference.of(self.streams, rounds)
        self.benign = benign_scores(self.streams, rounds)
        self.first, self.note = [], ""
        self._set_limits()

    def _learn_more(self) -> None:
        with np.errstate(invalid="ignore"):
            if (self.score > self.limit).any():
                self.num_rejected += 1
                return
        self.benign = np.vstack([self.benign, self.score])
        if self.is_complete:
            self._set_limits()
            floored = np.where(np.isfinite(self.benign), np.fmax(self.benign, 1.0), np.inf)
            self.ordered = np.sort(floored, axis=0)

    def _benign_most(self) -> Floats:
        """[S] the largest benign Z, at least the floor itself."""
        most: Floats = np.fmax.reduce(self.benign, axis=0, initial=1.0)
        return most

    def _set_limits(self) -> None:
        # Once at `min_rounds` and once when complete: a limit that followed every round could be
        # walked up step by step.
        self.limit = HARD * self._benign_most()

    def _accumulate(self) -> None:
        rank_score = _rank_scores(self.ordered, self.score)
        num = len(self.ordered)
        log_e = LAMBDAS * (rank_score[:, None] - 2 / math.sqrt(num)) - _psi(num)
        grown = np.minimum(np.logaddexp(0.0, self.log_r) + log_e, _MAX_LOG)
        # A stream that was not measured says nothing.
        self.log_r = np.where(np.isfinite(log_e), grown, self.log_r)

    def _mark(self, start_ns: int) -> None:
        with np.errstate(invalid="ignore"):
            is_up = (self.score > self._benign_most()) | (self.log_r.max(1, initial=-np.inf) > 0)
        fresh = np.where(self.since_ns == 0, start_ns, self.since_ns)
        self.since_ns = np.where(is_up, fresh, 0)


def _rank_scores(ordered: Floats, score: Floats) -> Floats:
    """[S] normal scores of `score` by its mid-rank in the columns of `ordered` [K, S]."""
    at_least = np.fmax(score, 1.0)
    below = (ordered < at_least).sum(0)
    equal = (ordered == at_least).sum(0)
    # Streams that were not measured in some benign rounds have a shorter list.
    num = np.isfinite(ordered).sum(0)
    found = [
        math.nan if math.isnan(z) or not n else NormalDist().inv_cdf((b + e / 2 + 0.5) / (n + 1))
        for z, b, e, n in zip(score, below, equal, num, strict=True)
    ]
    return np.array(found, np.float64)


def _psi(num: int) -> Floats:
    """Logarithm of the mean of exp(lambda g) over the `num` + 1 rank scores that there are."""
    grid = [NormalDist().inv_cdf((i + 0.5) / (num + 1)) for i in range(num + 1)]
    psi: Floats = np.log(np.exp(LAMBDAS * np.array(grid)[:, None]).mean(0))
    return psi
