"""Alarms as they come: an engine of its own whose model overflows, and whose canaries change.

Guarantee: an alarm counts as raised only once the API told of it; from then on it must be told of,
by every later sidecar too, until `acknowledge`.
"""

import json
import secrets
from pathlib import Path
from typing import Final

import numpy as np

from bench.chaos.stand import Stand
from sidecar.wire.frame import Body, Signature, Signatures, Source
from sidecar.wire.signature import Layout, size
from sidecar.wire.synthetic import SyntheticEngine

RANK: Final = 900  # no rank of a stand has this number
_PROMPTS: Final = tuple(f"prompt-{number}" for number in range(8))
_BENIGN_ROUNDS: Final = 24  # of which 20 arm the hard rule
_CHANGED_ROUNDS: Final = 4  # of which 2 are a page
_MS: Final = 1_000_000
_LAYOUT: Final = Layout([0, 2, 4, 5], sketch_layers=[2, 5], sketch_size=4)


def options(folder: Path) -> list[str]:
    """What a sidecar must be told to judge these alarms, and to keep them in `folder/state`."""
    key, suite = folder / "canary.key", folder / "suite.jsonl"
    key.write_text(secrets.token_hex(16))
    line = {"route": "chat", "length": "short", "tags": [], "prompt": "Say it again. " * 4}
    suite.write_text("\n".join(json.dumps({"id": prompt, **line}) for prompt in _PROMPTS))
    # Nobody listens at the address: the rounds come from here, as an engine would tell of them.
    told = ["--canary-url", "http://127.0.0.1:9", "--canary-key-file", str(key)]
    return [*told, "--canary-suite", str(suite), "--state-dir", str(folder / "state")]


class Alarms:
    """Raises alarms at a stand whose sidecar was given `options`."""

    def __init__(self, stand: Stand) -> None:
        self.num_raised = 0
        self.num_lost = 0
        self._stand = stand
        self._expected: set[str] = set()
        self._model = SyntheticEngine(num_requests=RANK * 10_000_000)
        self._draw = np.random.default_rng(1)
        self._round_ms = 0
        self._told = stand.speaker(Source("engine", RANK))
        self._say(self._model.status())
        self._say(self._model.step())

    def overflow(self) -> None:
        """NaN in one more layer than before: the integrity channel pages."""
        layer = self.num_raised % self._model.num_layers
        self._model.totals.nonfinite[layer] += 1
        self._say(self._model.step())
        self._raised("integrity")

    def canary(self) -> None:
        """Canaries as ever, then changed: the canary channel pages."""
        for number in range(_BENIGN_ROUNDS + _CHANGED_ROUNDS):
            self._say(self._round(1.5 if number >= _BENIGN_ROUNDS else 1.0))
        self._raised("canary")

    def acknowledge(self, channel: str) -> None:
        """Somebody has seen it."""
        self._expected.discard(channel)
        self._stand.ask(f"/v1/drift/{channel}/acknowledge", {})

    def are_told(self) -> bool:
        """Whether everything that was raised is told now."""
        states = self._stand.states()
        return all(states[channel] == "page" for channel in self._expected)

    def check(self) -> None:
        """Count what was raised and is not told."""
        states = self._stand.states()
        gone = {channel for channel in self._expected if states[channel] != "page"}
        self.num_lost += len(gone)
        self._expected -= gone

    def close(self) -> None:
        """The last frame of this engine."""
        self._told.close(self._model.status())

    def _raised(self, channel: str) -> None:
        self._expected.add(channel)
        self._stand.wait(f"{channel} pages", self.are_told)
        self.num_raised += 1

    def _say(self, body: Body) -> None:
        self._stand.wait("a frame is handed over", lambda: self._told.say(body))

    def _round(self, factor: float) -> Signatures:
        now_ns = self._stand.clock()
        self._round_ms += 1
        if abs(self._round_ms - now_ns // _MS) > _MS:  # the first one, or the clock was set
            self._round_ms = now_ns // _MS
        signed = []
        for number, prompt in enumerate(_PROMPTS):
            usual = np.random.default_rng(number).normal(2, 1, size(_LAYOUT))
            values = usual * factor * (1 + 1e-3 * self._draw.normal(size=len(usual)))
            signed.append(self._signature(prompt, now_ns, values.astype("<f4").tobytes()))
        return Signatures(_LAYOUT, signed)

    def _signature(self, prompt: str, now_ns: int, values: bytes) -> Signature:
        return Signature(
            f"{prompt}-{self._round_ms}",
            now_ns,
            is_final=True,
            num_prompt_tokens=40,
            num_generated_tokens=1,
            adapter="",
            preemptions=0,
            values=values,
            canary=f"{prompt}@{self._round_ms}",
        )
