"""Paged keys as engines lay them out, and what their concentration must be: dense, in float64."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from sidecar.tap.concentration import Keys

SPARE_BLOCKS = 3  # blocks that belong to nobody, filled with NaN


@dataclass
class Case:
    """Random queries and keys of a few requests, and the memory that holds the keys.

    layout: of the cache: `nhd` and `hnd` as on a GPU, `transposed` as on a CPU, `tiled` as on a CPU
    with AMX.
    lengths: positions of each request. places: whose turn it is.
    """

    lengths: tuple[int, ...] = (37, 1, 16, 70)
    places: tuple[int, ...] = (0, 1, 2, 3)
    num_heads: int = 4
    num_kv_heads: int = 2
    head_size: int = 16
    block_size: int = 16
    layout: str = "nhd"
    dtype: torch.dtype = torch.float32
    stored: torch.dtype | None = None
    sharpness: float = 1.0
    window: int = 0
    softcap: float = 0.0
    factors: tuple[float, ...] = ()
    seed: int = 0
    keys: Keys = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        self.query = (self.sharpness * random(len(self.places), self.num_heads, self.head_size)).to(
            self.dtype
        )
        stored = self.stored or self.dtype
        self.dense = [random(n, self.num_kv_heads, self.head_size).to(stored) for n in self.lengths]
        columns = -(-max(self.lengths) // self.block_size)
        num_blocks = len(self.lengths) * columns + SPARE_BLOCKS
        shuffled = torch.randperm(num_blocks, generator=generator)
        self.table = shuffled[: len(self.lengths) * columns].view(-1, columns).to(torch.int32)
        factors = torch.tensor(self.factors) if self.factors else None
        cache = self._memory(num_blocks, stored)
        scale = self.head_size**-0.5
        self.keys = Keys(cache, scale, self.window, self.softcap, factors)
        self.fill()

    def fill(self) -> None:
        """Write the keys into their blocks; what holds no key is NaN."""
        cache = self.keys.cache
        shape = (len(cache), self.num_kv_heads, self.block_size, self.head_size)
        blocks = torch.full(shape, torch.nan).to(cache.dtype)
        for row, dense in enumerate(self.dense):
            for position, key in enumerate(dense):
                block = self.table[row, position // self.block_size]
                blocks[block, :, position % self.block_size] = key
        cache.copy_(tiled(blocks) if self.layout == "tiled" else blocks)

    @property
    def arguments(self) -> tuple[torch.Tensor, Keys, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Arguments of `measure`."""
        lengths = torch.tensor([self.lengths[place] for place in self.places])
        return self.query, self.keys, self.table, torch.tensor(self.places), lengths

    def expected(self) -> np.ndarray:
        """[R, heads, 4] signals, from the same query and keys in float64."""
        found = []
        for query, place in zip(self.query.double(), self.places, strict=True):
            keys = self.dense[place].double()
            if self.factors:
                keys = keys * torch.tensor(self.factors).double().view(1, -1, 1)
            keys = keys.repeat_interleave(self.num_heads // self.num_kv_heads, 1)
            logits = self.keys.scale * torch.einsum("hd,nhd->hn", query, keys)
            found.append(concentration(self._shaped(logits)))
        return np.stack(found)

    def _shaped(self, logits: torch.Tensor) -> torch.Tensor:
        if self.softcap:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        if self.window:
            logits[:, : max(0, logits.shape[1] - self.window)] = -torch.inf
        return logits

    def _memory(self, num_blocks: int, dtype: torch.dtype) -> torch.Tensor:
        """The view [blocks, KV heads, tokens, head size] of K beside V, as each layout has it."""
        blocks, heads, tokens, size = num_blocks, self.num_kv_heads, self.block_size, self.head_size
        if self.layout == "nhd":
            both = torch.zeros(blocks, tokens, heads, 2 * size, dtype=dtype)
            return both.transpose(1, 2)[..., :size]
        if self.layout == "hnd":
            return torch.zeros(blocks, heads, tokens, 2 * size, dtype=dtype)[..., :size]
        if self.layout == "tiled":
            return torch.zeros(blocks, heads, 2, tokens // 16, size // 2, 16, 2, dtype=dtype)[
                :, :, 0
            ]
        both = torch.zeros(blocks, heads, 2, size, tokens, dtype=dtype)
        return both[:, :, 0].transpose(-1, -2)


def tiled(blocks: torch.Tensor) -> torch.Tensor:
    """[..., tokens, head size] as AMX multiplies them: 16 tokens, two numbers of each, to a row."""
    return blocks.unflatten(-2, (-1, 16)).unflatten(-1, (-1, 2)).transpose(-3, -2)


def neighbours(case: Case, num_layers: int) -> list[Case]:
    """As many layers like `case`, with queries and keys of their own, and one table."""
    layers = [replace(case, seed=seed) for seed in range(num_layers)]
    for each in layers[1:]:
        each.table = layers[0].table
        each.fill()
    return layers


def concentration(logits: torch.Tensor) -> np.ndarray:
    """[..., 4] signals of rows of float64 logits [..., n], by the definitions."""
    weights = logits.softmax(-1)
    n = int((weights > 0).sum(-1).max())
    entropy = -torch.special.xlogy(weights, weights).sum(-1)
    return torch.stack(
        [
            entropy / np.log(n) if n > 1 else torch.zeros_like(entropy),
            weights.amax(-1),
            1.0 / weights.square().sum(-1),
            weights[..., :4].sum(-1),
        ],
        -1,
    ).numpy()
