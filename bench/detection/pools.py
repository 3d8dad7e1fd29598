"""Pools of real signatures: what the bundled model, or a changed one, made of real prompts.

Served once and kept under `.cache/`, in chunks, so that a run that was stopped goes on where it
stopped. A chunk is fixed by its name and number: the same prompts and, on one machine, the same
numbers. Windows drawn from a pool resample it; what that flatters is told where it is used.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from bench.detection.served import MOST_AT_ONCE, Served, batches
from bench.detection.text import Prompt, Tokens, draw

CACHE: Final = Path(__file__).parents[2] / ".cache" / "detection"
CHUNK: Final = 1024
NUM_TOKENS: Final = 4  # generated for each request: decode is measured, and a pool stays cheap


class Pool(NamedTuple):
    """Requests as the traffic channel sees them.

    domains: [n] where the text comes from, as a place in `names`.
    lengths: [n, 2] prompt and generated tokens. values: float32 [n, size(layout)].
    """

    names: tuple[str, ...]
    domains: NDArray[np.int64]
    lengths: NDArray[np.int64]
    values: NDArray[np.float32]

    def merge(self, other: Self) -> Self:
        """Both, this one first; of the same domains."""
        joined = [np.concatenate(pair) for pair in zip(self[1:], other[1:], strict=True)]
        return type(self)(self.names, *joined)

    @property
    def num(self) -> int:
        """Requests."""
        return len(self.domains)


def serve(served: Served, prompts: list[Prompt], names: tuple[str, ...]) -> Pool:
    """What `served` makes of the prompts, in their order."""
    found: list[Any] = [None] * len(prompts)
    for places in batches([each.tokens for each in prompts], MOST_AT_ONCE):
        answers = served.ask([prompts[place].tokens for place in places], NUM_TOKENS)
        for place, signature in zip(places, answers, strict=True):
            found[place] = signature
    return Pool(
        names,
        np.array([names.index(each.domain) for each in prompts]),
        np.array([(each.num_prompt_tokens, each.num_generated_tokens) for each in found]),
        np.stack([np.frombuffer(each.values, "<f4") for each in found]),
    )


class Source(NamedTuple):
    """Where pools of one model come from: what serves it, and the text of its prompts."""

    name: str
    model: Any
    text: Mapping[str, Tokens]

    def pool(self, use: str, num: int, shares: Mapping[str, float], cache: Path = CACHE) -> Pool:
        """At least `num` requests for a `use` (another one has other prompts), in whole chunks.

        Fewer than a chunk are a pool of their own, with prompts of its own.
        """
        folder = cache / "pools"
        folder.mkdir(parents=True, exist_ok=True)
        parts = range(-(-num // CHUNK)) if num >= CHUNK else [f"first{num}"]
        wanted = [folder / f"{self.name}-{use}-{part}.npz" for part in parts]
        missing = [path for path in wanted if not path.exists()]
        if missing:
            self._serve(missing, use, shares, min(num, CHUNK))
        pool = _load(wanted[0])
        for path in wanted[1:]:
            pool = pool.merge(_load(path))
        return pool

    def _serve(self, missing: list[Path], use: str, shares: Mapping[str, float], num: int) -> None:
        started = time.monotonic()
        with Served(self.model) as served:
            for done, path in enumerate(missing):
                # The model's name is left out: all models are asked the same.
                key = crc32(f"{use}-{path.stem.rpartition('-')[2]}".encode())
                prompts = draw(self.text, np.random.default_rng(key), num, shares)
                _store(path, serve(served, prompts, tuple(shares)))
                _progress(f"{self.name} {use}", done + 1, len(missing), started)


def _progress(what: str, done: int, total: int, started: float) -> None:
    left = (time.monotonic() - started) * (total / done - 1)
    print(f"\r{what}: {done}/{total} chunks, {left:.0f} s left\033[K", end="", file=sys.stderr)
    if done == total:
        print(file=sys.stderr)


def _store(path: Path, pool: Pool) -> None:
    torn = path.with_suffix(".part.npz")
    np.savez(torn, **pool._asdict())
    torn.rename(path)


def _load(path: Path) -> Pool:
    with np.load(path) as stored:
        names = tuple(str(name) for name in stored["names"])
        return Pool(names, stored["domains"], stored["lengths"], stored["values"])
