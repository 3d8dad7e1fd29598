"""The shapes of models that are timed: what is measured is time, so random weights serve."""

from typing import Any, Final


def _qwen3(hidden: int, layers: int, heads: int, inner: int, **others: Any) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": inner,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    } | others


# Of a 70B model the number of layers, at the width of an 8B one: two of them fit on one GPU.
SHAPES: Final[dict[str, dict[str, Any]]] = {
    "quick": _qwen3(256, 4, 8, 768),
    "0.5b": _qwen3(1024, 28, 16, 3072),
    "0.6b": _qwen3(1024, 28, 16, 3072, vocab_size=151936),
    "8b": _qwen3(4096, 36, 32, 12288, vocab_size=151936, tie_word_embeddings=False),
    "70b-layers": _qwen3(4096, 80, 32, 12288, vocab_size=151936, tie_word_embeddings=False),
}
# Least tokens/s with the tap's defaults over none, by shape.
LEAST_RATE: Final = {"quick": 0.98, "0.5b": 0.98, "0.6b": 0.97, "8b": 0.99, "70b-layers": 0.99}
MOST_TOKEN_TIME: Final = 1.02  # p99 time per output token
MOST_START: Final = 1.10  # seconds to load and compile
MOST_DEVICE_MEMORY: Final = 0.005  # of the model's bytes
