"""What attention concentration must be: the same weights in transformers, dense, in float64."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from sidecar.wire.signals import NUM_FIRST_POSITIONS


@torch.no_grad()
def heads_of(model_path: Path, tokens: list[int]) -> np.ndarray:
    """[T, L, heads, 4] signals of each query row of `tokens`, in the order of the wire's group."""
    output = _model(model_path)(
        input_ids=torch.tensor([tokens]), use_cache=False, output_attentions=True
    )
    weights = torch.stack([each[0] for each in output.attentions]).double()  # [L, heads, T, T]
    weights = weights / weights.sum(-1, keepdim=True)
    n = (weights > 0).sum(-1)  # positions that a row can see: its window, where there is one
    entropy = -torch.special.xlogy(weights, weights).sum(-1)
    ratio = torch.where(n > 1, entropy / n.clamp_min(2).log(), 0.0)
    signals = [
        ratio,
        weights.amax(-1),
        1.0 / weights.square().sum(-1),
        weights[..., :NUM_FIRST_POSITIONS].sum(-1),
    ]
    return torch.stack(signals, -1).permute(2, 0, 1, 3).numpy()


@cache
def _model(model_path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        model_path,
        dtype=torch.float64,
        attn_implementation="eager",
        experts_implementation="eager",  # the grouped product knows no float64
    ).eval()
