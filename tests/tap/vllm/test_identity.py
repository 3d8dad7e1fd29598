"""What an engine executes: named as far as a release lets it be, and never at the engine's cost."""

from types import SimpleNamespace

import pytest
import torch

from sidecar.tap.vllm.identity import identify
from sidecar.wire.fields import MAX_TEXT
from sidecar.wire.frame import Identity, Status
from tests.tap.toys import HIDDEN
from tests.tap.vllm.fakes import Worker, vllm_config
from tests.tap.vllm.test_worker import is_state, seated


class Layer:
    """An attention layer as of 0.26, 0.32 and 0.33."""

    def __init__(self, backend: str, kv_cache_dtype: object = "auto") -> None:
        self.kv_cache_dtype = kv_cache_dtype
        self._backend = backend

    def get_attn_backend(self) -> SimpleNamespace:
        """The class of its backend."""
        return SimpleNamespace(get_name=lambda: self._backend)


def engine(*layers: object, **parts: dict) -> SimpleNamespace:
    made = vllm_config(**parts)
    made.compilation_config.static_forward_context = dict(enumerate(layers))
    vars(made.parallel_config).update(tensor_parallel_size=2, pipeline_parallel_size=4)
    made.model_config.quantization = None
    made.cache_config.cache_dtype = "auto"
    for part, changes in parts.items():
        vars(getattr(made, part)).update(changes)
    return made


def test_everything_that_is_known_is_named(monkeypatch) -> None:
    """Model, engine, kernels, backend, types, parallelism and shape; no digest yet."""
    monkeypatch.setattr("sidecar.tap.vllm.identity.installed_version", lambda: "0.32.0")
    layers = [Layer("FLASH_ATTN"), Layer("FLASH_ATTN")]
    assert identify(engine(*layers), torch.device("cpu")) == Identity(
        model_name="toy",
        engine="vllm",
        engine_version="0.32.0",
        kernels=torch.backends.cpu.get_cpu_capability(),
        attention_backend="FLASH_ATTN",
        dtype="bfloat16",
        kv_cache_dtype="bfloat16",
        tensor_parallel=2,
        pipeline_parallel=4,
        num_layers=3,
        hidden_size=HIDDEN,
    )


def test_a_gpu_is_named_by_its_name(monkeypatch) -> None:
    """Kernels of one GPU are not those of another."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA H200")
    assert identify(engine(), torch.device("cuda")).kernels == "NVIDIA H200"


def test_backends_that_differ_by_layer_are_all_named() -> None:
    """In one order, whichever layer came first."""
    one, other = Layer("FLASH_ATTN"), Layer("MAMBA2_ATTN")
    for layers in ([one, other], [other, one, one]):
        assert identify(engine(*layers)).attention_backend == "FLASH_ATTN+MAMBA2_ATTN"


@pytest.mark.parametrize(
    ("of_layers", "asked", "told"),
    [
        ("auto", "auto", "bfloat16"),
        ("fp8", "auto", "fp8"),
        ("fp8_e4m3", "fp8", "fp8_e4m3"),
        (None, "fp8", "fp8"),
    ],
)
def test_the_cache_is_named_as_the_layers_have_it(of_layers, asked, told) -> None:
    """A checkpoint may bring a quantised cache of its own; what was asked for counts last."""
    made = engine(Layer("X", of_layers), cache_config={"cache_dtype": asked})
    assert identify(made).kv_cache_dtype == told


def test_a_quantisation_is_named() -> None:
    """As vLLM names it."""
    assert identify(engine(model_config={"quantization": "awq"})).quantization == "awq"


@pytest.mark.parametrize("value", [None, 7, "x" * 5000, [1], -1, 1 << 40])
def test_what_a_release_has_otherwise_is_left_empty_or_cut(value) -> None:
    """Missing attributes, other types, what does not fit its field: never an exception."""
    made = engine(
        object(),
        model_config={"quantization": value, "get_hidden_size": lambda: value},
        parallel_config={"tensor_parallel_size": value},
    )
    del made.parallel_config.pipeline_parallel_size
    del made.model_config.get_total_num_hidden_layers
    del made.compilation_config.static_forward_context
    found = identify(made)
    assert found.quantization == ("x" * MAX_TEXT if isinstance(value, str) else "")
    assert found.hidden_size == found.tensor_parallel == (7 if value == 7 else 0)
    assert (found.pipeline_parallel, found.num_layers, found.attention_backend) == (0, 0, "")
    assert found.dtype == "bfloat16"


def test_the_status_of_a_tapped_engine_carries_its_identity(ranks, tap_on) -> None:
    """With what only the loaded layers tell; a refused engine tells what its configuration has."""
    seated(model_config={"runner_type": "pooling"})
    refused: Status = tap_on.wait_for(is_state("refused")).body
    assert (refused.identity.model_name, refused.identity.kernels) == ("toy", "")
    made: Worker = seated()
    made.vllm_config.compilation_config.static_forward_context["more"] = Layer("CPU_ATTN")
    made.load_model()
    told: Status = tap_on.wait_for(is_state("starting")).body
    assert told.identity.attention_backend == "CPU_ATTN"
    assert told.identity.kernels == torch.backends.cpu.get_cpu_capability()
    assert told.identity.hidden_size == HIDDEN
