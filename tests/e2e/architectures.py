"""Tiny models of many architectures, with random weights: what their servers are tested with.

Weights are drawn from a fixed seed, and so that activations neither vanish nor grow, attention is
far from uniform, and gates have a preference. All use the tokenizer of the bundled model.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.e2e.harness import MODEL

NUM_LAYERS: Final = 3
WINDOW: Final = 16  # tokens that a sliding-window layer of Gemma 3 sees

_GAIN: Final = 1.5  # of every linear map: standard deviation of outputs over that of inputs
_SPREAD: Final = 0.1  # of norm weights and biases around what they start from
_TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json")
_COMMON: Final[dict[str, Any]] = {
    "vocab_size": 3072,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}


def _llama() -> Any:
    return transformers.LlamaConfig(**_COMMON)


def _qwen3() -> Any:
    return transformers.Qwen3Config(**_COMMON, head_dim=32)


def _phi3() -> Any:
    return transformers.Phi3Config(**_COMMON)


def _gemma3() -> Any:
    return transformers.Gemma3TextConfig(
        **_COMMON,
        head_dim=32,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )


def _gpt2() -> Any:
    return transformers.GPT2Config(
        vocab_size=3072,
        n_embd=64,
        n_layer=NUM_LAYERS,
        n_head=2,
        n_positions=1024,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def _qwen3_moe() -> Any:
    return transformers.Qwen3MoeConfig(
        **_COMMON,
        head_dim=32,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        norm_topk_prob=True,
    )


ARCHITECTURES: Final[dict[str, Callable[[], Any]]] = {
    "llama": _llama,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "phi3": _phi3,
    "qwen3_moe": _qwen3_moe,
}


def write_model(name: str, folder: Path) -> Path:
    """Write the model called `name` of `ARCHITECTURES` into `folder`; returns `folder`."""
    config = ARCHITECTURES[name]()
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _draw(model, torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    for file in _TOKENIZER:
        shutil.copy(MODEL / file, folder / file)
    return folder


@torch.no_grad()
def _draw(model: nn.Module, generator: torch.Generator) -> None:
    drawn: set[nn.Parameter] = set()
    for module in model.modules():
        # Tied weights are drawn once, as the embedding that they are.
        for parameter in module.parameters(recurse=False):
            if parameter in drawn:
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(_SPREAD * noise)
            elif isinstance(module, nn.Embedding):
                parameter.copy_(noise)
            else:
                fan_in = parameter.shape[0 if isinstance(module, Conv1D) else -1]
                parameter.copy_(_GAIN * fan_in**-0.5 * noise)
            drawn.add(parameter)
