"""What the signals must be: the same weights in transformers, float32, eager, one by one."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from sidecar.wire.signals import NUM_FIRST_POSITIONS

SIGNALS = ("residual_rms", "residual_peak", "block_influence")


@dataclass(frozen=True)
class Rows:
    """Signals of every token row of one request, [T, L] each, in float64."""

    residual_rms: np.ndarray
    residual_peak: np.ndarray
    block_influence: np.ndarray

    def populations(self, num_prompt: int, first: int) -> dict[str, np.ndarray]:
        """Row numbers of each population, from position `first` on."""
        position = np.arange(len(self.residual_rms))
        computed = position >= first
        found = {}
        for phase, in_phase in (
            ("prefill", position < num_prompt),
            ("decode", position >= num_prompt),
        ):
            for place, in_place in (
                ("first", position < NUM_FIRST_POSITIONS),
                ("rest", position >= NUM_FIRST_POSITIONS),
            ):
                rows = np.flatnonzero(computed & in_phase & in_place)
                if len(rows):
                    found[f"{phase}/{place}"] = rows
        return found


@torch.no_grad()
def streams_of(model_path: Path, tokens: list[int]) -> torch.Tensor:
    """[1 + L, T, H] residual stream before the first layer and after each, in float64."""
    model, streams = _model(model_path)
    streams.clear()
    model(input_ids=torch.tensor([tokens]), use_cache=False)
    return torch.stack([s[0] for s in streams]).double()


def rows_of(model_path: Path, tokens: list[int]) -> Rows:
    """Signals of each of `tokens` at each layer."""
    stream = streams_of(model_path, tokens)
    before, after = stream[:-1], stream[1:]
    rms = after.square().mean(-1).sqrt()
    cosine = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
    peak = after.abs().amax(-1) / rms
    return Rows(rms.T.numpy(), peak.T.numpy(), (1.0 - cosine).T.numpy())


@dataclass(frozen=True)
class Decisions:
    """Of the gates of one request: entropy and margin [T, L] in float64, experts [T, L, k]."""

    gate_entropy: np.ndarray
    topk_margin: np.ndarray
    experts: np.ndarray


@torch.no_grad()
def decisions_of(model_path: Path, tokens: list[int]) -> Decisions:
    """What the softmax gate of each layer made of each of `tokens`."""
    model, logits = _gates(model_path)
    logits.clear()
    model(input_ids=torch.tensor([tokens]), use_cache=False)
    gates = torch.stack(logits, 1).double().softmax(-1).numpy()  # [T, L, E]
    k = model.config.num_experts_per_tok
    ranked = np.sort(gates)[..., ::-1]
    entropy = -(gates * np.log(gates)).sum(-1) / np.log(gates.shape[-1])
    chosen = np.argsort(gates)[..., -k:]
    return Decisions(entropy, ranked[..., k - 1] - ranked[..., k], chosen)


@cache
def _gates(model_path: Path) -> tuple[Any, list[torch.Tensor]]:
    model, _ = _model(model_path)
    logits: list[torch.Tensor] = []

    def each(_module: Any, _args: Any, output: Any) -> None:
        logits.append(output[0])

    for layer in _layers(model):
        layer.mlp.gate.register_forward_hook(each)
    return model, logits


def _layers(model: Any) -> Any:
    """The decoder layers, by the name that the architecture has for them."""
    base = model.base_model
    return base.layers if hasattr(base, "layers") else base.h


@cache
def _model(model_path: Path) -> tuple[Any, list[torch.Tensor]]:
    model = AutoModelForCausalLM.from_pretrained(
        model_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    streams: list[torch.Tensor] = []

    def first(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        streams.append(args[0] if args else kwargs["hidden_states"])

    def each(_module: Any, _args: Any, output: Any) -> None:
        streams.append(output[0] if isinstance(output, tuple) else output)

    layers = _layers(model)
    layers[0].register_forward_pre_hook(first, with_kwargs=True)
    for layer in layers:
        layer.register_forward_hook(each)
    return model, streams


@torch.no_grad()
def logits_of(model_path: Path, tokens: list[int]) -> np.ndarray:
    """Logits after each of `tokens`, [T, V], in float64."""
    model, streams = _model(model_path)
    streams.clear()
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].double().numpy()
