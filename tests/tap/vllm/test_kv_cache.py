"""Keys where vLLM keeps them: layouts that are read, and everything that is refused."""

import importlib
from types import SimpleNamespace

import pytest
import torch

from sidecar.errors import TapRefused
from sidecar.tap import concentration
from sidecar.tap.vllm import kv_cache
from tests.tap.paged import tiled
from tests.tap.vllm.attention_fakes import Attention

BLOCKS, HEADS, TOKENS, SIZE = 3, 2, 16, 8
DENSE = torch.randn(BLOCKS, HEADS, TOKENS, SIZE, generator=torch.Generator().manual_seed(1))


def gpu_cache(layout: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[blocks, heads, tokens, K | V] of `DENSE`, in the order of memory of a layout."""
    values = torch.full_like(DENSE, torch.nan)
    logical = torch.cat([DENSE, values], -1).to(dtype)
    if layout == "NHD":
        return logical.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "blocks outermost, layers inside":
        between = torch.zeros(BLOCKS, 2, HEADS, TOKENS, 2 * SIZE, dtype=dtype)
        between[:, 1] = logical
        return between[:, 1]
    return logical.contiguous()


def cpu_cache() -> torch.Tensor:
    """What cpu_attn_reshape_and_cache leaves: K as [D, N] in the first half of block and head."""
    cache = torch.full((BLOCKS, HEADS, TOKENS, 2 * SIZE), torch.nan)
    flat = cache.view(BLOCKS, HEADS, -1)
    flat[..., : TOKENS * SIZE] = DENSE.transpose(-1, -2).reshape(BLOCKS, HEADS, -1)
    return cache


def layer(cache: torch.Tensor, backend: str = "FLASH_ATTN", **changes: object) -> Attention:
    return Attention(backend=backend, kv_cache=cache, **changes)


@pytest.mark.parametrize("layout", ["NHD", "HND", "blocks outermost, layers inside"])
@pytest.mark.parametrize("backend", ["FLASH_ATTN", "TRITON_ATTN"])
def test_keys_of_a_gpu_backend_are_read_in_any_layout(layout: str, backend: str) -> None:
    """The view is of the keys alone, without a copy."""
    cache = gpu_cache(layout)
    keys = kv_cache.Reader(layer(cache, backend)).keys()
    assert torch.equal(keys.cache, DENSE)
    assert keys.cache.data_ptr() == cache.data_ptr()


@pytest.mark.parametrize("isa", ["vec", "vec16"])
def test_keys_of_a_cpu_are_stored_transposed(isa: str) -> None:
    """The view has them the right way round, without a copy."""
    cache = cpu_cache()
    keys = kv_cache.Reader(layer(cache, "CPU_ATTN", isa=isa)).keys()
    assert torch.equal(keys.cache, DENSE)
    assert keys.cache.data_ptr() == cache.data_ptr()


def test_keys_of_a_cpu_with_amx_are_read_in_tiles() -> None:
    """The view has 16 tokens and two numbers of each in a row, without a copy."""
    stored = tiled(DENSE.bfloat16())
    cache = torch.full((BLOCKS, HEADS, TOKENS, 2 * SIZE), torch.nan, dtype=torch.bfloat16)
    cache.view(BLOCKS, HEADS, -1)[..., : TOKENS * SIZE] = stored.flatten(2)
    keys = kv_cache.Reader(layer(cache, "CPU_ATTN", isa="amx")).keys()
    assert torch.equal(keys.cache, stored)
    assert keys.cache.data_ptr() == cache.data_ptr()
    assert (keys.is_tiled, keys.block_size) == (True, TOKENS)


def test_the_kernels_of_the_engine_keep_keys_as_is_read(installed_vllm) -> None:
    """What vLLM's own operation writes, for each set of instructions that this CPU has."""
    ops = importlib.import_module("vllm._custom_ops")
    tokens, size = 128, 64
    written = torch.randn(
        tokens, HEADS, size, generator=torch.Generator().manual_seed(2)
    ).bfloat16()
    for isa in ["vec", *(["amx"] if torch.cpu._is_amx_tile_supported() else [])]:
        cache = torch.zeros(BLOCKS, HEADS, tokens, 2 * size, dtype=torch.bfloat16)
        halves = cache.view(BLOCKS, HEADS, 2, tokens, size).unbind(2)
        slots = torch.arange(tokens) + tokens // 2
        ops.cpu_attn_reshape_and_cache(written, written, *halves, slots, isa)
        made = layer(cache, "CPU_ATTN", isa=isa, head_size=size, head_size_v=size)
        keys = kv_cache.Reader(made).keys()
        found = concentration.gathered([keys], torch.arange(BLOCKS)).transpose(-1, -2)
        by_token = found.transpose(1, 2).reshape(-1, HEADS, size)
        assert torch.equal(by_token[slots], written)


def test_what_makes_logits_of_keys_is_the_layers() -> None:
    """Scale, softcap and window; a cache of the model's own type has no factors."""
    made = layer(gpu_cache("NHD"), scale=0.125, logits_soft_cap=30.0, sliding_window=512)
    assert kv_cache.Reader(made).keys()[1:] == (0.125, 512, 30.0, None)
    plain = layer(gpu_cache("NHD"), logits_soft_cap=None)
    assert kv_cache.Reader(plain).keys()[1:] == (0.5, 0, 0.0, None)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp8", torch.float8_e4m3fn),
        ("fp8_e4m3", torch.float8_e4m3fn),
        ("fp8_e5m2", torch.float8_e5m2),
    ],
)
@pytest.mark.parametrize(
    "factors", [torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([1, 2.0])]
)
def test_an_8_bit_cache_is_seen_as_floats_with_factors(
    name: str, dtype: torch.dtype, factors: torch.Tensor, installed_vllm
) -> None:
    """Bytes become floats in place; one factor serves all heads, and may still be found."""
    cache = gpu_cache("NHD", dtype).view(torch.uint8)
    keys = kv_cache.Reader(layer(cache, kv_cache_dtype=name, _k_scale=factors)).keys()
    assert keys.cache.dtype == dtype
    assert torch.equal(keys.cache.float(), DENSE.to(dtype).float())
    assert keys.factors.tolist() == factors.float().view(-1).expand(HEADS).tolist()
    factors.mul_(3)
    assert keys.factors.tolist() == factors.float().view(-1).expand(HEADS).tolist()


def test_a_cache_that_is_bound_anew_is_read_anew() -> None:
    """Engines bind a small cache to profile with, and the real one later."""
    made = layer(gpu_cache("NHD"))
    reader = kv_cache.Reader(made)
    first = reader.keys()
    assert reader.keys() is first
    made.kv_cache = gpu_cache("HND")
    assert reader.keys().cache.data_ptr() == made.kv_cache.data_ptr()


class ChunkedLocalAttention(Attention):
    """A subclass with a mask of its own."""


class MambaMixer2(torch.nn.Module):
    """Keeps states, not keys."""

    kv_cache = (torch.zeros(2), torch.zeros(2))


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (ChunkedLocalAttention(), "ChunkedLocalAttention"),
        (MambaMixer2(), "MambaMixer2"),
        (Attention(sinks=torch.ones(4)), "attention sinks"),
        (Attention(alibi_slopes=torch.ones(4)), "ALiBi"),
        (Attention(attn_type=SimpleNamespace(value="encoder_only")), "encoder_only"),
        (Attention(kv_cache_dtype="int8_per_token_head"), "int8_per_token_head"),
        (Attention(kv_cache_dtype="nvfp4"), "nvfp4"),
        (Attention(kv_cache_dtype="fp8", backend="CPU_ATTN"), "fp8 on a CPU"),
        (Attention(backend="FLASHINFER"), "FLASHINFER; serve with one of FLASH_ATTN"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(refused: torch.nn.Module, words: str) -> None:
    """When the model is loaded, with the remedy where there is one."""
    with pytest.raises(TapRefused, match=words):
        kv_cache.check(refused)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "fp8", "fp8_e5m2"])
def test_what_can_be_read_is_not_refused(dtype: str) -> None:
    """A plain decoder layer, with an attention type by enum or by word."""
    kv_cache.check(Attention(kv_cache_dtype=dtype))
    kv_cache.check(Attention(attn_type=SimpleNamespace(value="decoder")))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (layer(torch.zeros(0)), "four dimensions"),
        (layer((torch.zeros(2), torch.zeros(2))), "four dimensions"),
        (layer(torch.zeros(3, 2, 16, 20)), "shape"),
        (layer(torch.zeros(3, 4, 16, 16)), "shape"),
        (layer(cpu_cache(), "CPU_ATTN", isa="amx"), "amx with keys of torch.float32"),
        (layer(cpu_cache(), "CPU_ATTN", isa="neon"), "neon"),
        (layer(cpu_cache(), "CPU_ATTN"), "unknown"),
        (layer(torch.zeros(3, 2, 16, 12), "CPU_ATTN", isa="vec", head_size_v=4), "different sizes"),
    ],
)
def test_a_cache_of_another_form_is_refused(made: Attention, words: str) -> None:
    """When it is first looked at, since only then it is known."""
    with pytest.raises(TapRefused, match=words):
        kv_cache.Reader(made).keys()
