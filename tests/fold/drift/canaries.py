"""An engine that answers canaries: plausible signatures, repeated with the noise one asks for."""

from collections.abc import Iterable, Iterator

import numpy as np

from sidecar.fold.drift.canary import CanaryChannel
from sidecar.fold.drift.canary_judge import Pace
from sidecar.fold.signatures import Signed
from sidecar.wire.frame import Signature
from sidecar.wire.signature import Layout, entries
from tests.fakes import NOW, SECOND

LAYOUT = Layout([0, 2, 5], sketch_layers=[2, 5], sketch_size=4)
PROMPTS = tuple(f"p{k}" for k in range(12))
ENGINE = "engine-dp0-pp0-tp0"
PACE = Pace(min_rounds=20, num_rounds=60, mean_rounds=10_000)
QUICK = Pace(min_rounds=6, num_rounds=12, mean_rounds=100)


class Engine:
    """One source. noise: sd of each entry over repeats, as a share of it; drawn from `seed`.

    shift: what is added to entries, by a part of their name (`$` is its end), in shares.
    """

    def __init__(
        self,
        source: str = ENGINE,
        noise: float = 1e-3,
        seed: int = 0,
        layout: Layout = LAYOUT,
        prompts: Iterable[str] = PROMPTS,
    ) -> None:
        self.source = source
        self.noise = noise
        self.layout = layout
        self.prompts = tuple(prompts)
        self.shift: dict[str, float] = {}
        self.num_tokens = 40
        self.adapter = ""
        self.num_rounds = 0
        self._names = list(entries(layout))
        self._draw = np.random.default_rng(seed)
        truth = np.random.default_rng(99)
        self._truth = {name: truth.normal(2, 1, len(self._names)) for name in sorted(self.prompts)}

    @property
    def now_ns(self) -> int:
        """Start of the latest round, which are a minute apart."""
        return NOW + self.num_rounds * 60 * SECOND

    def values(self, prompt: str) -> np.ndarray:
        """One signature of a prompt."""
        size = len(self._names)
        moved = np.array(
            [sum(v for part, v in self.shift.items() if part in f"{name}$") for name in self._names]
        )
        relative = 1 + self.noise * self._draw.normal(size=size) + moved
        return (self._truth[prompt] * relative).astype("<f4")

    def signed(self, prompt: str, round_ms: int, **changes: object) -> Signed:
        """The final signature of one canary."""
        fields = {
            "id": f"{prompt}-{round_ms}",
            "t_ns": round_ms * 1_000_000 + SECOND,
            "is_final": True,
            "num_prompt_tokens": self.num_tokens,
            "num_generated_tokens": 1,
            "adapter": self.adapter,
            "preemptions": 0,
            "values": self.values(prompt).tobytes(),
            "canary": f"{prompt}@{round_ms}",
        }
        return Signed(self.source, self.layout, Signature(**(fields | changes)))

    def round(self, prompts: Iterable[str] | None = None) -> Iterator[Signed]:
        """The next round."""
        self.num_rounds += 1
        for prompt in self.prompts if prompts is None else prompts:
            yield self.signed(prompt, self.now_ns // 1_000_000)


def channel(pace: Pace = PACE) -> CanaryChannel:
    """A channel of the suite that an engine answers by default."""
    return CanaryChannel(PROMPTS, "digest", pace, seconds=60.0)


def feed(judge: CanaryChannel, engine: Engine, num_rounds: int = 1) -> CanaryChannel:
    """Replay the suite so many times."""
    for _ in range(num_rounds):
        for signed in engine.round():
            judge.update(signed)
    return judge
