"""The seat in a worker: from before its model is loaded to its shutdown, and every refusal."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sidecar.tap import stream
from sidecar.tap.stream import ROWS
from sidecar.tap.vllm import fingerprint, worker
from sidecar.tap.vllm.worker import seat_worker
from sidecar.wire.frame import Arrays, Layers, Requests, Source, Status
from tests.tap.toys import Attention, Decoder, NoneLayer
from tests.tap.vllm.fakes import (
    LoRARequest,
    NewRequestData,
    Row,
    RunnerV1,
    RunnerV2Of26,
    RunnerV2Of32,
    RunnerV2Of33,
    SchedulerOutput,
    Worker,
    vllm_config,
)

RUNNERS = [RunnerV1, RunnerV2Of26, RunnerV2Of32, RunnerV2Of33]


def is_status(frame) -> bool:
    return isinstance(frame.body, Status)


def is_state(state: str):
    return lambda frame: isinstance(frame.body, Status) and frame.body.state == state


def seated(runner=RunnerV1, model: nn.Module | None = None, **parts) -> Worker:
    """A worker that was seated before it loads `model`."""
    model = model or Decoder()
    made = Worker(runner(model))
    made.vllm_config = vllm_config(model, **parts)
    seat_worker(made, made.vllm_config)
    return made


def serve(made: Worker, *rows: Row, finished: tuple[str, ...] = (), **said: object) -> object:
    made.model_runner.known.update({row.req_id: row for row in rows})
    output = SchedulerOutput({row.req_id: row.scheduled for row in rows}, set(finished), **said)
    return made.execute_model(output)


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_worker_is_tapped_from_load_to_shutdown(runner, ranks, tap_on) -> None:
    """Starting once loaded, live once warm, exact while it serves, silent after its shutdown."""
    made = seated(runner)
    assert made.calls == []
    made.load_model()
    starting = tap_on.wait_for(is_state("starting"))
    assert starting.header.source == Source("engine")
    assert starting.body.model_name == "toy"
    assert starting.body.dtype == "bfloat16"
    assert starting.body.runner == ("v1" if runner is RunnerV1 else "v2")
    assert starting.body.fingerprint == made.vllm_config.additional_config[fingerprint.KEY]
    assert made.compile_or_warm_up_model() == "compilation times"
    tap_on.wait_for(is_state("live"))

    serve(made, Row("a", 0, 6, 6), Row("b", 2, 3, 5))
    serve(made, Row("b", 5, 1, 5), Row("a", 6, 1, 6))
    serve(made, finished=("a", "b", "_warmup_0_"))
    frame = tap_on.wait_for(lambda frame: isinstance(frame.body, Requests))
    records = {request.id: request for request in frame.body.requests}
    assert set(records) == {"a", "b"}
    assert records["a"].coverage.observed == [4, 2, 0, 1]
    assert records["b"].coverage.observed == [2, 1, 0, 1]
    assert records["b"].coverage.prefix_cached == 2
    totals = tap_on.wait_for(
        lambda frame: isinstance(frame.body, Layers) and frame.body.num_requests == 2
    ).body
    assert totals.num_steps == 2
    assert totals.coverage.observed == [6, 3, 0, 2]
    assert not Arrays.unpack(totals.moments, 3).nonfinite.any()  # none of the dummy rows

    made.shutdown()
    assert made.calls[-1] == "shutdown"
    tap_on.read(0.1)
    assert tap_on.read(0.2) == []


def test_rows_of_a_model_go_to_the_right_request(ranks, tap_on) -> None:
    """In a batch whose order is not the scheduler's, each request gets its own rows."""
    alone = {}
    for names in ("a", "b", "ba"):
        made = seated()
        made.load_model()
        tap_on.wait_for(is_state("starting"))
        made.compile_or_warm_up_model()
        rows = {"a": Row("a", 0, 5, 5), "b": Row("b", 0, 9, 9)}
        serve(made, *[rows[name] for name in names])
        serve(made, finished=tuple(names))
        frame = tap_on.wait_for(lambda frame: isinstance(frame.body, Requests))
        made.shutdown()
        for request in frame.body.requests:
            sums = Arrays.unpack(request.moments, 3).sums
            if len(names) == 1:
                alone[request.id] = sums
            elif request.id == "a":  # the fake's tokens depend on the place in the batch alone
                np.testing.assert_allclose(sums, alone["a"], rtol=1e-5)
            else:
                assert not np.allclose(sums, alone["b"], rtol=1e-2)
                assert request.coverage.observed == [4, 5, 0, 0]


def test_nothing_is_measured_before_the_warm_up_is_over(ranks, tap_on) -> None:
    """Whatever runs between loading and warm-up, such as a profile run, is not data."""
    made = seated()
    made.load_model()
    serve(made, Row("profile", 0, 6, 6))
    made.model_runner._dummy_run(32)
    made.compile_or_warm_up_model()
    serve(made, Row("a", 0, 4, 4))
    layers = tap_on.wait_for(lambda f: isinstance(f.body, Layers) and f.body.num_steps > 0).body
    assert layers.num_steps == 1
    assert layers.coverage.observed == [4, 0, 0, 0]


@pytest.mark.parametrize(
    ("mode", "state"), [(3, "dead"), (0, "starting")], ids=["compiled", "eager"]
)
def test_a_tap_that_did_not_move_in_the_warm_up_is_dead(mode, state, ranks, tap_on) -> None:
    """A compiled engine has run its model by then; an eager one on a CPU may not have."""
    made = seated(compilation_config={"mode": mode})
    made.load_model()
    made.model_runner.model.forward = lambda *_: None  # a graph without the taps
    made.compile_or_warm_up_model()
    tap_on.read(0.2)  # what was said before
    status = tap_on.wait_for(is_status).body
    assert status.state == state
    assert status.dead_layers == ([0, 1, 2] if state == "dead" else [])


@pytest.mark.parametrize(
    ("parts", "feature"),
    [
        (
            {
                "speculative_config": SimpleNamespace(num_speculative_tokens=2),
                "scheduler_config": {"async_scheduling": True},
            },
            "speculative decoding with asynchronous scheduling",
        ),
        ({"parallel_config": {"use_ubatching": True}}, "micro-batching"),
        ({"parallel_config": {"prefill_context_parallel_size": 2}}, "prefill context parallelism"),
        ({"model_config": {"runner_type": "pooling"}}, "pooling models"),
        ({"model_config": {"is_encoder_decoder": True}}, "encoder-decoder models"),
        ({"cache_config": {"kv_sharing_fast_prefill": True}}, "KV-sharing fast prefill"),
        ({"additional_config": object()}, "additional_config is a object"),
    ],
)
def test_what_cannot_be_tapped_is_refused_by_name(parts, feature, ranks, tap_on) -> None:
    """The status frame names the feature; the worker is left as it was."""
    made = seated(**parts)
    status = tap_on.wait_for(is_state("refused")).body
    assert feature in status.detail
    assert status.model_name == "toy"
    assert not {"load_model", "execute_model", "shutdown"} & set(vars(made))


def test_a_runner_that_nobody_has_read_is_refused(ranks, tap_on) -> None:
    """A runner with neither module's attributes is named, and left alone."""

    class OtherRunner:
        def __init__(self, model: nn.Module) -> None:
            self.model = model

    seated(OtherRunner)
    detail = tap_on.wait_for(is_state("refused")).body.detail
    assert "OtherRunner" in detail


def test_a_model_without_layers_is_refused_with_what_was_looked_for(ranks, tap_on) -> None:
    """What the search for sites says reaches the status frame; the model loads."""
    made = seated(model=nn.Linear(2, 2))
    made.load_model()
    status = tap_on.wait_for(is_state("refused")).body
    assert status.reason == "not_supported"
    assert "Linear has no list named layers, h, blocks" in status.detail
    made.shutdown()
    assert made.calls == ["load_model", "shutdown"]


def test_a_refusal_halfway_leaves_no_layer_tapped(ranks, tap_on) -> None:
    """When one layer cannot be tapped, the probes of the others are taken off again."""

    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention()

        def forward(self, foo: torch.Tensor) -> torch.Tensor:
            return foo

    model = Decoder(3, NoneLayer)
    model.layers.append(Strange())
    made = seated(model=model)
    made.load_model()
    assert "Strange.forward" in tap_on.wait_for(is_state("refused")).body.detail
    assert not any(hasattr(layer, ROWS) for layer in model.layers)


def test_an_unexpected_exception_while_attaching_costs_the_tap_only(
    ranks, tap_on, monkeypatch
) -> None:
    """The model loads, the exception is counted, and the status says where to look."""

    def broken(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    made = seated()
    monkeypatch.setattr(worker, "find_sites", broken)
    made.load_model()
    status = tap_on.wait_for(is_state("refused")).body
    assert "see the engine's log" in status.detail
    assert status.errors == {"attach": 1}
    made.compile_or_warm_up_model()
    serve(made, Row("a", 0, 4, 4), finished=("z",))
    made.shutdown()


def test_a_probe_that_fails_its_rehearsal_is_refused(ranks, tap_on, monkeypatch) -> None:
    """A broken probe never reaches the graph; the worker is left as it was."""

    def broken(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(stream.probes, "record", broken)
    made = seated()
    status = tap_on.wait_for(is_state("refused")).body
    assert "rehearsal" in status.detail
    assert status.errors == {"probe": 1}
    assert "load_model" not in vars(made)


@pytest.mark.parametrize(
    ("name", "value"),
    [("SIDECAR_FLUSH_SECOND", "1"), ("SIDECAR_FLUSH_SECONDS", "0"), ("SIDECAR_MAX_ERRORS", "few")],
)
def test_a_key_that_cannot_be_used_is_refused_by_name(
    name, value, ranks, tap_on, monkeypatch
) -> None:
    """A bad key or value serves untapped, and the status frame names the key."""
    monkeypatch.delenv("SIDECAR_FLUSH_SECONDS")
    monkeypatch.setenv(name, value)
    made = seated()
    status = tap_on.wait_for(is_state("refused")).body
    assert status.reason == "configuration"
    assert name in status.detail
    assert fingerprint.KEY not in made.vllm_config.additional_config


@pytest.mark.parametrize(
    ("key", "said"), [("flush", "flush: unknown key"), ("x" * 5000, "x" * 2048)]
)
def test_a_key_of_additional_config_that_nobody_knows_is_refused(key, said, ranks, tap_on) -> None:
    """The other way to give keys is checked as the environment is; the reason fits its field."""
    seated(additional_config={"sidecar": {"tap": True, key: 1}})
    status = tap_on.wait_for(is_state("refused")).body
    assert status.reason == "configuration"
    assert said in status.detail


@pytest.mark.parametrize("key", ["SIDECAR_KEY_FILE", "SIDECAR_CANARY_KEY_FILE"])
def test_a_key_file_that_cannot_be_read_costs_the_tap_only(
    key, ranks, tap_on, monkeypatch, tmp_path
) -> None:
    """Without its key the tap cannot speak for itself: it says so unsigned, and the model loads."""
    monkeypatch.setenv(key, str(tmp_path / "missing"))
    made = seated()
    status = tap_on.wait_for(is_state("refused")).body
    assert status.reason == "configuration"
    assert key in status.detail
    made.load_model()
    made.compile_or_warm_up_model()
    made.shutdown()
    assert made.calls[0] == "load_model"


def test_the_first_of_a_tensor_parallel_group_speaks_for_the_requests(ranks, tap_on) -> None:
    """The others share the compile key, prove that passes run, and tap no layer."""
    ranks.tp = 1
    made = seated()
    made.load_model()
    assert not any(hasattr(layer, ROWS) for layer in made.model_runner.model.layers)
    made.compile_or_warm_up_model()
    frames = [tap_on.wait_for(is_state("starting"))]
    serve(made, Row("a", 0, 6, 6))
    serve(made, Row("a", 6, 1, 6))
    serve(made, finished=("a",))
    frames += [tap_on.wait_for(is_state("live")), *tap_on.read(0.2)]
    assert {frame.header.source for frame in frames} == {Source("engine", tp=1)}
    assert {type(frame.body) for frame in frames} == {Status}
    assert frames[-1].header.step == 2
    assert frames[-1].body.num_layers == 0
    made.shutdown()
    ranks.tp = 0
    first = seated()
    assert (
        made.vllm_config.additional_config[fingerprint.KEY]
        == first.vllm_config.additional_config[fingerprint.KEY]
    )


@pytest.mark.parametrize(
    ("parallel", "dp"),
    [
        ({"data_parallel_rank": 3}, 3),
        ({"data_parallel_rank": 0, "data_parallel_index": 2}, 2),
    ],
)
def test_a_source_is_named_by_its_ranks(parallel, dp, ranks, tap_on) -> None:
    """Pipeline stage and data-parallel engine are in the source of every frame."""
    ranks.pp = 1
    made = seated(parallel_config=parallel)
    made.load_model()
    assert tap_on.wait_for(is_state("starting")).header.source == Source("engine", dp, 1, 0)


def wishing(wish: str) -> SimpleNamespace:
    """Sampling parameters of a client with a wish."""
    return SimpleNamespace(extra_args={"llm_internals": wish})


@pytest.mark.parametrize("runner", RUNNERS)
def test_what_the_scheduler_says_of_a_request_is_in_its_record(runner, ranks, tap_on, monkeypatch):
    """Its adapter if the operator listed it, how often it was preempted, or no record at all."""
    monkeypatch.setenv("SIDECAR_ADAPTERS", "legal")
    monkeypatch.setenv("SIDECAR_ALLOW_OPT_OUT", "1")
    made = seated(runner)
    made.load_model()
    tap_on.wait_for(is_state("starting"))
    made.compile_or_warm_up_model()
    new = [
        NewRequestData("a", lora_request=LoRARequest("legal")),
        NewRequestData("b", wishing("all"), LoRARequest("private")),
        NewRequestData("c", wishing("off")),
        NewRequestData("d", None),
    ]
    rows = [Row(name, 0, 3, 3) for name in "abcd"]
    serve(made, *rows, scheduled_new_reqs=new)
    serve(made, Row("a", 3, 1, 3), preempted_req_ids={"b"})
    serve(made, Row("a", 4, 1, 3), Row("b", 0, 3, 3))
    serve(made, finished=tuple("abcd"))
    body = tap_on.wait_for(lambda frame: isinstance(frame.body, Requests)).body
    assert {each.id: (each.adapter, each.preemptions) for each in body.requests} == {
        "a": ("legal", 0),
        "b": ("other", 1),
        "d": ("", 0),
    }
    totals = tap_on.wait_for(lambda f: isinstance(f.body, Layers) and f.body.num_requests).body
    assert totals.num_requests == 3
    assert totals.coverage.opted_out == totals.coverage.recomputed == 3


def test_drafts_of_v1_are_those_that_the_scheduler_granted(ranks, tap_on) -> None:
    """Rows of draft tokens that nobody vouches for are rejected, and lost if they come true."""
    made = seated(speculative_config=SimpleNamespace(num_speculative_tokens=2))
    made.load_model()
    tap_on.wait_for(is_state("starting"))
    made.compile_or_warm_up_model()
    serve(made, Row("a", 0, 5, 5), Row("b", 0, 5, 5))
    drafts = {"a": [7, 7]}
    serve(made, Row("b", 5, 1, 5), Row("a", 5, 3, 5), scheduled_spec_decode_tokens=drafts)
    serve(made, Row("a", 7, 1, 5))  # one of the two was accepted
    serve(made, finished=("a",))
    (record,) = tap_on.wait_for(lambda frame: isinstance(frame.body, Requests)).body.requests
    assert record.coverage.observed == [4, 1, 0, 2]
    assert record.coverage.lost == 1
    totals = tap_on.wait_for(lambda f: isinstance(f.body, Layers) and f.body.num_requests).body
    assert totals.coverage.rejected == 2
    assert totals.coverage.observed == [8, 2, 0, 3]


def test_drafts_on_the_device_alone_are_refused(ranks, tap_on) -> None:
    """Model runner V2 does not tell the host which drafts were accepted."""
    seated(RunnerV2Of32, speculative_config=SimpleNamespace(num_speculative_tokens=2))
    detail = tap_on.wait_for(is_state("refused")).body.detail
    assert "speculative decoding on model runner V2" in detail


@pytest.mark.parametrize("drafts", [0, 7])
def test_every_draft_token_has_room_for_a_group_of_its_own(drafts, ranks, tap_on) -> None:
    """A batch of as many requests as there may be, each with all its drafts, is collected."""
    speculative = SimpleNamespace(num_speculative_tokens=drafts) if drafts else None
    made = seated(speculative_config=speculative)
    made.load_model()
    made.compile_or_warm_up_model()
    names = "abcd"  # max_num_seqs of them
    serve(made, *[Row(name, 0, 4, 4) for name in names])
    granted = {name: [7] * drafts for name in names} if drafts else {}
    rows = [Row(name, 4, 1 + drafts, 4) for name in names]
    serve(made, *rows, scheduled_spec_decode_tokens=granted)
    serve(made, finished=tuple(names))
    totals = tap_on.wait_for(lambda f: isinstance(f.body, Layers) and f.body.num_requests).body
    assert totals.num_steps == 2
    assert (totals.coverage.lost, totals.coverage.rejected) == (0, 4 * drafts)


@pytest.mark.parametrize("most", [1, 63, 64, 2048])
def test_the_slab_holds_more_rows_than_any_pass(most, ranks) -> None:
    """Strictly more: a graph traced at the slab's own size would be fixed to that size."""
    for sizes in (None, [], [1, 512]):
        config = vllm_config(
            scheduler_config={"max_num_batched_tokens": most},
            compilation_config={"cudagraph_capture_sizes": sizes},
        )
        capacity = worker._capacity(config)
        assert max(most, *(sizes or [0])) + 64 <= capacity + 63
        assert capacity > max(most, *(sizes or [0]))
        assert capacity % 64 == 0


def test_an_exception_while_reading_is_swallowed_and_counted(ranks, tap_on, monkeypatch) -> None:
    """A runner that looks other than it did costs the numbers, and no step."""
    made = seated()
    made.load_model()
    made.compile_or_warm_up_model()
    tap_on.wait_for(is_state("live"))
    del made.model_runner.query_start_loc.np
    made.model_runner.query_start_loc.np = None  # what `read` cannot slice
    made.model_runner.execute_model = lambda *_: made.model_runner._model_forward(
        torch.ones(2, 16), torch.arange(2)
    )
    for _ in range(5):
        assert serve(made, Row("a", 0, 2, 2)).shape == (2, 16)
    status = tap_on.wait_for(is_state("disarmed")).body
    assert status.errors == {"read": 3}
    assert "read" in status.detail


def test_a_scheduler_output_of_another_shape_harms_no_step(ranks, tap_on) -> None:
    """What the seat reads of the scheduler's output is guarded too."""
    made = seated()
    made.load_model()
    made.compile_or_warm_up_model()
    made.model_runner.execute_model = lambda *_: "served"
    assert made.execute_model(object()) == "served"
    status = tap_on.wait_for(lambda f: isinstance(f.body, Status) and f.body.errors).body
    assert status.errors == {"schedule": 1}


def test_a_disarmed_tap_measures_no_more(ranks, tap_on) -> None:
    """Once any site has used up its exceptions nothing is collected, and so nothing can pile up."""
    made = seated()
    made.load_model()
    made.compile_or_warm_up_model()
    for _ in range(3):
        with pytest.raises(AttributeError):
            made.execute_model(object())
    tap_on.wait_for(is_state("disarmed"))
    for step in range(3):
        serve(made, Row(f"r{step}", 0, 4, 4))
    tap_on.read(0.2)  # what was said before
    assert tap_on.wait_for(lambda frame: isinstance(frame.body, Layers)).body.num_steps == 0


def test_what_the_worker_raises_is_its_own(ranks, tap_on) -> None:
    """An exception of the engine passes through the seat, and is not counted."""
    made = seated()
    made.load_model()
    made.compile_or_warm_up_model()
    with pytest.raises(KeyError):
        made.execute_model(SchedulerOutput({"unknown": 1}))
    tap_on.read(0.2)  # what was said before
    assert tap_on.wait_for(is_status).body.errors == {}


@pytest.fixture
def wrapper_class(installed_vllm, monkeypatch):
    """The installed vLLM's worker wrapper; what a test patches is put back."""
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    monkeypatch.setattr(WorkerWrapperBase, "init_device", WorkerWrapperBase.init_device)
    return WorkerWrapperBase


def test_installing_twice_patches_once(wrapper_class) -> None:
    """`register` runs several times in a process; the wrapper is wrapped once."""
    original = wrapper_class.init_device
    worker.install()
    patched = wrapper_class.init_device
    assert patched is not original
    assert patched.__wrapped__ is original
    worker.install()
    assert wrapper_class.init_device is patched


class DeviceWorker(Worker):
    """A worker whose device comes up."""

    def init_device(self) -> None:
        """Bring it up."""
        self.calls.append("init_device")


def wrapped_worker(wrapper_class, made: Worker, config: object) -> object:
    from vllm.config import VllmConfig

    wrapper = wrapper_class()
    wrapper.worker = made
    wrapper.vllm_config = VllmConfig()
    vars(wrapper.vllm_config).update(vars(config))
    return wrapper


def test_a_worker_is_seated_when_its_device_is_up(wrapper_class, ranks, tap_on) -> None:
    """The patched wrapper brings the device up first, and then seats its worker."""
    worker.install()
    model = Decoder()
    made = DeviceWorker(RunnerV1(model))
    wrapped_worker(wrapper_class, made, vllm_config(model)).init_device()
    assert made.calls == ["init_device"]
    made.load_model()
    tap_on.wait_for(is_state("starting"))


def test_a_seat_that_raises_leaves_the_worker_starting(
    wrapper_class, ranks, tap_on, monkeypatch, caplog
) -> None:
    """Whatever goes wrong with us, the device is up and the engine goes on."""

    def broken(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(worker, "seat_worker", broken)
    worker.install()
    made = DeviceWorker(RunnerV1(Decoder()))
    wrapped_worker(wrapper_class, made, vllm_config()).init_device()
    assert made.calls == ["init_device"]
    assert "serving untapped" in caplog.text


def test_a_refused_model_is_not_mistaken_for_a_tapped_one(ranks, tap_on) -> None:
    """A graph that is compiled after the refusal has a key of its own in the compile cache."""
    made = seated(model=nn.Linear(2, 2))
    tapped = made.vllm_config.additional_config[fingerprint.KEY]
    made.load_model()
    tap_on.wait_for(is_state("refused"))

    assert made.vllm_config.additional_config[fingerprint.KEY] == f"{tapped}-refused"
