"""Draft tokens: accepted as far as the scheduler keeps them, and settled for every step."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.tap.vllm import drafts
from sidecar.wire.frame import Status
from tests.tap.toys import Decoder
from tests.tap.vllm import fakes
from tests.tap.vllm.fakes import RunnerV1, RunnerV2Of32

EOS, STOP = 2, 9


@pytest.fixture(autouse=True, scope="module")
def _vllm(installed_vllm):
    """Its own check of an end is what is used."""


def request(output: list[int], num_prompt: int = 4, **params: object) -> SimpleNamespace:
    """CachedRequestState, as the runner leaves it: with the new tokens appended."""
    known = {
        "eos_token_id": EOS,
        "stop_token_ids": [STOP],
        "max_tokens": 100,
        "min_tokens": 0,
        "repetition_detection": None,
    }
    return SimpleNamespace(
        output_token_ids=output,
        num_prompt_tokens=num_prompt,
        sampling_params=SimpleNamespace(**known | params),
    )


def output(*sampled: list[int]) -> SimpleNamespace:
    """ModelRunnerOutput of requests `r0`, `r1`..."""
    ids = [f"r{number}" for number in range(len(sampled))]
    return SimpleNamespace(req_ids=ids, sampled_token_ids=list(sampled))


def accepted(*requests: tuple[SimpleNamespace, list[int]], max_model_len: int = 1000) -> list[int]:
    states = {f"r{number}": state for number, (state, _) in enumerate(requests)}
    runner = SimpleNamespace(requests=states, max_model_len=max_model_len)
    return drafts.accepted(runner, output(*(tokens for _, tokens in requests))).tolist()


def test_all_but_one_of_the_tokens_were_drafts() -> None:
    """The last one the model added itself; an unfinished prefill has none at all."""
    assert accepted(
        (request([50, 51, 52]), [50, 51, 52]), (request([50]), [50]), (request([]), [])
    ) == [2, 0, 0]


@pytest.mark.parametrize(
    ("before", "tokens", "params", "kept"),
    [
        ([], [50, EOS, 51, 52], {}, 2),
        ([], [50, STOP, 51], {}, 2),
        ([], [50, 51, EOS], {}, 3),
        ([], [50, EOS, 51], {"eos_token_id": None}, 3),
        ([40] * 8, [50, 51, 52, 53], {"max_tokens": 10}, 2),
        ([40] * 8, [50, 51], {"max_tokens": 10}, 2),
        ([40] * 8, [50, 51], {"max_tokens": 9}, 1),
    ],
    ids=["eos", "stop token", "eos at the end", "eos ignored", "length", "just", "one left"],
)
def test_what_the_scheduler_drops_was_not_accepted(before, tokens, params, kept) -> None:
    """A request that ends in the middle of its drafts has no tokens after its end."""
    assert accepted((request(before + tokens, **params), tokens)) == [kept - 1]


def test_the_models_length_is_an_end_too() -> None:
    """Prompt and generated tokens together fit the model's length."""
    assert accepted((request([50, 51, 52], num_prompt=4), [50, 51, 52]), max_model_len=6) == [1]


@settings(deadline=None)
@given(
    before=st.lists(st.integers(0, 12), max_size=6),
    tokens=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    most=st.integers(1, 12),
    length=st.integers(5, 14),
)
def test_as_many_are_kept_as_the_installed_scheduler_keeps(before, tokens, most, length) -> None:
    """Against its own loop over its own kind of request."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

    params = SamplingParams(max_tokens=len(before) + most, stop_token_ids=[STOP])
    params._eos_token_id = EOS
    scheduled = Request("r0", [1, 1, 1, 1], params, None)
    scheduled.append_output_token_ids(before)
    scheduler = SimpleNamespace(max_model_len=max(length, 5 + len(before)))
    kept, _ = Scheduler._update_request_with_output(scheduler, scheduled, list(tokens))
    state = request(before + tokens)
    state.sampling_params = params
    assert accepted((state, tokens), max_model_len=scheduler.max_model_len) == [len(kept) - 1]


class Sampling:
    """The second half of a step of V1."""

    def __init__(self, result: object) -> None:
        self.requests = {"r0": request([50, 51]), "r1": request([60])}
        self.max_model_len = 1000
        self.result = result

    def sample_tokens(self, grammar_output: object) -> object:
        """The output of the step."""
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_each_step_is_settled_once_its_output_is_there() -> None:
    """With what the runner returned, which its caller gets as it is."""
    made = Sampling(output([50, 51], [60]))
    told: list[list[int]] = []
    drafts.wrap(made, lambda read: told.append(read().tolist()))
    assert made.sample_tokens(None) is made.result
    assert told == [[1, 0]]


@pytest.mark.parametrize("result", [None, SimpleNamespace(req_ids=[]), SimpleNamespace()])
def test_no_step_is_settled_where_none_was_sampled(result) -> None:
    """An empty output, that of another stage, or one that is still on the device."""
    made = Sampling(result)
    drafts.wrap(made, lambda read: pytest.fail("settled"))
    assert made.sample_tokens(None) is result


def test_a_step_that_fails_is_not_settled() -> None:
    """The exception is the runner's own."""
    made = Sampling(ValueError("the runner's own"))
    drafts.wrap(made, lambda read: pytest.fail("settled"))
    with pytest.raises(ValueError, match="the runner's own"):
        made.sample_tokens(None)


@pytest.mark.parametrize(
    ("kind", "parts", "feature"),
    [
        (RunnerV2Of32, {}, "speculative decoding on model runner V2"),
        (RunnerV1, {"scheduler_config": {"async_scheduling": True}}, "asynchronous scheduling"),
        (RunnerV1, {"parallel_config": {"pipeline_parallel_size": 2}}, "pipeline parallelism"),
    ],
)
def test_speculation_that_cannot_be_attributed_is_refused(
    kind, parts, feature, ranks, tap_on
) -> None:
    """Where the host does not know what was accepted; with the remedy, and serving goes on."""
    from sidecar.tap.vllm import worker

    speculative = SimpleNamespace(method="ngram", num_speculative_tokens=3)
    made = fakes.Worker(kind(Decoder()))
    worker.seat_worker(made, fakes.vllm_config(speculative_config=speculative, **parts))
    status = tap_on.wait_for(
        lambda f: isinstance(f.body, Status) and f.body.state == "refused"
    ).body
    assert feature in status.detail
    assert "serve without" in status.detail
    assert "load_model" not in vars(made)
