"""Where vLLM keeps the keys of an attention layer, as plain `Keys`; what was not read is refused.

GPU backends hold [blocks, KV heads, block size, K | V], with strides that follow the layout; the
view carries them. The CPU kernels keep K transposed, as [head size, block size] in each block and
head, followed by V; those for AMX in tiles of 16 tokens, as [tiles, head size / 2, 16, 2]. Caches
may be rebound while the engine starts, so `Reader` looks again.
"""

from typing import Any, Final

import torch

from sidecar.errors import TapRefused
from sidecar.tap.concentration import Keys

# Backends whose metadata has the block table of the batch, row by row.
BACKENDS: Final = ("FLASH_ATTN", "TRITON_ATTN", "CPU_ATTN")
_CPU: Final = "CPU_ATTN"
_TRANSPOSED: Final = ("vec", "vec16")  # instruction sets whose CPU kernels keep K transposed
_AMX: Final = "amx"
_TILE: Final = 16  # tokens whose keys one AMX tile register holds, two numbers of each to a row
_PLAIN: Final = ("auto", "float32", "float16", "bfloat16")
_FP8: Final = ("fp8", "fp8_e4m3", "fp8_e5m2")
_NUM_DIMS: Final = 4


def check(layer: Any) -> None:
    """Raise TapRefused when the weights of this layer cannot be had from its keys, with why.

    layer: a module that vLLM holds a KV cache for. Looks at what is known when the model is loaded.
    """
    kind = type(layer).__name__
    impl = getattr(layer, "impl", None)
    # Its subclasses have masks of their own; MLA and Mamba layers have no keys per head.
    if kind != "Attention" or impl is None:
        raise TapRefused(f"{kind} does not keep plain keys under a causal mask")
    backend = layer.attn_backend.get_name()
    dtype = layer.kv_cache_dtype
    refused = {
        f"attention type {_name(layer.attn_type)}": _name(layer.attn_type) != "decoder",
        "attention sinks": getattr(impl, "sinks", None) is not None,
        "ALiBi": getattr(impl, "alibi_slopes", None) is not None,
        f"KV cache dtype {dtype}": dtype not in (*_PLAIN, *_FP8),
        f"KV cache dtype {dtype} on a CPU": backend == _CPU and dtype in _FP8,
        f"attention backend {backend}; serve with one of {', '.join(BACKENDS)}": (
            backend not in BACKENDS
        ),
    }
    for feature, is_used in refused.items():
        if is_used:
            raise TapRefused(f"weights cannot be read under {feature}")


class Reader:
    """Reads one attention layer, whose cache is bound by the time of the first step."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._cache: Any = None
        self._keys: Keys | None = None

    def keys(self) -> Keys:
        """Its keys as they are bound now. Raises TapRefused when they are not as was read."""
        cache = self._layer.kv_cache
        if self._keys is None or cache is not self._cache:
            self._keys = _keys(self._layer, cache)
            self._cache = cache
        return self._keys


def _keys(layer: Any, cache: Any) -> Keys:
    if not isinstance(cache, torch.Tensor) or cache.dim() != _NUM_DIMS:
        raise TapRefused("its KV cache is not one tensor of four dimensions")
    size = (layer.num_kv_heads, layer.head_size, layer.head_size_v)
    if (cache.shape[1], cache.shape[3]) != (size[0], size[1] + size[2]):
        raise TapRefused(f"its KV cache is of shape {tuple(cache.shape)}, which was not read")
    is_cpu = layer.attn_backend.get_name() == _CPU
    view = _of_cpu(layer, cache) if is_cpu else cache[..., : layer.head_size]
    factors = None
    if layer.kv_cache_dtype in _FP8:
        view = view.view(_fp8_dtype(layer.kv_cache_dtype))
        # One for all heads, or one for each; a view, since it may be found by the first batches.
        factors = layer._k_scale.view(-1).expand(layer.num_kv_heads)
    impl = layer.impl
    return Keys(
        view, float(impl.scale), layer.sliding_window or 0, impl.logits_soft_cap or 0.0, factors
    )


def _of_cpu(layer: Any, cache: torch.Tensor) -> torch.Tensor:
    """View of the keys that a CPU kernel keeps before the values of each block and head."""
    isa = getattr(layer, "isa", "unknown")
    if isa not in (*_TRANSPOSED, _AMX):
        raise TapRefused(f"the CPU kernels for {isa} keep keys in a form that was not read")
    if layer.head_size != layer.head_size_v:
        raise TapRefused("keys and values of different sizes on a CPU")
    blocks, heads, tokens, _ = cache.shape
    size = layer.head_size
    if isa == _AMX:
        # Pairs are of 16-bit numbers: what else fills a row of a tile was not read.
        if cache.element_size() != torch.bfloat16.itemsize:
            raise TapRefused(f"the CPU kernels for {isa} with keys of {cache.dtype}")
        return cache.view(blocks, heads, 2, tokens // _TILE, size // 2, _TILE, 2)[:, :, 0]
    return cache.view(blocks, heads, 2, size, tokens)[:, :, 0].transpose(-1, -2)


def _fp8_dtype(name: str) -> torch.dtype:
    from vllm.platforms import current_platform  # noqa: PLC0415 - heavy, and only for such a cache

    if name == "fp8_e5m2":
        return torch.float8_e5m2
    dtype: torch.dtype = current_platform.fp8_dtype()
    return dtype


def _name(attn_type: Any) -> str:
    return str(getattr(attn_type, "value", attn_type))
