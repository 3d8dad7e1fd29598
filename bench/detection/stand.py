"""What every section on the real model stands on: the model, its text, its canaries, its layout."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from bench.detection import rounds, served, text
from bench.detection.pools import CACHE, Pool, Source
from sidecar.wire.signature import Layout

SHARES: Final = dict(zip(text.ROUTES, text.SHARES, strict=True))


class Stand(NamedTuple):
    """The bundled model, its tokenizer and text, the bundled suite as tokens, where to keep."""

    model: Any
    tokens: Any
    text: Mapping[str, text.Tokens]
    asked: Sequence[Sequence[int]]
    cache: Path = CACHE

    @classmethod
    def of(cls, cache: Path = CACHE) -> Self:
        """The bundled model and suite."""
        tokens = served.tokenizer()
        return cls(served.bundled(), tokens, text.streams(cache), rounds.prompts(tokens), cache)

    def layout(self) -> Layout:
        """Of the signatures that this model gives."""
        with served.Served(self.model) as now:
            now.ask(self.asked[:1], 1)
            return now.layout

    def pool(self, use: str, num: int, shares: Mapping[str, float] = SHARES) -> Pool:
        """Requests of the unchanged model."""
        return Source("bundled", self.model, self.text).pool(use, num, shares, self.cache)

    def changed_pool(self, name: str, model: Any, num: int) -> Pool:
        """Requests of a changed model: the same prompts for each."""
        return Source(name, model, self.text).pool("judged", num, SHARES, self.cache)
