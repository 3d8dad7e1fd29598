"""Rounds of canaries on the bundled model, as it is and after each change, under emulated noise.

The bundled suite, prefill and one token, through transformers with the tap attached. Like pools,
rounds are kept under `.cache/` and fixed by their names; the draw of the noise never repeats.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from bench.detection import noise
from bench.detection.pools import CACHE
from bench.detection.served import Served, batches
from sidecar.publish.canary.suite import read_suite

AT_ONCE: Final = 16  # of the suite's prompts in one pass: short ones are not padded to long ones
MOST_TOKENS: Final = 96  # long prompts are cut there, which halves the time of a run

Values = NDArray[np.float32]


class Rounds(NamedTuple):
    """values: float32 [rounds, prompts, size(layout)]; num_tokens: [prompts]."""

    values: Values
    num_tokens: NDArray[np.int64]


def prompts(tokens: Any) -> list[list[int]]:
    """The bundled suite as token ids, in its order, each cut at `MOST_TOKENS`."""
    return [tokens(prompt.prompt)["input_ids"][:MOST_TOKENS] for prompt in read_suite().prompts]


def serve(model: Any, asked: Sequence[Sequence[int]], num: int) -> Rounds:
    """`num` rounds of the prompts `asked`."""
    found = []
    with Served(model) as served:
        for _ in range(num):
            answers: list[Any] = [None] * len(asked)
            for places in batches(asked, AT_ONCE):
                signatures = served.ask([asked[place] for place in places], 1)
                for place, signature in zip(places, signatures, strict=True):
                    answers[place] = np.frombuffer(signature.values, "<f4")
            found.append(np.stack(answers))
    return Rounds(np.stack(found), np.array([len(prompt) for prompt in asked]))


def kept(
    name: str,
    make: Callable[[], Any],
    accumulator: noise.Sum,
    asked: Sequence[Sequence[int]],
    num: int,
    cache: Path = CACHE,
) -> Rounds:
    """`num` rounds of the model that `make` gives, under noise; out of the cache where they are."""
    path = cache / "rounds" / f"{name}-{accumulator}-{num}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"rounds: {path.stem}", file=sys.stderr, flush=True)
        noisy = noise.split(copy.deepcopy(make()), crc32(path.stem.encode()), accumulator)
        made = serve(noisy, asked, num)
        torn = path.with_suffix(".part.npz")
        np.savez(torn, **made._asdict())
        torn.rename(path)
    with np.load(path) as stored:
        return Rounds(stored["values"], stored["num_tokens"])
