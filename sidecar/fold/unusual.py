"""How unlike the usual one finished request is: by layer, and whether it is anomalous.

With a baseline, the usual is the baseline's (`drift.tail`). Without one it is this sidecar's own
first requests of the same layout, and z-scores of a group's entries are added up as if they were
independent: enough to rank layers, not to judge.

Low confidence is judged by conformal p-values as the tail is (Vovk et al. 2005): of n requests of
its stratum, the chance that one more of the same kind is beyond all of them is 1 / (n + 1) for each
of the four entries looked at, so 4 / (n + 1) in all; that is below `ALPHA` from n = 3999 on.

Guarantees: a request is judged by those before it alone, then learnt from; what was learnt stands
still after `MAX_LEARNT` requests, or a slow change would become the usual; at most `MAX_LAYOUTS`
layouts are learnt. Known-safe tasks are judged, and never learnt from.
"""

import math
from typing import Final, NamedTuple

import msgspec
import numpy as np

from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.drift.moments import Moments
from sidecar.fold.drift.observation import Observation, observation_of
from sidecar.fold.drift.related import Group, groups_of
from sidecar.fold.drift.strata import stratum_of
from sidecar.fold.drift.tail import ALPHA, TailRule, normal_deviate
from sidecar.fold.gathering import Gathered
from sidecar.wire.frame import Arrays
from sidecar.wire.signature import Layout, size

MIN_LEARNT: Final = 100
MAX_LEARNT: Final = 1000
MAX_LAYOUTS: Final = 8
MAX_LAYERS: Final = 5
_ERROR: Final = "error"

# Entries that say how sure the model was, and on which side it was less sure than usual.
_LESS_SURE: Final = {
    "confidence/entropy": "high",
    "confidence/last_entropy": "high",
    "confidence/top1_margin": "low",
    "confidence/min_logprob": "low",
}


class Deviation(NamedTuple):
    """How far a layer of one request is from the usual.

    group: where it is farthest, such as `decode/l3`. value: a normal deviate.
    """

    layer: int
    group: str
    value: float


class Verdict(NamedTuple):
    """One question about a request, and its answer.

    name: tail, confidence or nonfinite. score: p for the first two, elements for the last.
    """

    name: str
    is_anomalous: bool
    score: float
    explanation: str


class Judged(NamedTuple):
    """What is to be said of a request.

    deviations: of the layers that are farthest from the usual, the farthest first.
    reference: what the usual is, such as `baseline 0123456789ab` or `own first 420 requests`; ""
        while there is none.
    verdicts: of the questions that could be answered.
    failures: `aborted` or `error`: how it ended, if that is a reason to look at it.
    """

    deviations: tuple[Deviation, ...]
    reference: str
    verdicts: tuple[Verdict, ...]
    failures: tuple[str, ...]

    @property
    def anomalies(self) -> tuple[str, ...]:
        """Why somebody should look at this request; none for an ordinary one."""
        return (*(each.name for each in self.verdicts if each.is_anomalous), *self.failures)


class Unusual:
    """Judges finished requests, one after the other."""

    def __init__(self, baseline: Baseline | None = None) -> None:
        self._baseline = baseline
        self._rule = TailRule(baseline) if baseline else None
        self._confidence = _Confidence(baseline) if baseline else None
        self._own: dict[bytes, _Own] = {}

    def use(self, baseline: Baseline | None) -> None:
        """Judge by this baseline from now on; a no-op when it is the one in force."""
        mine = self._baseline.digest if self._baseline else ""
        if mine != (baseline.digest if baseline else ""):
            self._baseline = baseline
            self._rule = TailRule(baseline) if baseline else None
            self._confidence = _Confidence(baseline) if baseline else None

    def judge(self, request: Gathered) -> Judged:
        """What is unusual about `request`."""
        verdicts = [_nonfinite(request)]
        found: list[tuple[Group, float]] = []
        reference = ""
        for signed in request.signed:
            item = observation_of(signed)
            if self._baseline is not None and signed.layout == self._baseline.header.layout:
                reference = f"baseline {self._baseline.digest[:12]}"
                found += self._by_baseline(item, verdicts)
            else:
                own = self._own_of(signed.layout)
                if own is not None:
                    reference = reference or own.reference
                    found += own.judge(item)
                    if not (signed.signature.canary or request.aborted):
                        own.learn(item)
        return Judged(_worst_layers(found), reference, tuple(verdicts), self._failures(request))

    def _by_baseline(self, item: Observation, verdicts: list[Verdict]) -> list[tuple[Group, float]]:
        if self._rule is None or self._confidence is None:
            return []
        score = self._rule.score(item) if self._rule.is_calibrated else None
        if score is not None:
            told = f"{score.group} is {score.deviation:.1f} sd from the baseline, p = {score.p:.2g}"
            verdicts.append(Verdict("tail", score.p < ALPHA, score.p, told))
        confidence = self._confidence.judge(item)
        if confidence is not None:
            verdicts.append(confidence)
        return self._rule.deviations(item)

    def _failures(self, request: Gathered) -> tuple[str, ...]:
        # With a baseline its verdicts choose; clients hang up by the thousand.
        if self._baseline is not None:
            return ()
        is_error = request.serving is not None and request.serving.reason == _ERROR
        return (*(["aborted"] if request.aborted else []), *([_ERROR] if is_error else []))

    def _own_of(self, layout: Layout) -> "_Own | None":
        key = msgspec.msgpack.encode(layout)
        if key not in self._own and len(self._own) < MAX_LAYOUTS:
            self._own[key] = _Own(layout)
        return self._own.get(key)


class _Own:
    """The first requests of one layout, and how far a later one is from them."""

    def __init__(self, layout: Layout) -> None:
        self._groups = groups_of(layout)
        self._moments = Moments(size(layout))

    @property
    def reference(self) -> str:
        num = self._moments.num_rows
        return f"own first {num} requests" if num >= MIN_LEARNT else ""

    def learn(self, item: Observation) -> None:
        if self._moments.num_rows < MAX_LEARNT:
            self._moments.update(item.values.astype(np.float64))

    def judge(self, item: Observation) -> list[tuple[Group, float]]:
        if self._moments.num_rows < MIN_LEARNT:
            return []
        values = item.values.astype(np.float64)
        sd = np.sqrt(self._moments.variance)
        with np.errstate(invalid="ignore"):  # NaN is what was not measured, and stays so
            z = (values - self._moments.mean) / np.where(sd > 0, sd, np.inf)
        found = []
        for group in self._groups:
            of_group = z[list(group.places)]
            if np.isfinite(of_group).all():
                squared = np.array(np.square(of_group).sum())
                found.append((group, float(normal_deviate(squared, len(of_group)))))
        return found


class _Confidence:
    """Whether the model was less sure than in any request of the baseline's stratum."""

    def __init__(self, baseline: Baseline) -> None:
        self._plan, self._strata = baseline.plan, baseline.strata
        names = [stream.name for stream in baseline.schema.streams]
        self._sides = [
            (name, side, names.index(name), int(baseline.schema.places[names.index(name)]))
            for name, side in _LESS_SURE.items()
        ]

    def judge(self, item: Observation) -> Verdict | None:
        """None when nothing was measured, or the stratum is too small to say anything."""
        moments = self._strata[self._plan.place(stratum_of(item))]
        beyond, num = [], math.inf
        for name, side, stream, place in self._sides:
            value = float(item.values[place])
            if math.isnan(value):
                continue
            num = min(num, int(moments.n[stream]))
            is_high, is_low = value > moments.largest[stream], value < moments.smallest[stream]
            if is_high if side == "high" else is_low:
                beyond.append(f"{name.removeprefix('confidence/')} = {value:.3g}")
        p = len(self._sides) / (num + 1)
        if p > ALPHA or math.isinf(num):
            return None
        told = "beyond every request of the baseline: " + ", ".join(beyond)
        usual = "as sure as in the baseline"
        return Verdict("confidence", bool(beyond), p if beyond else 1.0, told if beyond else usual)


def _nonfinite(request: Gathered) -> Verdict:
    num = 0
    layers = []
    for measured in request.measured:
        counts = Arrays.unpack(measured.request.moments, len(measured.layers)).nonfinite
        num += int(counts.sum())
        layers += [layer for layer, n in zip(measured.layers, counts.tolist(), strict=True) if n]
    told = f"NaN or Inf after layer {min(layers)} first" if layers else "every element is finite"
    return Verdict("nonfinite", num > 0, float(num), told)


def _worst_layers(found: list[tuple[Group, float]]) -> tuple[Deviation, ...]:
    """The `MAX_LAYERS` layers farthest from the usual, each by its farthest group."""
    worst: dict[int, Deviation] = {}
    for group, value in found:
        if group.layer not in worst or value > worst[group.layer].value:
            worst[group.layer] = Deviation(group.layer, group.name, value)
    return tuple(sorted(worst.values(), key=lambda each: -each.value)[:MAX_LAYERS])
