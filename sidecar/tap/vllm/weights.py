"""Which files on this machine a vLLM worker loaded its model from, as far as that can be told.

Reads vLLM's configuration alone and asks nobody on the network: a name is looked up in the local
cache of Hugging Face, where vLLM has just put or found it. What reads its weights otherwise (from
a stream, a shard of each rank, another process) is named as a reason.
"""

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sidecar.errors import WeightsUnread
from sidecar.tap.notary import Found, find_files

# Formats whose loader reads files of the model's folder, whole.
_OF_FOLDER: Final = frozenset(
    {"auto", "hf", "safetensors", "fastsafetensors", "instanttensor", "mistral", "npcache"}
    | {"pt", "gguf", "bitsandbytes"}
)
_WHY_NOT: Final[Mapping[str, str]] = {
    "dummy": "the weights are random numbers, read from no file",
    "sharded_state": "each worker reads a shard of its own, so that no worker has seen them all",
}
# One of these is in the cache when the model, or its tokenizer, is.
_MODEL: Final = (
    "model.safetensors.index.json",
    "model.safetensors",
    "consolidated.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "config.json",
)
_TOKENIZER: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
)


def files_of(vllm_config: Any) -> list[Found]:
    """The files, as they are now; to be called when the model has been loaded.

    Raises WeightsUnread with the reason when they cannot be told, or are not on this machine.
    """
    model, load = vllm_config.model_config, vllm_config.load_config
    _check_format(str(load.load_format))
    name = str(model.model)
    folder = _folder(name, getattr(model, "revision", None), load.download_dir, _MODEL)
    if folder is None:
        raise WeightsUnread(
            f"{name} is no folder here, nor in the local cache of Hugging Face; serve it from a "
            "folder to have its files hashed"
        )
    tokenizer = str(getattr(model, "tokenizer", None) or name)
    revision = getattr(model, "tokenizer_revision", None)
    return find_files(folder, _folder(tokenizer, revision, None, _TOKENIZER))


def _check_format(load_format: str) -> None:
    if load_format not in _OF_FOLDER:
        why = _WHY_NOT.get(load_format, "its loader reads no plain files, or nobody has read it")
        raise WeightsUnread(f"load format {load_format}: {why}")
    if os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in {"1", "true"}:
        raise WeightsUnread("ModelScope's cache is not read; serve the model from a folder")


def _folder(
    name: str, revision: str | None, cache_dir: str | None, names: Sequence[str]
) -> Path | None:
    """The folder, or single file, that `name` stands for; None when it is not on this machine."""
    if Path(name).exists():
        return Path(name)
    hub: Any = importlib.import_module("huggingface_hub")  # vLLM has loaded it
    for each in names:
        try:
            found = hub.try_to_load_from_cache(name, each, cache_dir=cache_dir, revision=revision)
        except ValueError:  # no name of a repository
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None
