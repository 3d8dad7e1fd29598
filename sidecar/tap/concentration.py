"""How concentrated attention is: four numbers per query head, from one pass over the paged keys.

For the weights p of one query over the n positions it attends to: entropy over log n (0 at n = 1),
the largest weight, the effective number of tokens 1 / sum p^2, and the weight of the first
positions, the attention sinks (Xiao et al. 2023, arXiv:2309.17453).

No row of weights is ever stored. With s the logits and m the largest of them so far, five sums are
carried from block to block, as in the online softmax (Milakov and Gimelshein 2018,
arXiv:1805.02867): m itself, Z = sum e^(s-m), A = sum (s-m) e^(s-m), Q = sum e^(2(s-m)), and S, the
part of Z at the first positions. When m rises by d: Z, S shrink by c = e^-d, Q by c^2, and A
becomes c (A - d Z). At the end: entropy = log Z - A / Z nats, max p = 1 / Z, sum p^2 = Q / Z^2.

Plain torch on a CPU, a Triton kernel on a GPU; float32 sums on both. Every index is clamped.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.tap.rows import Ints
from sidecar.wire.signals import GROUPS, NUM_FIRST_POSITIONS

NUM_SIGNALS: Final = len(GROUPS["attention"].signals)
_CHUNK_TOKENS: Final = 1024  # keys of all requests at a time: half a MB per KV head
_TILED_DIMS: Final = 6  # of a cache that is packed for AMX
_FLOOR: Final = -1e4  # e to the power of it is 0, and times it no more than that


class Keys(NamedTuple):
    """The keys of one attention layer where the engine keeps them, and how logits are made.

    cache: [blocks, KV heads, tokens per block, head size], any strides, any float type; or packed
    in tiles for a CPU with AMX, [blocks, KV heads, tiles, head size / 2, tokens of a tile, 2].
    scale: a logit is scale * q . k. window: positions attended to, the query's own included; 0 for
    all. softcap: c of c tanh(logit / c); 0 for none.
    factors: [KV heads] float32 by which stored keys are multiplied (an 8-bit cache); else None.
    """

    cache: torch.Tensor
    scale: float
    window: int = 0
    softcap: float = 0.0
    factors: torch.Tensor | None = None

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        shape = self.cache.shape
        return shape[2] * shape[4] if self.is_tiled else shape[2]

    @property
    def is_tiled(self) -> bool:
        """Whether they are packed for AMX."""
        return self.cache.dim() == _TILED_DIMS

    def is_like(self, other: "Keys") -> bool:
        """Whether both can be measured at once."""
        return (
            self[1:4] == other[1:4]
            and self.cache.shape == other.cache.shape
            and self.cache.dtype == other.cache.dtype
            and (self.factors is None) == (other.factors is None)
        )


def measure(
    query: torch.Tensor,
    keys: Keys,
    table: torch.Tensor,
    places: torch.Tensor,
    lengths: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Signals of each query head, [R, heads, NUM_SIGNALS] float32, in the order of the group.

    query: [R, heads, head size], one row of R requests; heads of one KV head stand together.
    table: [requests, columns] numbers of the blocks that hold each request's keys, in order.
    places: [R] int64, rows of `table`. lengths: [R] int64, position of each query row plus 1.
    """
    if out is None:
        shape = (*query.shape[:2], NUM_SIGNALS)
        out = torch.empty(shape, dtype=torch.float32, device=query.device)
    measure_layers([query], [keys], table, places, lengths, out.unsqueeze(0))
    return out


def measure_layers(
    queries: Sequence[torch.Tensor],
    keys: Sequence[Keys],
    table: torch.Tensor,
    places: torch.Tensor,
    lengths: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """The same of layers that are alike and have one table: into `out`, [L, R, heads, NUM_SIGNALS].

    On a CPU at once, as if the KV heads of all were those of one layer: there a short context costs
    what its some fifty operations do.
    """
    if out.is_cuda:
        # Triton is loaded only where a GPU is: elsewhere its first import costs seconds.
        from sidecar.tap import concentration_kernel  # noqa: PLC0415

        for query, each, place in zip(queries, keys, out, strict=True):
            concentration_kernel.measure(query, each, table, places, lengths, place)
        return
    # Numbers of blocks and positions in numpy: an operation there takes a fifth of torch's.
    num_blocks, block_size = len(keys[0].cache), keys[0].block_size
    blocks = table.numpy()[places.numpy().clip(0, len(table) - 1)].clip(0, num_blocks - 1)
    reach = lengths.numpy().clip(1, blocks.shape[1] * block_size)
    # The longest first, so that those with keys left always stand at the beginning.
    order = np.argsort(-reach, kind="stable")
    query = torch.cat([each[order] for each in queries], 1)
    signals = _measure_rows(query, keys, blocks[order], reach[order])
    by_layer = signals.view(len(order), len(keys), -1, NUM_SIGNALS).transpose(0, 1)
    out[:, torch.from_numpy(order)] = by_layer


def _measure_rows(
    query: torch.Tensor, keys: Sequence[Keys], blocks: NDArray[np.integer], lengths: Ints
) -> torch.Tensor:
    """Signals of rows, [R, heads, NUM_SIGNALS], whose lengths [R] fall; blocks [R, columns].

    Heads of all layers, those of the first before those of the next.
    """
    num_rows, num_heads, head_size = query.shape
    block_size, window = keys[0].block_size, keys[0].window
    num_kv_heads = len(keys) * keys[0].cache.shape[1]
    grouped = query.float().view(num_rows, 1, num_kv_heads, -1, head_size)
    factors = [each.factors for each in keys if each.factors is not None]
    if factors:
        grouped = grouped * torch.cat(factors).view(-1, 1, 1)
    firsts = (lengths - window).clip(0) if window else np.zeros_like(lengths)
    offsets = firsts // block_size  # of the column that holds a row's first position
    ends = lengths - offsets * block_size
    sums = _Sums.none(num_rows, num_kv_heads, num_heads // num_kv_heads)
    num_columns = -(-int(ends.max()) // block_size)
    most = max(1, _CHUNK_TOKENS // (block_size * num_rows))
    for column in range(0, num_columns, most):
        start, step = column * block_size, min(most, num_columns - column)
        # Windows begin anywhere in a block, so the ends need not fall as the lengths do.
        num_left = int(np.flatnonzero(ends > start)[-1]) + 1
        columns = column + np.arange(step) + offsets[:num_left, None]
        chosen = np.take_along_axis(
            blocks[:num_left], columns.clip(max=blocks.shape[1] - 1), axis=1
        )
        positions = start + np.arange(step * block_size) + (block_size * offsets)[:num_left, None]
        is_outside = (positions < firsts[:num_left, None]) | (positions >= lengths[:num_left, None])
        sums.add(
            _logits(grouped[:num_left], keys, chosen),
            torch.from_numpy(is_outside[:, None, None]) if is_outside.any() else None,
            torch.from_numpy(positions[:, None, None] < NUM_FIRST_POSITIONS)
            if not column
            else None,
        )
    num_positions = torch.from_numpy(lengths - firsts)
    return sums.signals(num_positions[:, None, None]).flatten(1, 2)


def _logits(
    grouped: torch.Tensor, keys: Sequence[Keys], chosen: NDArray[np.integer]
) -> torch.Tensor:
    """Of each query head with each position, [R, KV heads, heads of one, columns * block size].

    grouped: [R, 1, KV heads, heads of one, head size]. chosen: [R, columns] numbers of blocks.
    """
    places, (_, scale, _, softcap, _) = torch.from_numpy(chosen.ravel()), keys[0]
    stored = gathered(keys, places).float()
    products = grouped @ stored.view(*chosen.shape, *stored.shape[1:])
    logits = products.permute(0, 2, 3, 1, 4).flatten(3).mul_(scale)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return logits


def gathered(keys: Sequence[Keys], places: torch.Tensor) -> torch.Tensor:
    """[blocks of `places`, KV heads of all layers, head size, block size], contiguous.

    As most CPU engines store them: no copy but the gathering. Tiles are unpacked after it.
    """
    if not keys[0].is_tiled:
        turned = [each.cache.transpose(-1, -2).index_select(0, places) for each in keys]
        return torch.cat(turned, 1)
    tiles = torch.cat([each.cache.index_select(0, places) for each in keys], 1)
    blocks, heads, _, pairs, _, of_pair = tiles.shape
    turned_tiles = tiles.permute(0, 1, 3, 5, 2, 4)
    return turned_tiles.reshape(blocks, heads, pairs * of_pair, keys[0].block_size)


class _Sums:
    """The five sums of the module's docstring, each [R, KV heads, heads of one KV head]."""

    def __init__(self, *sums: torch.Tensor) -> None:
        self.m, self.z, self.a, self.q, self.s = sums

    @classmethod
    def none(cls, *shape: int) -> "_Sums":
        """Of no positions. A finite m: what it is multiplied with is 0, and must not be NaN."""
        m = torch.full(shape, torch.finfo(torch.float32).min)
        return cls(m, *torch.zeros(4, *shape))

    def add(
        self,
        logits: torch.Tensor,
        is_outside: torch.Tensor | None,
        is_first: torch.Tensor | None,
    ) -> None:
        """More positions of the first rows; logits [r, ..., n], overwritten.

        is_outside: positions that do not count, where what is stored may be no number; None: all
        count. is_first: those of the sinks; None: none is.
        """
        m, z, a, q, s = (each[: len(logits)] for each in (self.m, self.z, self.a, self.q, self.s))
        if is_outside is not None:
            logits.masked_fill_(is_outside, torch.finfo(torch.float32).min)
        risen = torch.maximum(m, logits.amax(-1))
        fall = m - risen
        c = fall.exp()
        below = logits.sub_(risen.unsqueeze(-1)).clamp_min_(_FLOOR)
        weights = below.exp()
        a.copy_(c * (a + fall * z) + torch.linalg.vecdot(below, weights))
        z.mul_(c).add_(weights.sum(-1))
        q.mul_(c * c).add_(torch.linalg.vecdot(weights, weights))
        s.mul_(c)
        if is_first is not None:
            s.add_((weights * is_first).sum(-1))
        m.copy_(risen)

    def signals(self, num_positions: torch.Tensor) -> torch.Tensor:
        """[..., NUM_SIGNALS] in the order of the group."""
        entropy = (self.z.log() - self.a / self.z).clamp_min(0.0)
        # One position has no entropy; 0 / log 1 is no number.
        ratio = entropy * (num_positions > 1) / num_positions.clamp_min(2).log()
        return torch.stack([ratio, 1.0 / self.z, self.z.square() / self.q, self.s / self.z], -1)
