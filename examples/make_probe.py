"""Train a linear probe that tells Python code from prose, and write its probe file.

Runs on the bundled model in seconds, with transformers alone: texts in, the residual stream after
one layer, its mean over the tokens, ridge regression, and calibration on texts that were not
trained on. docs/probes.md explains the file.

    python examples/make_probe.py probes.json
    SIDECAR_TAP=1 SIDECAR_PROBE_FILE=probes.json vllm serve sidecar/demo/model
"""

import argparse
import inspect
import json
import pkgutil
import textwrap
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = Path(__file__).parents[1] / "sidecar" / "demo" / "model"
NUM_TEXTS = 120  # of each kind; half of them are held out
NUM_CHARACTERS = 240
RIDGE = 1.0
QUANTILES = ("0.5", "0.9", "0.99")


def texts() -> tuple[list[str], list[str]]:
    """Pieces of Python's own source, and of its manual."""
    code = "\n".join(inspect.getsource(module) for module in (argparse, inspect, pkgutil, textwrap))
    prose = "\n".join(topics[name] for name in sorted(topics))
    return _pieces(code), _pieces(prose)


def _pieces(text: str) -> list[str]:
    starts = np.linspace(0, len(text) - NUM_CHARACTERS, NUM_TEXTS).astype(int)
    return [text[start : start + NUM_CHARACTERS] for start in starts]


@torch.no_grad()
def features(model_path: Path, layer: int, pieces: list[str]) -> np.ndarray:
    """[texts, H] mean over its tokens of the residual stream after `layer`.

    Read with a hook: of `output_hidden_states` the last entry is not the stream, but its norm.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    streams: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        streams.append(output[0] if isinstance(output, tuple) else output)

    model.model.layers[layer].register_forward_hook(keep)
    for piece in pieces:
        model(**tokenizer(piece, return_tensors="pt"), use_cache=False)
    return np.stack([stream.view(-1, stream.shape[-1]).mean(0).numpy() for stream in streams])


def train(yes: np.ndarray, no: np.ndarray) -> tuple[np.ndarray, float]:
    """Direction [H] and bias; the score is near 1 for `yes` and near -1 for `no`."""
    x = np.concatenate([yes, no]).astype(np.float64)
    y = np.repeat([1.0, -1.0], [len(yes), len(no)])
    centre = x.mean(0)
    centred = x - centre
    direction = np.linalg.solve(
        centred.T @ centred + RIDGE * np.eye(x.shape[1]), centred.T @ (y - y.mean())
    )
    return direction, float(y.mean() - centre @ direction)


def write(path: Path, layer: int, direction: np.ndarray, bias: float, usual: np.ndarray) -> None:
    """The probe file at `path`, calibrated on the scores of `usual` traffic, and its tensors."""
    tensors = path.with_suffix(".safetensors")
    save_file({"code": torch.from_numpy(direction).float()}, tensors)
    probe = {
        "name": "code",
        "layer": layer,
        "tensor": "code",
        "bias": bias,
        "pooling": "mean",
        "rows": "prompt",
        "quantiles": {share: float(np.quantile(usual, float(share))) for share in QUANTILES},
    }
    told = {"format": "llm-internals-probes", "version": 1, "tensors": tensors.name}
    path.write_text(json.dumps({**told, "probes": [probe]}, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Train, say how good it is on texts that were held out, and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", type=Path, help="where the probe file goes")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--layer", type=int, default=2)
    options = parser.parse_args(argv)
    code, prose = (features(options.model, options.layer, kind) for kind in texts())
    direction, bias = train(code[::2], prose[::2])
    yes, no = (kind[1::2] @ direction + bias for kind in (code, prose))
    area = (yes[:, None] > no).mean()
    print(f"held-out texts: area under the ROC curve {area:.3f}")
    write(options.path, options.layer, direction, bias, usual=no)
    print(f"wrote {options.path} and {options.path.with_suffix('.safetensors').name}")


if __name__ == "__main__":
    main()
