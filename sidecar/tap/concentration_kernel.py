"""The same on a GPU: `concentration.measure` as two Triton kernels, without a wait.

`_stream` reads each key once: a program takes one request, one KV head (all query heads that share
it) and one part of the positions, so that a long context keeps the whole device busy. `_merge`
joins the parts. Head sizes and groups that are no powers of two are padded. Every index is clamped.

Import only where there is a GPU, or with TRITON_INTERPRET=1 set before: the decorator decides then
whether the kernels are compiled or interpreted.
"""

from typing import Any, Final

import torch
import triton
import triton.language as tl

from sidecar.tap.concentration import Keys
from sidecar.wire.signals import NUM_FIRST_POSITIONS

NUM_PARTS: Final = 16  # parts of the positions: 8 requests and 8 KV heads make 1024 programs
BLOCK_TOKENS: Final = 64  # keys at a time of one program
_NUM_SUMS: Final = 5
_SMALLEST_TILE: Final = 16  # of a tensor core, in either direction
_NO_WINDOW: Final = 1 << 30


def measure(
    query: torch.Tensor,
    keys: Keys,
    table: torch.Tensor,
    places: torch.Tensor,
    lengths: torch.Tensor,
    out: torch.Tensor,
    *,
    block_tokens: int = BLOCK_TOKENS,
    num_parts: int = NUM_PARTS,
) -> None:
    """Launch both kernels; arguments as in `concentration.measure`. Step path.

    block_tokens: keys at a time of one program. num_parts: parts of the positions. Powers of 2.
    """
    num_rows, num_heads, head_size = query.shape
    num_blocks, num_kv_heads, block_size, _ = keys.cache.shape
    group = num_heads // num_kv_heads
    shape = (num_rows, num_heads, num_parts, _NUM_SUMS)
    partial = torch.empty(shape, dtype=torch.float32, device=query.device)
    window = keys.window or _NO_WINDOW
    most = table.shape[1] * block_size
    # Without factors the cache stands in for them: a pointer is wanted, and never read.
    factors = keys.cache if keys.factors is None else keys.factors
    _stream[(num_rows, num_kv_heads, num_parts)](
        query,
        keys.cache,
        factors,
        table,
        places,
        lengths,
        partial,
        keys.scale,
        keys.softcap,
        window,
        table.shape[0],
        table.shape[1],
        num_blocks,
        block_size,
        *query.stride(),
        *keys.cache.stride(),
        *table.stride(),
        factors.stride(0),
        group=group,
        padded_group=max(_SMALLEST_TILE, triton.next_power_of_2(group)),
        head_size=head_size,
        padded_size=max(_SMALLEST_TILE, triton.next_power_of_2(head_size)),
        has_factors=keys.factors is not None,
        has_softcap=keys.softcap > 0,
        # Products of 16-bit floats are exact in float32 sums; the interpreter cannot form them.
        is_widened=not query.is_cuda,
        block_tokens=block_tokens,
        num_parts=num_parts,
        num_sums=_NUM_SUMS,
        num_first=NUM_FIRST_POSITIONS,
    )
    _merge[(num_rows, num_heads)](
        partial,
        lengths,
        out,
        window,
        most,
        num_heads,
        *out.stride(),
        num_parts=num_parts,
        num_sums=_NUM_SUMS,
    )


# The size of a batch would be compiled in when it is 1 or divides by 16, and at any step.
@triton.jit(do_not_specialize=["num_requests"])  # type: ignore[untyped-decorator]
def _stream(
    query: Any,
    cache: Any,
    factors: Any,
    table: Any,
    places: Any,
    lengths: Any,
    partial: Any,
    scale: Any,
    softcap: Any,
    window: Any,
    num_requests: Any,
    num_columns: Any,
    num_blocks: Any,
    block_size: Any,
    query_row: Any,
    query_head: Any,
    query_dim: Any,
    cache_block: Any,
    cache_head: Any,
    cache_token: Any,
    cache_dim: Any,
    table_row: Any,
    table_column: Any,
    factor_head: Any,
    group: tl.constexpr,
    padded_group: tl.constexpr,
    head_size: tl.constexpr,
    padded_size: tl.constexpr,
    has_factors: tl.constexpr,
    has_softcap: tl.constexpr,
    is_widened: tl.constexpr,
    block_tokens: tl.constexpr,
    num_parts: tl.constexpr,
    num_sums: tl.constexpr,
    num_first: tl.constexpr,
) -> None:
    """The five sums of one request, one KV head's query heads, and one part of the positions."""
    row, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    place = _clamp(tl.load(places + row), num_requests)
    length = _clamp(tl.load(lengths + row) - 1, num_columns * block_size) + 1
    first = tl.maximum(length - window, 0)
    share = tl.cdiv(tl.cdiv(length - first, num_parts), block_tokens) * block_tokens
    start = first + part * share
    end = tl.minimum(start + share, length)

    heads, dims = tl.arange(0, padded_group), tl.arange(0, padded_size)
    is_head, is_dim = heads < group, dims < head_size
    of_head = kv_head * group + heads
    q = tl.load(
        query + row * query_row + of_head[:, None] * query_head + dims[None, :] * query_dim,
        mask=is_head[:, None] & is_dim[None, :],
        other=0.0,
    )
    if is_widened:
        q = q.to(tl.float32)
    factor = scale
    if has_factors:
        factor = scale * tl.load(factors + kv_head * factor_head)

    m = tl.full([padded_group], float("-inf"), tl.float32)
    z = tl.zeros([padded_group], tl.float32)
    a = tl.zeros([padded_group], tl.float32)
    squares = tl.zeros([padded_group], tl.float32)
    sink = tl.zeros([padded_group], tl.float32)
    for at in range(start, end, block_tokens):
        positions = at + tl.arange(0, block_tokens)
        is_token = positions < end
        column = tl.minimum(positions // block_size, num_columns - 1)
        block = tl.load(
            table + place * table_row + column * table_column, mask=is_token, other=0
        ).to(tl.int64)
        key = _clamp(block, num_blocks) * cache_block + (positions % block_size) * cache_token
        k = tl.load(
            cache + key[:, None] + kv_head * cache_head + dims[None, :] * cache_dim,
            mask=is_token[:, None] & is_dim[None, :],
            other=0.0,
        ).to(q.dtype)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * factor
        if has_softcap:
            logits = softcap * (2.0 * tl.sigmoid(2.0 * logits / softcap) - 1.0)
        logits = tl.where(is_token[None, :], logits, float("-inf"))

        higher = tl.maximum(m, tl.max(logits, 1))
        is_first = m == float("-inf")
        fall = tl.where(is_first, 0.0, tl.where(is_first, 0.0, m) - higher)
        c = tl.where(is_first, 0.0, tl.exp(fall))
        # Masked before the difference is taken: 0 times infinity is no number.
        below = tl.where(is_token[None, :], logits, higher[:, None]) - higher[:, None]
        weights = tl.where(is_token[None, :], tl.exp(below), 0.0)
        is_sink = (positions < num_first)[None, :]
        a = c * (a + fall * z) + tl.sum(below * weights, 1)
        z = c * z + tl.sum(weights, 1)
        squares = c * c * squares + tl.sum(weights * weights, 1)
        sink = c * sink + tl.sum(tl.where(is_sink, weights, 0.0), 1)
        m = higher

    to = partial + ((row * tl.num_programs(1) * group + of_head) * num_parts + part) * num_sums
    tl.store(to, m, mask=is_head)
    tl.store(to + 1, z, mask=is_head)
    tl.store(to + 2, a, mask=is_head)
    tl.store(to + 3, squares, mask=is_head)
    tl.store(to + 4, sink, mask=is_head)


@triton.jit  # type: ignore[untyped-decorator]
def _merge(
    partial: Any,
    lengths: Any,
    out: Any,
    window: Any,
    most: Any,
    num_heads: Any,
    out_row: Any,
    out_head: Any,
    out_signal: Any,
    num_parts: tl.constexpr,
    num_sums: tl.constexpr,
) -> None:
    """The signals of one query head, from the sums of its parts."""
    row, head = tl.program_id(0), tl.program_id(1)
    at = partial + ((row * num_heads + head) * num_parts + tl.arange(0, num_parts)) * num_sums
    m = tl.load(at)
    top = tl.max(m, 0)
    is_empty = m == float("-inf")
    fall = tl.where(is_empty, top, m) - top
    c = tl.where(is_empty, 0.0, tl.exp(fall))
    part = tl.load(at + 1)
    z = tl.sum(c * part, 0)
    a = tl.sum(c * (tl.load(at + 2) + fall * part), 0)
    squares = tl.sum(c * c * tl.load(at + 3), 0)
    sink = tl.sum(c * tl.load(at + 4), 0)

    n = tl.minimum(_clamp(tl.load(lengths + row) - 1, most) + 1, window)
    entropy = tl.maximum(tl.log(z) - a / z, 0.0)
    ratio = tl.where(n > 1, entropy / tl.log(tl.maximum(n, 2).to(tl.float32)), 0.0)
    to = out + row * out_row + head * out_head
    tl.store(to, ratio)
    tl.store(to + out_signal, 1.0 / z)
    tl.store(to + 2 * out_signal, z * z / squares)
    tl.store(to + 3 * out_signal, sink / z)


@triton.jit  # type: ignore[untyped-decorator]
def _clamp(index: Any, size: Any) -> Any:
    """The nearest index of something of this size."""
    return tl.minimum(tl.maximum(index, 0), size - 1)
