"""The judge of one source: learns what its canaries look like, then says how far they are from it.

Stages, by benign rounds: before `min_rounds` nothing is known; from then on the hard rule is armed;
from `num_rounds` on the averaged e-SR statistic is armed too, and nothing is learnt any more.

    hard rule   Z > HARD x max(largest benign Z, 1) in two consecutive rounds, any stream
    e-SR        `evidence`, on rank scores of max(Z, 1) among K benign rounds, high side,
                lambda in {1, 2}, eps = 2 / sqrt(K), divided by the long-run eta of those K;
                below one floor all Z are equal, and it pages only while a stream has been beyond
                everything benign in two consecutive rounds

Guarantees: the reference and its limits never follow what is judged; a round beyond the hard limit
is never learnt from; the first rounds are learnt only when they agree with one another, so a change
in the middle of them delays arming and does not widen the floors.
"""

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
from sidecar.fold.drift.canary_streams import CanaryStream, CanaryStreams, Floors
from sidecar.fold.drift.deflation import long_run_eta
from sidecar.fold.drift.evidence import Bets, Evidence
from sidecar.fold.drift.ranks import Ranks
from sidecar.wire.frame import Identity

HARD: Final = 3.0
LAMBDAS: Final = (1.0, 2.0)
MIN_ETA: Final = 1.2  # what 200 independent rounds are estimated at; below it, they are that
WAITING: Final = 0.99  # most of the share of evidence that the latest rounds do not bear out
MIN_SHARE: Final = 0.75  # of the prompts: a round with fewer is not judged, nor learnt from
KERNELS: Final = ("kernels", "attention_backend", "dtype")

Floats = NDArray[np.float64]


class Pace(NamedTuple):
    """How much is learnt, and how rare a false page is.

    min_rounds: benign rounds that arm the hard rule, at least 4. num_rounds: that arm everything.
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
        self.identity: Identity | None = None
        self.adapters: frozenset[str] = frozenset()
        self.num_tokens = np.zeros(num_prompts, np.int64)
        self.first: list[Floats] = []  # values of the first rounds, until they are learnt
        self.reference: Reference | None = None
        self.benign = np.zeros((0, num))  # Z of the benign rounds
        self.limit = np.full(num, np.inf)
        self.ranks: Ranks | None = None  # among the benign, once all is learnt
        self.eta = 1.0  # long-run deflation: rounds resemble their neighbours where load changes
        self.score = np.full(num, np.nan)
        self.before = np.full(num, np.nan)  # the score before that
        self.evidence = Evidence((1, len(LAMBDAS), num), pace.mean_rounds)
        self.since_ns = np.zeros(num, np.int64)  # when Z left what is benign; 0: it has not
        self.judged_ns = 0
        self.num_short = 0
        self.num_rejected = 0
        self.note = ""  # why learning takes longer

    def identify(self, identity: Identity | None) -> None:
        """What the source executes, where that is known; its precision decides the floors."""
        self.identity = identity
        dtype = identity.dtype if identity else ""
        if self.reference is None:  # learnt floors stay
            self.streams = self.streams._replace(least=Floors.of(dtype))

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
        if self.ranks is not None:
            scores = self.ranks.score(np.fmax(self.score, 1.0) + 0 * self.score) / self.eta
            self.evidence.update(self._bets().log_evidence(scores), each.start_ns)
        self._mark(each.start_ns)
        if not self.is_complete:
            self._learn_more()

    def share(self) -> Floats:
        """[S] of the nearer limit; 1 and more pages."""
        # NaN: a score without one before it is no pair of consecutive rounds.
        hard = np.nan_to_num(np.minimum(self.score, self.before) / self.limit)
        evidence = self.evidence.shares()[0]
        share: Floats = np.maximum(
            hard, np.where(self._is_beyond(), evidence, np.minimum(evidence, WAITING))
        )
        return share

    def level(self) -> float:
        """The largest share of a limit; that of the e-SR is of all streams together."""
        if not self.is_armed:
            return 0.0
        together = self.evidence.level
        if not self._is_beyond().any():
            together = min(together, WAITING)
        return max(float(self.share().max(initial=0.0)), together)

    def deviations(self) -> list[Deviation]:
        """Streams that the latest round measured; none before the hard rule is armed."""
        if not self.is_armed:
            return []
        onsets = np.where(self.since_ns > 0, self.since_ns, self.evidence.onsets()[0])
        rows = zip(self.score, self.limit, self.share(), onsets, strict=True)
        return [
            Deviation(self.source, stream, float(z), float(limit), float(share), int(since) or None)
            for stream, (z, limit, share, since) in zip(self.streams.streams, rows, strict=True)
            if np.isfinite(z)
        ]

    def onset(self) -> int | None:
        """The first layer that has left what is benign in both of the last two rounds."""
        layers = [
            stream.layer
            for stream, is_above in zip(self.streams.streams, self._is_beyond(), strict=True)
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
        self.evidence.zero()
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
        if (self.score > self.limit).any():  # NaN is not
            self.num_rejected += 1
            return
        self.benign = np.vstack([self.benign, self.score])
        if self.is_complete:
            self._set_limits()
            self.set_ranks()

    def _benign_most(self) -> Floats:
        """[S] the largest benign Z, at least the floor itself."""
        most: Floats = np.fmax.reduce(self.benign, axis=0, initial=1.0)
        return most

    def _set_limits(self) -> None:
        # Once at `min_rounds` and once when complete: a limit that followed every round could be
        # walked up step by step.
        self.limit = HARD * self._benign_most()

    def set_ranks(self) -> None:
        """Take ranks among the benign rounds, once there are enough of them."""
        if self.is_complete:
            floored = np.fmax(self.benign, 1.0) + 0 * self.benign
            self.ranks = Ranks(floored)
            eta = long_run_eta(self.ranks.score(floored))
            self.eta = eta if eta >= MIN_ETA else 1.0

    def _is_beyond(self) -> NDArray[np.bool_]:
        """[S] beyond everything benign in both of the last two rounds; NaN is not."""
        beyond: NDArray[np.bool_] = np.minimum(self.score, self.before) > self._benign_most()
        return beyond

    def _bets(self) -> Bets:
        return Bets.of_ranks(
            len(self.benign), eta=self.eta, lambdas=LAMBDAS, margin=0.0, sides=(1.0,)
        )

    def _mark(self, start_ns: int) -> None:
        fresh = np.where(self.since_ns == 0, start_ns, self.since_ns)
        self.since_ns = np.where(self.score > self._benign_most(), fresh, 0)
