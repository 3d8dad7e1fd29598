"""What cannot be tapped is refused by name, and everything but the tap still works."""

from types import SimpleNamespace

import pytest

from sidecar.errors import TapRefused
from sidecar.fold.reducer import Limits, Reducer
from sidecar.publish.metrics.exposition import Exposition
from sidecar.tap.stream import ROWS
from sidecar.tap.vllm import features, fingerprint
from sidecar.tap.vllm.worker import seat_worker
from sidecar.wire.frame import Serving, Status
from tests.tap.toys import Decoder
from tests.tap.vllm.fakes import (
    Row,
    RunnerV1,
    RunnerV2Of26,
    RunnerV2Of32,
    RunnerV2Of33,
    SchedulerOutput,
    Worker,
    vllm_config,
)

DRAFTING = SimpleNamespace(method="ngram", num_speculative_tokens=3)
V1, V2 = "sidecar.tap.vllm.runner_v1", "sidecar.tap.vllm.runner_v2"
# By the reason: the runner, the parts of a configuration that use the feature, words of its name.
USED = {
    "async_speculation": (
        RunnerV1,
        {"speculative_config": DRAFTING, "scheduler_config": {"async_scheduling": True}},
        "asynchronous scheduling",
    ),
    "pipelined_speculation": (
        RunnerV1,
        {"speculative_config": DRAFTING, "parallel_config": {"pipeline_parallel_size": 2}},
        "pipeline parallelism",
    ),
    "v2_speculation": (
        RunnerV2Of32,
        {"speculative_config": DRAFTING, "scheduler_config": {"async_scheduling": False}},
        "model runner V2",
    ),
    "micro_batching": (RunnerV2Of32, {"parallel_config": {"use_ubatching": True}}, "(DBO)"),
    "prefill_context_parallelism": (
        RunnerV2Of32,
        {"parallel_config": {"prefill_context_parallel_size": 2}},
        "prefill context parallelism",
    ),
    "pooling": (RunnerV1, {"model_config": {"runner_type": "pooling"}}, "pooling models"),
    "encoder_decoder": (
        RunnerV1,
        {"model_config": {"is_encoder_decoder": True}},
        "encoder-decoder models",
    ),
    "kv_sharing_fast_prefill": (
        RunnerV1,
        {"cache_config": {"kv_sharing_fast_prefill": True}},
        "KV-sharing fast prefill",
    ),
}
RUNNERS = [RunnerV1, RunnerV2Of26, RunnerV2Of32, RunnerV2Of33]


def seated(runner: type, parts: dict) -> Worker:
    """A worker that was seated before it loads its model."""
    model = Decoder()
    made = Worker(runner(model))
    seat_worker(made, vllm_config(model, **parts))
    return made


def refusal(frame) -> bool:
    return isinstance(frame.body, Status) and frame.body.state == "refused"


def test_every_refused_feature_is_tried() -> None:
    """A feature that joins the list joins these tests."""
    assert set(USED) == {feature.reason for feature in features.REFUSED}


@pytest.mark.parametrize("reason", USED)
def test_a_refusal_names_the_feature_on_the_metrics_page(reason, ranks, tap_on) -> None:
    """The label of `llm_internals_tap` is its word; /v1/status has the sentence and the remedy."""
    runner, parts, name = USED[reason]
    seated(runner, parts)
    frame = tap_on.wait_for(refusal)
    assert name in frame.body.detail
    assert "serve without it to tap" in frame.body.detail

    reducer = Reducer(Limits(10**10, 10**10))
    reducer.update(frame, frame.header.t_ns)
    page = Exposition(1000).render(reducer.get(frame.header.t_ns))
    source = 'source="engine-dp0-pp0-tp0"'
    assert f'llm_internals_tap_info{{{source},state="refused",reason="{reason}"}} 1' in str(page)
    assert f"llm_internals_tap_live{{{source}}} 0" in str(page)


@pytest.mark.parametrize("reason", USED)
def test_a_refused_engine_is_left_as_it_was(reason, ranks, tap_on) -> None:
    """No layer is tapped, no method of the worker is wrapped, no compile key is changed."""
    runner, parts, _ = USED[reason]
    model = Decoder()
    made = Worker(runner(model))
    config = vllm_config(model, **parts)
    seat_worker(made, config)
    made.load_model()
    made.compile_or_warm_up_model()
    row = Row("a", 0, 4, 4)
    made.model_runner.known["a"] = row
    assert made.execute_model(SchedulerOutput({"a": 4})) is not None
    made.shutdown()

    wrapped = {"load_model", "compile_or_warm_up_model", "execute_model", "shutdown"}
    assert not wrapped & set(vars(made))
    assert not {"_model_forward", "execute_model"} & set(vars(made.model_runner))
    assert not any(hasattr(layer, ROWS) for layer in model.layers)
    assert fingerprint.KEY not in config.additional_config


def test_the_front_end_tells_of_a_refused_engine(installed_vllm, ranks, tap_on) -> None:
    """Latency and token stats need no tap: they arrive while the worker says why it has none."""
    from sidecar.tap.vllm.request_stats import SidecarStatLogger

    parts = {"parallel_config": {"use_ubatching": True, "_api_process_rank": 0}}
    seated(RunnerV2Of32, parts)
    tap_on.wait_for(refusal)
    stats = SidecarStatLogger(vllm_config(**parts), [0])
    tap_on.wait_for(lambda frame: isinstance(frame.body, Serving))
    tokens = SimpleNamespace(num_prompt_tokens=20, num_generation_tokens=3, num_preempted_reqs=0)
    stats.record(
        None, SimpleNamespace(**vars(tokens), time_to_first_tokens_iter=[], finished_requests=[])
    )

    def told(frame) -> bool:
        return isinstance(frame.body, Serving) and frame.body.prompt_tokens == 20

    assert tap_on.wait_for(told).body.generated_tokens == 3


@pytest.mark.parametrize("runner", RUNNERS)
def test_an_engine_that_uses_none_of_them_is_not_refused(runner) -> None:
    """Asynchronous scheduling alone, stages alone, or drafting alone on V1, is no reason."""
    module = V1 if runner is RunnerV1 else V2
    features.check(vllm_config(parallel_config={"pipeline_parallel_size": 2}), module)
    features.check(vllm_config(scheduler_config={"async_scheduling": True}), module)
    features.check(vllm_config(scheduler_config={"async_scheduling": False}), module)
    features.check(
        vllm_config(speculative_config=DRAFTING, parallel_config={"pipeline_parallel_size": 1}), V1
    )


def test_the_first_feature_in_use_is_named() -> None:
    """With several in use, one reason is told; mending it shows the next."""
    parts = {"parallel_config": {"use_ubatching": True, "prefill_context_parallel_size": 2}}
    with pytest.raises(TapRefused) as refused:
        features.check(vllm_config(**parts), V2)
    assert refused.value.reason == "micro_batching"


def test_a_release_without_a_feature_is_not_refused_for_it() -> None:
    """Options that a release does not have yet are not in use."""
    config = vllm_config()
    del config.parallel_config.use_ubatching
    del config.parallel_config.prefill_context_parallel_size
    del config.cache_config.kv_sharing_fast_prefill
    config.speculative_config = DRAFTING
    del config.scheduler_config.async_scheduling
    features.check(config, V1)
