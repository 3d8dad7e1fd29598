"""Probe files as an operator writes them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def entry(name: str = "p", **changes: Any) -> dict[str, Any]:
    """A valid probe; `changes` override, None takes a key away."""
    made = {"name": name, "layer": 1, "tensor": "w", "bias": 0.5, "pooling": "mean", **changes}
    return {key: value for key, value in made.items() if value is not None}


def write(
    folder: Path,
    *entries: dict[str, Any],
    saved: dict[str, torch.Tensor] | None = None,
    **changes: Any,
) -> Path:
    """A probe file and its tensors; `w` is of ones, 16 wide, unless told otherwise."""
    save_file(saved or {"w": torch.ones(16)}, folder / "probes.safetensors")
    told = {"format": "llm-internals-probes", "version": 1, "tensors": "probes.safetensors"}
    path = folder / "probes.json"
    path.write_text(json.dumps({**told, "probes": list(entries), **changes}))
    return path
