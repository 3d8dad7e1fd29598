"""The canary channel: fixed known-safe prompts against what they looked like, layer by layer.

It may claim that the executed model changed: weights, quantisation, kernel, adapter or
configuration. Inputs cannot move it, for they never change.

Every source (engine, rank) is judged by its own rounds, against its own reference: engines behind
one address answer parts of a round, and no part is compared with another's. The e-SR of each gets
a limit as many times as high as there are sources, so that all together page falsely as seldom as
one was meant to.

A reference is of one kernel configuration (`KERNELS` of its identity) and one layout of
signatures. Another one is a ticket, and starts a reference of its own; coming back finds the old
one. A reference never adapts: only `discard`, an operator's action, makes the channel learn anew.
While it learns it takes for benign what it sees, so compare the weights' digest with the one that
you meant to serve.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from sidecar.errors import StateError
from sidecar.fold.drift import canary_state, exported
from sidecar.fold.drift.canary_judge import KERNELS, Deviation, Judge, Pace
from sidecar.fold.drift.canary_rounds import Round, Rounds
from sidecar.fold.drift.latch import Latch, Raised
from sidecar.fold.drift.verdict import Cause, ChannelState, Verdict, worst_causes
from sidecar.fold.signatures import Signed
from sidecar.wire.frame import Identity

NAME: Final = "canary"
MAX_JUDGES: Final = 64  # references of all sources; the one unheard the longest goes
MAX_SEEN: Final = 256
_MISSING_ROUNDS: Final = 3  # so many times the pause between rounds is silence
_VERSION: Final = 1
_REMEDY: Final = (
    "compare the weights' digest with what you meant to serve; roll back, or, when the change is "
    "yours, discard the canary's reference"
)


class CanaryChannel:
    """Judges canaries. Feed it every signature (`update`) and identity (`identify`), and the time.

    prompts: names of the suite's prompts, in order. digest: of the suite; state of another suite is
    refused. pace: how much is learnt. seconds: pause between rounds once all is learnt.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        digest: str = "",
        pace: Pace | None = None,
        seconds: float = 300.0,
    ) -> None:
        self._prompts = tuple(prompts)
        self._digest = digest
        self._pace = pace or Pace.of(seconds)
        self._silent_ns = int(_MISSING_ROUNDS * max(seconds, 60.0) * 1e9)
        self._identities: dict[str, Identity] = {}
        self._rounds = Rounds(self._prompts)
        self._judges: dict[str, Judge] = {}
        self._current: dict[str, Judge] = {}  # by source, out of the judges
        self._latch = Latch()
        self._seen: set[str] = set()

    @property
    def name(self) -> str:
        """Label of its metrics."""
        return NAME

    @property
    def is_learning(self) -> bool:
        """Whether any source has still to learn, so that rounds are wanted sooner."""
        judges = list(self._current.values())
        return not judges or not all(judge.is_complete for judge in judges)

    @property
    def ignored(self) -> dict[str, int]:
        """Canaries that counted in no round, by cause, and rounds not used, likewise."""
        judges = self._judges.values()
        short = sum(judge.num_short for judge in judges)
        rejected = sum(judge.num_rejected for judge in judges)
        return {**self._rounds.ignored, "short_round": short, "not_benign": rejected}

    def identify(self, source: str, identity: Identity) -> None:
        """What `source` executes, as it says itself."""
        if source in self._identities or len(self._identities) < MAX_JUDGES:
            self._identities[source] = identity

    def update(self, signed: Signed) -> None:
        """Take one signature; one that is of no canary counts for nothing."""
        for each in self._rounds.update(signed):
            self._judge(each)

    def advance(self, now_ns: int) -> None:
        """Judge the rounds that nobody waits for any longer."""
        for each in self._rounds.advance(now_ns):
            self._judge(each)

    def get(self, now_ns: int) -> Verdict:
        """What it concludes; see `Channel`."""
        judged_ns = max((judge.judged_ns for judge in self._judges.values()), default=0)
        state, reason = self._standing(now_ns)
        level, causes = self._level(), self._causes()
        calm = Verdict(NAME, state, reason, level, causes=causes, judged_ns=judged_ns)
        return self._latch.get(calm)

    def deviations(self) -> list[Deviation]:
        """Every stream that the latest round of each armed source measured."""
        return [each for judge in self._current.values() for each in judge.deviations()]

    def layers(self) -> dict[int, float]:
        """Z of each layer in the latest round: the largest of its signals and of the sources."""
        largest: dict[int, float] = {}
        for each in self.deviations():
            if each.stream.layer is not None:
                layer = each.stream.layer
                largest[layer] = max(each.score, largest.get(layer, 0.0))
        return largest

    def acknowledge(self, now_ns: int) -> None:
        """Somebody has seen it: statistics start again at 0, the references stay."""
        if self._latch.raised is None:
            return
        self._latch.acknowledge(now_ns)
        for judge in self._judges.values():
            judge.calm()

    def discard(self, now_ns: int) -> None:
        """Forget every reference and learn anew: an operator's action, after a change of theirs."""
        self._latch.acknowledge(now_ns)
        self._judges, self._current, self._seen = {}, {}, set()

    def export(self) -> dict[str, Any]:
        """Everything needed to go on; see `Channel`."""
        judges = list(self._judges.items())
        current = {source: self._key_of(judge) for source, judge in self._current.items()}
        return exported.tagged(
            NAME,
            _VERSION,
            {
                "digest": self._digest,
                "prompts": list(self._prompts),
                "judges": [canary_state.export_judge(key, judge) for key, judge in judges],
                "current": current,
                "rounds": canary_state.export_rounds(self._rounds),
                "latch": self._latch.export(),
                "seen": sorted(self._seen),
            },
        )

    def restore(self, exported_: dict[str, Any]) -> None:
        """Go on from `export()`. Raises StateError when it is of another suite or version."""
        plain = exported.checked(exported_, NAME, _VERSION)
        if plain.get("digest") != self._digest or plain.get("prompts") != list(self._prompts):
            raise StateError(
                "the canary's state was learnt with another suite; give that suite again, or "
                "discard the state to learn anew"
            )
        with canary_state.refusing():
            num = len(self._prompts)
            judges = dict(
                canary_state.restore_judge(each, self._pace, num) for each in plain["judges"]
            )
            current = {source: judges[key] for source, key in plain["current"].items()}
            rounds = canary_state.restore_rounds(plain["rounds"], self._prompts)
            latch = Latch()
            latch.restore(plain["latch"])
            seen = set(msgspec.convert(plain["seen"], list[str]))
        self._judges, self._current, self._rounds = judges, current, rounds
        self._latch, self._seen = latch, seen
        self._share_out()

    def _judge(self, each: Round) -> None:
        judge, findings = self._judge_of(each), []
        if self._current.get(each.source) not in {None, judge}:
            findings.append(self._switched(self._current[each.source], judge))
        self._current[each.source] = judge
        judge.update(each)
        if judge.level() >= 1:
            self._page(judge)
        findings += self._differences(judge, each)
        self._find(findings, each)

    def _judge_of(self, each: Round) -> Judge:
        identity = self._identities.get(each.source)
        held = self._current.get(each.source)
        if (
            held is not None
            and held.identity is None
            and held.streams.layout == each.streams.layout
        ):
            # Learnt before the source had said what it is.
            self._judges.pop(self._key_of(held), None)
            held.identify(identity)
            self._judges[self._key_of(held)] = held
        key = canary_state.key_of(each.source, identity, each.streams.layout)
        if key not in self._judges:
            self._make_room()
            judge = Judge(each.source, each.streams, self._pace, len(self._prompts))
            judge.identify(identity)
            self._judges[key] = judge
            self._share_out()
        return self._judges[key]

    def _key_of(self, judge: Judge) -> str:
        return canary_state.key_of(judge.source, judge.identity, judge.streams.layout)

    def _make_room(self) -> None:
        while len(self._judges) >= MAX_JUDGES:
            oldest = min(self._judges, key=lambda key: self._judges[key].judged_ns)
            judge = self._judges.pop(oldest)
            if self._current.get(judge.source) is judge:
                del self._current[judge.source]

    def _share_out(self) -> None:
        num_sources = len({judge.source for judge in self._judges.values()})
        for judge in self._judges.values():
            judge.evidence.run_length = self._pace.mean_rounds * num_sources

    def _switched(self, old: Judge, new: Judge) -> str:
        told = (
            ", ".join(_changes(old.identity, new.identity, KERNELS)) or "another signature layout"
        )
        return (
            f"{new.source} runs under another configuration than before ({told}), which has a "
            "reference of its own, compared or learnt from now on: make sure the change was yours"
        )

    def _differences(self, judge: Judge, each: Round) -> Iterator[str]:
        identity = self._identities.get(each.source)
        fields = tuple(f for f in Identity.__struct_fields__ if f not in KERNELS)
        for change in _changes(judge.identity, identity, fields):
            yield f"{each.source} was learnt with another identity: {change}; {_REMEDY}"
        if judge.adapters and each.adapters - judge.adapters:
            names = ", ".join(sorted(each.adapters - judge.adapters)) or "the base model"
            yield f"{each.source} answers with {names}, which was not learnt; {_REMEDY}"
        changed = judge.changed_prompts(each)
        if len(changed):
            place = int(changed[0])
            yield (
                f"{len(changed)} prompts have another number of tokens at {each.source}, such as "
                f"{self._prompts[place]}: {each.num_tokens[place]} instead of "
                f"{judge.num_tokens[place]}; the tokenizer changed: {_REMEDY}"
            )

    def _find(self, findings: Sequence[str], each: Round) -> None:
        for finding in findings:
            if finding in self._seen:
                continue
            if len(self._seen) >= MAX_SEEN:
                self._seen.clear()
            self._seen.add(finding)
            ticket = Raised(ChannelState.TICKET, finding, each.start_ns, (), each.end_ns)
            self._latch.update(ticket)

    def _page(self, judge: Judge) -> None:
        causes = self._causes()
        onset = judge.onset()
        place = "in no layer alone" if onset is None else f"from layer {onset} on"
        worst = causes[0]
        since = [each.since_ns for each in causes if each.since_ns is not None and each.share >= 1]
        reason = (
            f"the executed model changed: {place}, {judge.source} deviates, most in {worst.stream} "
            f"at {worst.share:.1f} of its limit; {_REMEDY}"
        )
        since_ns = min(since, default=worst.since_ns or judge.judged_ns)
        self._latch.update(Raised(ChannelState.PAGE, reason, since_ns, causes, judge.judged_ns))

    def _level(self) -> float:
        return max((judge.level() for judge in self._current.values()), default=0.0)

    def _causes(self) -> tuple[Cause, ...]:
        """The largest of all sources, for each stream."""
        worst: dict[str, Deviation] = {}
        for each in self.deviations():
            name = each.stream.name
            if name not in worst or each.share > worst[name].share:
                worst[name] = each
        return worst_causes(
            Cause(name, d.stream.layer, d.stream.signal, "prefill", "high", d.share, d.since_ns)
            for name, d in worst.items()
            if d.share > 0
        )

    def _standing(self, now_ns: int) -> tuple[ChannelState, str]:
        """State and reason while nothing is latched."""
        judges = list(self._current.values())
        if not judges:
            return ChannelState.COLLECTING, (
                "no canary has been measured; set SIDECAR_CANARY_URL here, and "
                "SIDECAR_CANARY_KEY_FILE here and at the engine"
            )
        heard = [judge for judge in judges if now_ns - judge.judged_ns <= self._silent_ns]
        if not heard:
            return ChannelState.COLLECTING, (
                "no round of canaries has been measured for a while, so nothing is judged; see "
                "llm_internals_canary_rounds_total for what becomes of them"
            )
        least = min(heard, key=lambda judge: (judge.is_armed, judge.num_learnt))
        note = f"; {least.note}" if least.note else ""
        if not least.is_armed:
            told = f"{least.num_learnt} of {self._pace.min_rounds} rounds"
            return ChannelState.COLLECTING, f"{least.source} has learnt {told}; wait for them{note}"
        if not least.is_complete:
            told = f"{least.num_learnt} of {self._pace.num_rounds} benign rounds"
            return ChannelState.ARMED, f"hard rule only: {told}{note}"
        return ChannelState.ARMED, f"canaries of {len(heard)} sources look as they were learnt"


def _changes(before: Identity | None, now: Identity | None, fields: Sequence[str]) -> Iterator[str]:
    """Fields that both know and that differ, in words."""
    if before is None or now is None:
        return
    for field in fields:
        was, is_now = getattr(before, field), getattr(now, field)
        if was and is_now and was != is_now:
            yield f"{field} {is_now} instead of {was}"
