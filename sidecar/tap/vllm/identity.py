"""What a vLLM engine executes, as its configuration and its loaded layers name it.

Guarantees: it never raises; whatever a release does not have, or has of another type, is left
empty (`wire.frame.Identity`), because half an identity is worth more than none.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch

from sidecar.tap.kernels import kernels_of
from sidecar.tap.vllm.options import model_name
from sidecar.tap.vllm.releases import installed_version
from sidecar.wire.fields import MAX_TEXT
from sidecar.wire.frame import Identity

_MAX_RANK: Final = (1 << 20) - 1


def identify(vllm_config: Any, device: torch.device | None = None) -> Identity:
    """The identity of the engine that `vllm_config` describes, without the digests.

    device: where it computes; None while that is not known. Attention layers are in
    `vllm_config` once the model is loaded, and tell their backend only then.
    """
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    layers = _layers(vllm_config)
    dtype = _text(lambda: str(model.dtype).removeprefix("torch."))
    return Identity(
        model_name=_text(lambda: model_name(vllm_config)),
        engine="vllm",
        engine_version=_text(installed_version),
        kernels=_text(lambda: "" if device is None else kernels_of(device)),
        attention_backend=_joined(_backend, layers),
        dtype=dtype,
        kv_cache_dtype=_kv_cache_dtype(vllm_config, layers, dtype),
        quantization=_text(lambda: model.quantization or ""),
        tensor_parallel=_count(lambda: parallel.tensor_parallel_size),
        pipeline_parallel=_count(lambda: parallel.pipeline_parallel_size),
        num_layers=_count(lambda: int(model.get_total_num_hidden_layers())),
        hidden_size=_count(lambda: int(model.get_hidden_size())),
    )


def _layers(vllm_config: Any) -> list[Any]:
    context = getattr(vllm_config.compilation_config, "static_forward_context", None)
    return list(context.values()) if isinstance(context, dict) else []


def _backend(layer: Any) -> str:
    return str(layer.get_attn_backend().get_name())


def _kv_cache_dtype(vllm_config: Any, layers: list[Any], dtype: str) -> str:
    """As the layers have it: a checkpoint may bring a cache of its own; `auto` is the model's."""
    asked = _text(lambda: vllm_config.cache_config.cache_dtype)
    found = _joined(lambda layer: layer.kv_cache_dtype, layers) or asked
    return dtype if found == "auto" else found


def _joined(read: Callable[[Any], Any], layers: Iterable[Any]) -> str:
    """The different texts that layers give, such as `FLASH_ATTN+MAMBA2_ATTN`."""
    found = {_text(functools.partial(read, layer)) for layer in layers}
    return "+".join(sorted(found - {""}))[:MAX_TEXT]


def _text(read: Callable[[], Any]) -> str:
    try:
        found = read()
    except Exception:  # whatever another release raises there
        return ""
    return found[:MAX_TEXT] if isinstance(found, str) else ""


def _count(read: Callable[[], Any]) -> int:
    try:
        found = read()
    except Exception:  # likewise
        return 0
    return found if type(found) is int and 0 <= found <= _MAX_RANK else 0
