"""Canary: rounds from a change of the executed model until the shipped judge pages.

The bundled suite on the bundled model, under each of two emulated floors of serving noise (see
`noise`; a CPU repeats itself to the bit and would flatter the channel). The judge learns from 200
benign rounds; each change is then served for 6 rounds by a copy of it. The control, a permutation
of heads, computes the same function: it must not page, while the digest of its file differs.
"""

import copy
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from bench.detection import bounds, noise, rounds, tamper
from bench.detection.report import Delay
from bench.detection.stand import Stand
from bench.report import Section, progress
from sidecar.fold.drift.canary_judge import HARD, Judge, Pace
from sidecar.fold.drift.canary_rounds import Round
from sidecar.fold.drift.canary_streams import CanaryStreams
from sidecar.publish.canary.suite import read_suite
from sidecar.wire.frame import Identity

FLOORS: Final[tuple[noise.Sum, ...]] = ("float32", "bfloat16")
SECONDS: Final = 300  # between rounds
TARGET: Final = 4  # rounds


class Size(NamedTuple):
    """Benign rounds (learnt, and judged afterwards), rounds of a change, seeds of each."""

    learnt: int = 200
    quiet: int = 100
    rounds: int = 6
    seeds: int = 5
    batch: int = 50  # benign rounds that are kept together
    floors: tuple[noise.Sum, ...] = FLOORS
    cases: tuple[str, ...] = ()  # names; () is all of them


class Seen(NamedTuple):
    """One change, one seed, one floor.

    hard, evidence: rounds until that rule pages, infinite where it does not.
    share: the largest share of the hard rule's limit. onset: first layer told, -1 for none.
    """

    hard: float
    evidence: float
    share: float
    onset: int


class Lazily:
    """A changed model, made when it is served: rounds out of the cache need none."""

    def __init__(self, case: tamper.Case, model: Any, seed: int) -> None:
        self._arguments = (case.make, model, seed)
        self._made: Any = None

    def __call__(self) -> Any:
        """The model, always the same."""
        if self._made is None:
            self._made = tamper.applied(*self._arguments)
        return self._made


def run(size: Size) -> Section:
    """Both floors, every change, every seed."""
    stand = Stand.of()
    streams = CanaryStreams.of(stand.layout())
    cases = [
        case
        for case in tamper.cases(stand.text, stand.tokens)
        if not size.cases or case.name in size.cases
    ]
    judges, quiet = {}, {}
    for floor in size.floors:
        judges[floor], quiet[floor] = _benign(stand, streams, floor, size)
    found: dict[str, dict[str, list[Seen]]] = {}
    changed: dict[str, float] = {}
    for case in cases:
        found[case.name] = {floor: [] for floor in size.floors}
        for seed in range(size.seeds):
            progress(f"canary: {case.name}, seed {seed + 1} of {size.seeds}")
            made = Lazily(case, stand.model, seed)
            if seed == 0:
                changed[case.name] = tamper.changed(stand.model, made())
            for floor in size.floors:
                name = f"{case.slug}-{seed}"
                held = rounds.kept(name, made, floor, stand.asked, size.rounds, stand.cache)
                found[case.name][floor].append(seen(judges[floor], streams, held))
    differs = digest(stand.model) != digest(tamper.applied(tamper.permuted, stand.model, 0))
    etas = {floor: judge.eta for floor, judge in judges.items()}
    return _section(cases, found, changed, quiet, etas, differs=differs, size=size)


def learnt(streams: CanaryStreams, held: rounds.Rounds, pace: Pace) -> Judge:
    """A judge that has taken `held` for benign."""
    judge = Judge("engine-dp0-pp0-tp0", streams, pace, held.values.shape[1])
    judge.identify(Identity(dtype="bfloat16"))
    for number in range(len(held.values)):
        judge.update(round_of(streams, held, number))
    return judge


def seen(judge: Judge, streams: CanaryStreams, held: rounds.Rounds) -> Seen:
    """What a copy of `judge` makes of `held`, round by round."""
    judge = copy.deepcopy(judge)
    judge.calm()
    hard = evidence = np.inf
    share, onset = 0.0, -1
    for number in range(len(held.values)):
        judge.update(round_of(streams, held, number))
        pair = np.nan_to_num(np.minimum(judge.score, judge.before) / judge.limit)
        share = max(share, float(pair.max()))
        is_beyond = bool((pair * HARD > 1).any())  # the limit is HARD times what is benign
        hard = min(hard, number + 1.0) if pair.max() >= 1 else hard
        if judge.evidence.is_alarming and is_beyond:
            evidence = min(evidence, number + 1.0)
        if onset < 0 and min(hard, evidence) < np.inf:
            told = judge.onset()
            onset = -1 if told is None else told
    return Seen(hard, evidence, share, onset)


def round_of(streams: CanaryStreams, held: rounds.Rounds, number: int) -> Round:
    """Round `number` of `held`, as the shipped collector would have closed it."""
    start_ns = (1_700_000_000 + SECONDS * number) * 10**9
    values = np.stack([streams.read(each) for each in held.values[number]])
    return Round(
        "engine-dp0-pp0-tp0", start_ns, start_ns + 10**9, streams, values, held.num_tokens,
        frozenset({""}),
    )  # fmt: skip


def digest(model: Any) -> str:
    """SHA-256 of the safetensors file that `model` is stored as."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()


def _benign(
    stand: Stand, streams: CanaryStreams, floor: noise.Sum, size: Size
) -> tuple[Judge, int]:
    """The judge of a floor, and how many of the quiet rounds after learning it paged in."""
    num = -(-(size.learnt + size.quiet) // size.batch)
    parts = []
    for number in range(num):
        progress(
            f"canary: benign rounds under {floor}, {size.batch * number} of {size.batch * num}"
        )
        name = f"benign-{number}"
        parts.append(
            rounds.kept(name, lambda: stand.model, floor, stand.asked, size.batch, stand.cache)
        )
    held = rounds.Rounds(np.concatenate([part.values for part in parts]), parts[0].num_tokens)
    pace = Pace.of(SECONDS)._replace(num_rounds=size.learnt)
    judge = learnt(streams, held._replace(values=held.values[: size.learnt]), pace)
    quiet, pages = copy.deepcopy(judge), 0
    for number in range(size.learnt, size.learnt + size.quiet):
        quiet.update(round_of(streams, held, number))
        if quiet.level() >= 1:
            pages += 1
            quiet.calm()
    return judge, pages


def _section(
    cases: Sequence[tamper.Case],
    found: Mapping[str, Mapping[str, Sequence[Seen]]],
    changed: Mapping[str, float],
    quiet: Mapping[str, int],
    etas: Mapping[str, float],
    *,
    differs: bool,
    size: Size,
) -> Section:
    rows = []
    missed = []
    for case in cases:
        row = [case.name, f"{changed[case.name]:.1%}"]
        for floor in size.floors:
            held = found[case.name][floor]
            row += _cells(held)
            both = Delay.of(min(each.hard, each.evidence) for each in held)
            if case.finds and not both.p90 <= TARGET:
                missed.append(f"{case.name} under {floor} ({both})")
            if not case.finds and both.missed < both.runs:
                missed.append(f"{case.name} under {floor} PAGED, and must not")
        rows.append(row)
    exposure = size.quiet * len(size.floors)
    prompts = len(read_suite().prompts)
    upper = bounds.upper_rate(sum(quiet.values()), exposure)
    columns = ["change", "weights changed"]
    for floor in size.floors:
        columns += [f"{floor} sums: hard rule", "e-SR", "of the hard limit", "onset layer"]
    return Section(
        "Canary: rounds from a change of the model to the page, median / p90",
        columns,
        rows,
        {
            "size": size._asdict(),
            "prompts": f"bundled suite, cut at {rounds.MOST_TOKENS} tokens",
            "eta": dict(etas),
            "benign_pages": dict(quiet),
            "benign_rounds": size.quiet,
            "permuted_digest_differs": differs,
            "changed": dict(changed),
            "changes": {
                name: {
                    floor: [
                        {"hard": _finite(s.hard), "evidence": _finite(s.evidence),
                         "share": s.share, "onset": s.onset}
                        for s in held
                    ]
                    for floor, held in floors.items()
                }
                for name, floors in found.items()
            },
        },
        [
            f"Target: every change within {TARGET} rounds (p90, by either rule). "
            + ("Met." if not missed else "MISSED: " + "; ".join(missed) + "."),
            (
                f"Benign rounds after learning: {sum(quiet.values())} pages in {exposure} rounds, "
                f"at most {upper:.3f} a round (95 %): a bound only."
            ),
            (
                f"A round is {prompts} requests; {size.rounds} were served of each change, of "
                f"{size.seeds} seeds. Repeats reach a third of the hard limit. Long-run eta of the "
                f"benign rounds: {', '.join(f'{eta:.2f} ({name})' for name, eta in etas.items())}."
            ),
            "Heads permuted: the digest of the file "
            + ("differs, as it must." if differs else "IS THE SAME, and must differ."),
        ],
    )  # fmt: skip


def _cells(held: Sequence[Seen]) -> list[str]:
    onsets = sorted({each.onset for each in held if each.onset >= 0})
    return [
        str(Delay.of(each.hard for each in held)),
        str(Delay.of(each.evidence for each in held)),
        f"{np.median([each.share for each in held]):.2g}",
        ", ".join(map(str, onsets)) or "none",
    ]


def _finite(delay: float) -> float | None:
    return None if np.isinf(delay) else delay


def settings(*, is_quick: bool) -> Size:
    """The full size, or one that keeps the quick run short."""
    if is_quick:
        return Size(learnt=20, quiet=2, rounds=3, seeds=1, batch=22, floors=FLOORS[:1], cases=QUICK)
    return Size()


QUICK: Final = (
    "int4 weights, groups of 32",
    "control: heads permuted",
)
