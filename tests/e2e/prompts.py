"""Prompts for the end-to-end tests: slices of the documentation that Python carries."""

import random
from pydoc_data.topics import topics

from tokenizers import Tokenizer

from tests.e2e.harness import MODEL


class Prompts:
    """Cuts token sequences out of one long text; the same seed gives the same prompts."""

    def __init__(self) -> None:
        tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        text = "\n".join(topics[name] for name in sorted(topics))[:400_000]
        self._tokens = tokenizer.encode(text).ids

    def cut(self, lengths: list[int], seed: int) -> list[list[int]]:
        """One prompt of each length."""
        rng = random.Random(seed)
        starts = [rng.randrange(len(self._tokens) - 1000) for _ in lengths]
        return [self._tokens[s : s + n] for s, n in zip(starts, lengths, strict=True)]

    def mixed(self, number: int, seed: int) -> list[list[int]]:
        """Prompts of mixed lengths, from 1 token to several prefill chunks."""
        rng = random.Random(seed)
        edge = [1, 2, 3, 4, 5, 255, 256, 257, 600]
        return self.cut((edge + [rng.randrange(6, 400) for _ in range(number)])[:number], seed)
