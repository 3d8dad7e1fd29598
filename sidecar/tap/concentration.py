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

import math
from typing import Final, NamedTuple

import torch

from sidecar.wire.signals import GROUPS, NUM_FIRST_POSITIONS

NUM_SIGNALS: Final = len(GROUPS["attention"].signals)
_CHUNK_TOKENS: Final = 4096  # keys of one request at a time: some 4 MB per KV head


class Keys(NamedTuple):
    """The keys of one attention layer where the engine keeps them, and how logits are made.

    cache: [blocks, KV heads, tokens per block, head size], any strides, any float type.
    scale: a logit is scale * q . k. window: positions attended to, the query's own included; 0 for
    all. softcap: c of c tanh(logit / c); 0 for none.
    factors: [KV heads] float32 by which stored keys are multiplied (an 8-bit cache); else None.
    """

    cache: torch.Tensor
    scale: float
    window: int = 0
    softcap: float = 0.0
    factors: torch.Tensor | None = None


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
    if query.is_cuda:
        # Triton is loaded only where a GPU is: elsewhere its first import costs seconds.
        from sidecar.tap import concentration_kernel  # noqa: PLC0415

        concentration_kernel.measure(query, keys, table, places, lengths, out)
        return out
    rows = places.clamp(0, len(table) - 1).tolist()
    most = table.shape[1] * keys.cache.shape[2]
    for index, (row, length) in enumerate(zip(rows, lengths.clamp(1, most).tolist(), strict=True)):
        out[index] = _measure_row(query[index], keys, table[row], length)
    return out


def _measure_row(
    query: torch.Tensor, keys: Keys, blocks: torch.Tensor, length: int
) -> torch.Tensor:
    """Signals of one row, [heads, NUM_SIGNALS]; query [heads, head size], blocks [columns]."""
    num_blocks, num_kv_heads, block_size, head_size = keys.cache.shape
    grouped = query.float().view(num_kv_heads, -1, head_size)
    if keys.factors is not None:
        grouped = grouped * keys.factors.view(-1, 1, 1)
    first = max(0, length - keys.window) if keys.window else 0
    sums = _Sums.none(num_kv_heads, grouped.shape[1])
    step = max(1, _CHUNK_TOKENS // block_size)
    num_columns = -(-length // block_size)
    for column in range(first // block_size, num_columns, step):
        chosen = blocks[column : min(column + step, num_columns)]
        # As a CPU engine stores them, [head size, tokens]: gathered and multiplied without a copy.
        stored = keys.cache.transpose(-1, -2).index_select(0, chosen.clamp(0, num_blocks - 1))
        start = column * block_size
        logits = keys.scale * (grouped @ stored.float()).permute(1, 2, 0, 3).flatten(2)
        if keys.softcap:
            logits = keys.softcap * torch.tanh(logits / keys.softcap)
        inside = slice(max(first - start, 0), length - start)
        sums = sums.add(logits[..., inside], max(start, first))
    return sums.signals(length - first).flatten(0, 1)


class _Sums(NamedTuple):
    """The five sums of the module's docstring, each [KV heads, heads of one KV head]."""

    m: torch.Tensor
    z: torch.Tensor
    a: torch.Tensor
    q: torch.Tensor
    s: torch.Tensor

    @classmethod
    def none(cls, *shape: int) -> "_Sums":
        """Of no positions. A finite m: what it is multiplied with is 0, and must not be NaN."""
        zero = torch.zeros(shape)
        return cls(torch.full(shape, torch.finfo(torch.float32).min), zero, zero, zero, zero)

    def add(self, logits: torch.Tensor, position: int) -> "_Sums":
        """Of more positions; logits [..., n], the first of them at `position`."""
        m = torch.maximum(self.m, logits.amax(-1))
        fall = self.m - m
        c = fall.exp()
        below = logits - m.unsqueeze(-1)
        weights = below.exp()
        sink = weights[..., : max(0, NUM_FIRST_POSITIONS - position)]
        return _Sums(
            m,
            c * self.z + weights.sum(-1),
            c * (self.a + fall * self.z) + (below * weights).sum(-1),
            c * c * self.q + weights.square().sum(-1),
            c * self.s + sink.sum(-1),
        )

    def signals(self, num_positions: int) -> torch.Tensor:
        """[..., NUM_SIGNALS] in the order of the group."""
        entropy = (self.z.log() - self.a / self.z).clamp_min(0.0)
        # One position has no entropy; 0 / log 1 is no number.
        ratio = entropy / math.log(num_positions) if num_positions > 1 else entropy * 0.0
        return torch.stack([ratio, 1.0 / self.z, self.z.square() / self.q, self.s / self.z], -1)
