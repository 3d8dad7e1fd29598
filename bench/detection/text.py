"""Prompts: runs of tokens of the text the bundled model knows, and of text it never saw.

Three domains out of this Python installation (`sidecar.demo.corpus`), each a route, and German.
A prompt is a run of consecutive tokens at a random place; the same generator draws the same ones.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.detection.served import tokenizer
from sidecar.demo import corpus

ROUTES: Final = corpus.DOMAINS
SHARES: Final = (0.3, 0.5, 0.2)  # of traffic, by route
FOREIGN: Final = "german"  # what a language shift consists of; no route of its own
FEWEST, MOST = 16, 80  # tokens of a prompt
_GERMAN: Final = Path(__file__).with_name("german.txt")

Tokens = NDArray[np.uint16]


class Prompt(NamedTuple):
    """One request to serve: where its text comes from, and its tokens."""

    domain: str
    tokens: list[int]


def streams(folder: Path) -> Mapping[str, Tokens]:
    """All text of each domain as one run of tokens; kept in `folder` after the first call."""
    path = folder / "text.npz"
    if not path.exists():
        tokens = tokenizer()
        texts = {domain: [item.text for item in corpus.documents(domain)] for domain in ROUTES}
        texts[FOREIGN] = [_GERMAN.read_text(encoding="utf-8")]
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{domain: _encoded(tokens, found) for domain, found in texts.items()})
    with np.load(path) as stored:
        return {domain: stored[domain] for domain in stored.files}


def draw(
    text: Mapping[str, Tokens], rng: np.random.Generator, num: int, shares: Mapping[str, float]
) -> list[Prompt]:
    """`num` prompts; domains by `shares`, lengths log-uniform over `FEWEST` to `MOST` tokens."""
    domains = list(shares)
    chosen = rng.choice(len(domains), num, p=np.array([shares[each] for each in domains]))
    lengths = np.exp(rng.uniform(np.log(FEWEST), np.log(MOST), num)).astype(int)
    return [
        Prompt(domains[which], cut(text[domains[which]], rng, int(length)))
        for which, length in zip(chosen, lengths, strict=True)
    ]


def cut(stream: Tokens, rng: np.random.Generator, length: int) -> list[int]:
    """`length` consecutive tokens of `stream`, from a random place."""
    start = int(rng.integers(len(stream) - length))
    return [int(token) for token in stream[start : start + length]]


def _encoded(tokens: object, texts: list[str]) -> Tokens:
    rows = tokens.backend_tokenizer.encode_batch(texts)  # type: ignore[attr-defined]
    return np.array([token for row in rows for token in row.ids], np.uint16)
