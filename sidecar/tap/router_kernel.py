"""The same on a GPU: a gate's rows as one Triton kernel, because a dozen small ones would be seen.

vLLM runs its experts inside an opaque operation, where nothing of ours is fused by the compiler;
one launch per gate is what a decode step can bear. One program takes one token row, whose scores it
reads once. Rows beyond the buffers are left out.

Import only where there is a GPU, or with TRITON_INTERPRET=1 set before: the decorator decides then
whether the kernel is compiled or interpreted.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl


def record(
    values: torch.Tensor,
    experts: torch.Tensor,
    logits: torch.Tensor,
    chosen: torch.Tensor | None,
    scoring: str,
) -> None:
    """Signals of logits [T, E] into `values` [2, capacity], ids into `experts` [k, capacity].

    chosen: [T, k] ids that the router chose; those of the largest scores when it is None.
    """
    num_rows, num_experts = logits.shape
    k, capacity = experts.shape
    # Without a choice the logits stand in for it: a pointer is wanted, and never read.
    ids = logits if chosen is None else chosen
    _record[(min(num_rows, capacity),)](
        values,
        experts,
        logits,
        ids,
        1.0 / math.log(num_experts),
        *values.stride(),
        *experts.stride(),
        *logits.stride(),
        *ids.stride(),
        num_experts=num_experts,
        width=triton.next_power_of_2(num_experts),
        num_chosen=k,
        is_sigmoid=scoring == "sigmoid",
        has_choice=chosen is not None,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _record(
    values: Any,
    experts: Any,
    logits: Any,
    chosen: Any,
    per_log_size: Any,
    values_signal: Any,
    values_row: Any,
    experts_place: Any,
    experts_row: Any,
    logits_row: Any,
    logits_expert: Any,
    chosen_row: Any,
    chosen_place: Any,
    num_experts: tl.constexpr,
    width: tl.constexpr,
    num_chosen: tl.constexpr,
    is_sigmoid: tl.constexpr,
    has_choice: tl.constexpr,
) -> None:
    """One token row; see `router.gate_signals` for what is computed."""
    row = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, width)
    is_expert = expert < num_experts
    at = logits + row * logits_row + expert * logits_expert
    scores = tl.load(at, mask=is_expert, other=float("-inf")).to(tl.float32)
    if is_sigmoid:
        scores = tl.minimum(scores, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(scores)))
    shifted = scores - tl.max(scores, 0)
    powers = tl.exp(shifted)
    total = tl.sum(powers, 0)
    gates = powers / total
    # 0 log 0 is 0; a NaN is not 0, and must stay one.
    logs = tl.where(gates == 0.0, 0.0, shifted - tl.log(total))
    tl.store(values + row * values_row, -tl.sum(gates * logs, 0) * per_log_size)

    # Experts that are masked, or no number, stand before those that were taken already.
    left = tl.where(is_expert, tl.maximum(scores, -3.0e38), float("-inf"))
    last = 0.0
    for place in tl.static_range(num_chosen):
        top = tl.argmax(left, 0)
        last = tl.sum(tl.where(expert == top, gates, 0.0), 0)
        left = tl.where(expert == top, float("-inf"), left)
        best = top
        if has_choice:
            best = tl.load(chosen + row * chosen_row + place * chosen_place).to(tl.int32)
        tl.store(experts + place * experts_place + row * experts_row, best)
    following = 0.0
    if num_chosen < num_experts:
        top = tl.argmax(left, 0)
        following = tl.sum(tl.where(expert == top, gates, 0.0), 0)
    tl.store(values + values_signal + row * values_row, last - following)
