"""LoRA adapters of random weights for the bundled model, and the model with one merged in."""

import json
import shutil
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file

from tests.e2e.harness import MODEL

RANK: Final = 8
ALPHA: Final = 16
TARGETS: Final = ("q_proj", "o_proj", "up_proj", "down_proj")
STRENGTH: Final = 0.3  # of the change that an adapter makes, over the weight that it changes


class Adapter:
    """One adapter in `folder`, as PEFT would write it; the same seed gives the same weights."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        random = torch.Generator().manual_seed(seed)
        self._factors = {
            name: _factors(weight.float(), random)
            for name, weight in sorted(load_file(MODEL / "model.safetensors").items())
            if any(f".{target}." in name for target in TARGETS)
        }

    def write(self) -> None:
        """Write what `--lora-modules` reads."""
        self.folder.mkdir(parents=True)
        told = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none"}
        told |= {"r": RANK, "lora_alpha": ALPHA, "target_modules": list(TARGETS)}
        (self.folder / "adapter_config.json").write_text(json.dumps(told))
        tensors = {}
        for name, (down, up) in self._factors.items():
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
        save_file(tensors, self.folder / "adapter_model.safetensors")

    def merged(self, folder: Path) -> Path:
        """Write to `folder` the model whose weights are W + (alpha / rank) B A, in float32."""
        shutil.copytree(MODEL, folder)
        weights = {k: v.float() for k, v in load_file(MODEL / "model.safetensors").items()}
        for name, (down, up) in self._factors.items():
            weights[name] += ALPHA / RANK * (up @ down)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder


def _factors(weight: torch.Tensor, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    down = torch.randn(RANK, weight.shape[1], generator=random)
    up = torch.randn(weight.shape[0], RANK, generator=random)
    change = ALPHA / RANK * (up @ down)
    return down, up * (STRENGTH * weight.norm() / change.norm())
