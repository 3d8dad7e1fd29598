"""The same on a GPU: the signals of token distributions as Triton kernels that read a logit once.

`_stream` takes one row and one part of the vocabulary, so that a single request keeps the device
busy too, and carries four sums from block to block: the two largest logits m and n, Z = sum e^(x-m)
and A = sum (x-m) e^(x-m); when m rises by d, Z shrinks by c = e^-d and A becomes c (A - d Z), as in
the online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867). `_merge` joins the parts: the
entropy is log Z - A / Z. `_choose` adds what the sampler chose. A dozen small operations over all
logits would cost a short decode step some percent.

Import only where there is a GPU, or with TRITON_INTERPRET=1 set before: the decorator decides then
whether the kernels are compiled or interpreted.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
import triton
import triton.language as tl

NUM_PARTS: Final = 32  # of the vocabulary: one row makes 32 programs
BLOCK: Final = 1024  # logits at a time of one program
NUM_COLUMNS: Final = 5  # entropy, largest p, margin, top logit, log total
_NUM_SUMS: Final = 4
_LOWEST: Final = -3.4e38  # below every finite logit but the last few, and finite itself


def read(logits: torch.Tensor, *, block: int = BLOCK, num_parts: int = NUM_PARTS) -> torch.Tensor:
    """Signals of each row of `logits`, [N, V]: [NUM_COLUMNS, N] float32. Step path.

    block: logits at a time of one program. num_parts: parts of a row. Both powers of 2.
    """
    num_rows, num_tokens = logits.shape
    partial = logits.new_empty(num_rows, num_parts, _NUM_SUMS, dtype=torch.float32)
    out = logits.new_empty(NUM_COLUMNS, num_rows, dtype=torch.float32)
    _stream[(num_rows, num_parts)](
        logits,
        partial,
        num_tokens,
        *logits.stride(),
        block=block,
        num_parts=num_parts,
        num_sums=_NUM_SUMS,
        lowest=_LOWEST,
    )
    _merge[(num_rows,)](
        partial, out, out.stride(0), num_parts=num_parts, num_sums=_NUM_SUMS, lowest=_LOWEST
    )
    return out


def choose(
    signals: Sequence[torch.Tensor], logits: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Values of the rows in wire order, [N, 5], given the tokens [N] that were chosen. Step path.

    signals: of `read`, [N] each. A token that is none is clamped: it would kill the engine.
    """
    num_rows, num_tokens = logits.shape
    values = logits.new_empty(num_rows, NUM_COLUMNS, dtype=torch.float32)
    _choose[(num_rows,)](*signals, logits, tokens, values, num_tokens, *logits.stride())
    return values


# A size would be compiled in when it is 1 or divides by 16, and at any step.
@triton.jit(do_not_specialize=["num_tokens"])  # type: ignore[untyped-decorator]
def _stream(
    logits: Any,
    partial: Any,
    num_tokens: Any,
    logits_row: Any,
    logits_token: Any,
    block: tl.constexpr,
    num_parts: tl.constexpr,
    num_sums: tl.constexpr,
    lowest: tl.constexpr,
) -> None:
    """The sums of one row and one part of the vocabulary."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    share = tl.cdiv(tl.cdiv(num_tokens, num_parts), block) * block
    start = part * share
    end = tl.minimum(start + share, num_tokens)
    # Tensors of one element each: what a loop carries must keep its type.
    m = tl.full([1], lowest, tl.float32)
    n = tl.full([1], lowest, tl.float32)
    z = tl.zeros([1], tl.float32)
    a = tl.zeros([1], tl.float32)
    for at in range(start, end, block):
        token = at + tl.arange(0, block)
        x = tl.load(
            logits + row * logits_row + token * logits_token,
            mask=token < end,
            other=float("-inf"),
        ).to(tl.float32)
        top = tl.max(x, 0)
        first = tl.argmax(x, 0)
        others = tl.max(tl.where(tl.arange(0, block) == first, float("-inf"), x), 0)
        risen = tl.maximum(m, top)
        n = tl.maximum(tl.minimum(m, top), tl.maximum(n, others))
        fall = m - risen
        c = tl.exp(fall)
        below = x - risen
        weights = tl.exp(below)
        # A token of probability 0 adds nothing, although its logarithm is infinite; a NaN stays.
        products = tl.where(weights == 0.0, 0.0, below * weights)
        a = tl.where(z == 0.0, 0.0, c * (a + fall * z)) + tl.sum(products, 0)
        z = c * z + tl.sum(weights, 0)
        m = risen
    to = partial + (row * num_parts + part) * num_sums + tl.arange(0, 1)
    tl.store(to, m)
    tl.store(to + 1, n)
    tl.store(to + 2, z)
    tl.store(to + 3, a)


@triton.jit(do_not_specialize=["out_column"])  # type: ignore[untyped-decorator]
def _merge(
    partial: Any,
    out: Any,
    out_column: Any,
    num_parts: tl.constexpr,
    num_sums: tl.constexpr,
    lowest: tl.constexpr,
) -> None:
    """The signals of one row, from the sums of its parts."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, num_parts)
    at = partial + (row * num_parts + part) * num_sums
    m = tl.load(at)
    top = tl.max(m, 0)
    others = tl.max(tl.where(part == tl.argmax(m, 0), lowest, m), 0)
    second = tl.maximum(tl.max(tl.load(at + 1), 0), others)
    sums = tl.load(at + 2)
    fall = tl.where(sums == 0.0, 0.0, m - top)
    c = tl.exp(fall)
    z = tl.sum(c * sums, 0)
    a = tl.sum(c * (tl.load(at + 3) + fall * sums), 0)
    log_total = tl.log(z)
    entropy = log_total - a / z
    # 1 - e^d of a small d has lost its digits: by the series there.
    d = second - top
    rise = tl.where(d > -1e-2, -d * (1.0 + d * (0.5 + d / 6.0)), 1.0 - tl.exp(d))
    tl.store(out + row, tl.where(entropy < 0.0, 0.0, entropy))
    tl.store(out + out_column + row, 1.0 / z)
    tl.store(out + 2 * out_column + row, rise / z)
    tl.store(out + 3 * out_column + row, top)
    tl.store(out + 4 * out_column + row, log_total)


@triton.jit(do_not_specialize=["num_tokens"])  # type: ignore[untyped-decorator]
def _choose(
    entropy: Any,
    largest: Any,
    margin: Any,
    top_logit: Any,
    log_totals: Any,
    logits: Any,
    tokens: Any,
    values: Any,
    num_tokens: Any,
    logits_row: Any,
    logits_token: Any,
) -> None:
    """The values of one row, in wire order."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.minimum(tl.maximum(tl.load(tokens + row), 0), num_tokens - 1)
    chosen = tl.load(logits + row * logits_row + token * logits_token).to(tl.float32)
    top, log_total = tl.load(top_logit + row), tl.load(log_totals + row)
    to = values + row * 5
    tl.store(to, tl.load(entropy + row))
    tl.store(to + 1, tl.load(largest + row))
    tl.store(to + 2, tl.load(margin + row))
    # Differences of logits first: a logsumexp of large logits has lost a surprisal's digits.
    tl.store(to + 3, (top - chosen) + log_total)
    tl.store(to + 4, top + log_total)
