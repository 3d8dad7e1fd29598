"""Rounds of canaries, collected per source out of the signatures that tell of them.

Guarantees: a signature counts once, in the round that its tag names and for the source that
measured it; one whose rows were not all measured is left out, and counted; a round is closed when
it is complete, when the second next one has begun, or `PATIENCE_NS` after it began; what comes
later is counted as late, unless it is older than any late one can be: then the clock was set back,
and rounds of that source begin anew. At most `MAX_SOURCES` sources with `MAX_OPEN` open rounds each
are held.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift.canary_streams import CanaryStreams
from sidecar.fold.signatures import Signed
from sidecar.wire.canary import Canary, parse
from sidecar.wire.frame import Signature

PATIENCE_NS: Final = 180 * 10**9
SET_BACK_NS: Final = 2 * PATIENCE_NS
MAX_SOURCES: Final = 64
MAX_OPEN: Final = 2
NS_PER_MS: Final = 1_000_000


class Round(NamedTuple):
    """What one source measured of one replay of the suite; rows are prompts in the suite's order.

    start_ns: Unix time at which the runner began it. end_ns: end of its last request.
    values: float64 [P, m], entries of `streams`; NaN where nothing was measured.
    num_tokens: int64 [P] tokens of each prompt; 0 where it is missing.
    adapters: LoRA adapters that answered; "" is the base model.
    """

    source: str
    start_ns: int
    end_ns: int
    streams: CanaryStreams
    values: NDArray[np.float64]
    num_tokens: NDArray[np.int64]
    adapters: frozenset[str]

    @property
    def share(self) -> float:
        """Prompts that were measured, of all."""
        return float((self.num_tokens > 0).mean())


class OpenRound:
    """A round that is being collected."""

    def __init__(self, source: str, start_ns: int, streams: CanaryStreams, num: int) -> None:
        self.source = source
        self.start_ns = start_ns
        self.end_ns = start_ns
        self.streams = streams
        self.values = np.full((num, len(streams.places)), np.nan)
        self.num_tokens = np.zeros(num, np.int64)
        self.adapters: set[str] = set()

    def add(self, place: int, signature: Signature) -> None:
        """Take the signature of the prompt at `place`."""
        self.values[place] = self.streams.read(np.frombuffer(signature.values, "<f4"))
        self.num_tokens[place] = max(1, signature.num_prompt_tokens)
        self.adapters.add(signature.adapter)
        self.end_ns = max(self.end_ns, signature.t_ns)

    def close(self) -> Round:
        """What there is by now."""
        return Round(
            self.source,
            self.start_ns,
            self.end_ns,
            self.streams,
            self.values,
            self.num_tokens,
            frozenset(self.adapters),
        )


class Rounds:
    """Collects rounds of the prompts with these names.

    ignored: signatures of canaries that count in no round, by cause: unknown_prompt, unmeasured,
    duplicate, late, layout, too_many_sources.
    """

    def __init__(self, prompts: Sequence[str]) -> None:
        self._places = {name: place for place, name in enumerate(prompts)}
        self.open: dict[str, dict[int, OpenRound]] = {}
        self.closed_ns: dict[str, int] = {}
        self._streams: dict[str, CanaryStreams] = {}
        self.ignored: Counter[str] = Counter()

    def update(self, signed: Signed) -> list[Round]:
        """Take one signature; the rounds that it closes."""
        signature = signed.signature
        canary = parse(signature.canary) if signature.is_final and signature.canary else None
        if canary is None:
            return []
        start_ns = canary.round_ms * NS_PER_MS
        if self.closed_ns.get(signed.source, start_ns) - start_ns > SET_BACK_NS:
            del self.closed_ns[signed.source]
            self.open.pop(signed.source, None)
        cause = self._unusable(signed, canary)
        if cause:
            self.ignored[cause] += 1
            return []
        return list(self._take(signed, canary))

    def advance(self, now_ns: int) -> list[Round]:
        """Rounds that nobody waits for any longer."""
        due = [
            (source, start_ns)
            for source, rounds in self.open.items()
            for start_ns in sorted(rounds)
            if start_ns + PATIENCE_NS <= now_ns
        ]
        return [self._close(source, start_ns) for source, start_ns in due]

    def _unusable(self, signed: Signed, canary: Canary) -> str:
        """Why a signature counts in no round; "" when it does."""
        start_ns = canary.round_ms * NS_PER_MS
        place = self._places.get(canary.prompt)
        known = self.open.get(signed.source, {}).get(start_ns)
        causes = {
            "unknown_prompt": place is None,
            "unmeasured": signed.signature.num_unobserved > 0,
            "too_many_sources": signed.source not in self.open and len(self.open) >= MAX_SOURCES,
            "late": start_ns <= self.closed_ns.get(signed.source, -1),
            # The engine came back as another in the middle of the round.
            "layout": known is not None and known.streams.layout != signed.layout,
            "duplicate": known is not None and place is not None and known.num_tokens[place] > 0,
        }
        return next((cause for cause, holds in causes.items() if holds), "")

    def _take(self, signed: Signed, canary: Canary) -> Iterator[Round]:
        source, start_ns = signed.source, canary.round_ms * NS_PER_MS
        rounds = self.open.setdefault(source, {})
        if start_ns not in rounds:
            streams = self._streams_of(source, signed)
            rounds[start_ns] = OpenRound(source, start_ns, streams, len(self._places))
        opened = rounds[start_ns]
        opened.add(self._places[canary.prompt], signed.signature)
        while len(rounds) > MAX_OPEN:
            yield self._close(source, min(rounds))
        if opened.num_tokens.all() and start_ns in rounds:
            # In order of time: an older one that is still open will not be completed any more.
            for older in sorted(each for each in rounds if each <= start_ns):
                yield self._close(source, older)

    def _streams_of(self, source: str, signed: Signed) -> CanaryStreams:
        held = self._streams.get(source)
        if held is None or held.layout != signed.layout:
            held = self._streams[source] = CanaryStreams.of(signed.layout)
        return held

    def _close(self, source: str, start_ns: int) -> Round:
        self.closed_ns[source] = max(start_ns, self.closed_ns.get(source, -1))
        return self.open[source].pop(start_ns).close()
