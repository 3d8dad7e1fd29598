"""Rows of both model runners, of each release: the runner's order, real steps only."""

import numpy as np
import pytest

from sidecar.tap.vllm import runner_v1, runner_v2
from tests.tap.toys import Decoder
from tests.tap.vllm.fakes import (
    Row,
    RunnerV1,
    RunnerV2Of26,
    RunnerV2Of32,
    RunnerV2Of33,
    SchedulerOutput,
)

V2 = [RunnerV2Of26, RunnerV2Of32, RunnerV2Of33]
EVERY = [(runner_v1, RunnerV1), *((runner_v2, release) for release in V2)]

# The scheduler's order is none that a runner uses: V1 sorts by id here, V2 by tokens.
ROWS = [Row("c", 3, 2, 9), Row("a", 12, 1, 10, known=13), Row("b", 0, 5, 5)]
IN_ORDER = {
    runner_v1: [ROWS[1], ROWS[2], ROWS[0]],
    runner_v2: [ROWS[1], ROWS[0], ROWS[2]],
}


def scheduled(*rows: Row) -> SchedulerOutput:
    return SchedulerOutput({row.req_id: row.scheduled for row in rows})


@pytest.fixture
def observed():
    """What the runner's wrapper had read; None where the step had no batch."""
    return []


def wrapped(module, runner, observed):
    runner.known = {row.req_id: row for row in ROWS}
    module.wrap(runner, draft_counts, lambda read: observed.append(read()))
    return runner


def draft_counts(req_ids: list[str]) -> np.ndarray:
    """What the scheduler says of the requests in this order: one has a draft token."""
    return np.array([int(req_id == "c") for req_id in req_ids], np.int64)


@pytest.mark.parametrize(("module", "runner"), EVERY)
def test_each_runner_is_recognised_by_its_own_module_alone(module, runner) -> None:
    """What one module reads the other would not find."""
    made = runner(Decoder())
    assert module.matches(made)
    assert not (runner_v2 if module is runner_v1 else runner_v1).matches(made)
    assert not module.matches(object())


@pytest.mark.parametrize(("module", "runner"), EVERY)
def test_a_batch_is_read_in_the_runners_order(module, runner, observed) -> None:
    """Ids, starts, counts and prompts are those of the rows, not of the scheduler's dict."""
    made = wrapped(module, runner(Decoder()), observed)
    made.execute_model(scheduled(*ROWS))
    (batch,) = observed
    expected = IN_ORDER[module]
    assert batch.req_ids == [row.req_id for row in expected]
    assert batch.req_ids != [row.req_id for row in ROWS]
    assert batch.starts.tolist() == [row.computed for row in expected]
    assert batch.counts.tolist() == [row.scheduled for row in expected]
    assert batch.prompts.tolist() == [row.prompt for row in expected]
    assert {column.dtype.str for column in batch[1:5]} == {"<i8"}
    assert (
        batch.partial.tolist()
        == [row.is_partial for row in expected]
        == [row.req_id == "c" for row in expected]
    )


@pytest.mark.parametrize(("module", "runner"), EVERY)
def test_a_resumed_request_has_its_own_answer_to_prefill(module, runner, observed) -> None:
    """After a preemption the generated tokens are prefilled too: up to them a row is partial."""
    made = wrapped(module, runner(Decoder()), observed)
    for row in (Row("a", 0, 12, 10, known=14), Row("a", 12, 2, 10, known=14)):
        made.known["a"] = row
        made.execute_model(scheduled(row))
    assert [batch.partial.tolist() for batch in observed] == [[True], [False]]


def test_v1_asks_for_the_drafts_in_its_own_order(observed) -> None:
    """The scheduler's counts of draft tokens stand beside the rows they belong to."""
    made = wrapped(runner_v1, RunnerV1(Decoder()), observed)
    made.execute_model(scheduled(*ROWS))
    assert observed[0].drafts.tolist() == [0, 0, 1]


@pytest.mark.parametrize("runner", V2)
def test_v2_is_never_read_with_drafts(runner, observed) -> None:
    """Speculative decoding is refused there; whatever the scheduler says is not used."""
    made = wrapped(runner_v2, runner(Decoder()), observed)
    made.execute_model(scheduled(*ROWS))
    assert not len(observed[0].drafts)


@pytest.mark.parametrize(("module", "runner"), EVERY)
def test_a_batch_is_a_copy(module, runner, observed) -> None:
    """The runner reuses its arrays for the next step; what was read stays."""
    made = wrapped(module, runner(Decoder()), observed)
    made.execute_model(scheduled(ROWS[0]))
    made.known["c"] = Row("c", 5, 4, 9)
    made.execute_model(scheduled(made.known["c"], ROWS[1]))
    assert observed[0].req_ids == ["c"]
    assert observed[0].starts.tolist() == [3]
    assert observed[0].counts.tolist() == [2]
    assert observed[0].partial.tolist() == [True]


@pytest.mark.parametrize(("module", "runner"), EVERY)
def test_a_step_returns_what_it_returned(module, runner, observed) -> None:
    """The wrapped runner gives its caller what the plain one gives."""
    plain = runner(Decoder())
    plain.known = {row.req_id: row for row in ROWS}
    made = wrapped(module, runner(Decoder()), observed)
    for output in (scheduled(ROWS[0]), scheduled()):
        want, got = plain.execute_model(output), made.execute_model(output)
        assert type(got) is type(want)
    assert got == "empty output"


@pytest.mark.parametrize(("module", "runner"), EVERY)
def test_a_step_without_tokens_is_not_observed(module, runner, observed) -> None:
    """A step that runs no model gives no batch, and repeats none."""
    made = wrapped(module, runner(Decoder()), observed)
    made.execute_model(scheduled(ROWS[0]))
    if module is runner_v2:
        made.sample_tokens()
    made.execute_model(scheduled())
    assert [batch.req_ids for batch in observed if batch is not None] == [["c"]]


def test_a_dummy_run_of_v1_passes_by(observed) -> None:
    """V1's dummy runs call the model directly, and not what is wrapped."""
    made = wrapped(runner_v1, RunnerV1(Decoder()), observed)
    made._dummy_run(8)
    assert observed == []


@pytest.mark.parametrize("runner", V2)
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((None, True), {}), ((None,), {"dummy_run": True}), ((None, True, True), {})],
)
def test_a_dummy_run_of_v2_is_told_by_its_argument(runner, args, kwargs, observed) -> None:
    """By place or by name: a dummy run is not observed, a step that says it is none is."""
    made = wrapped(runner_v2, runner(Decoder()), observed)
    made.execute_model(scheduled(), *args, **kwargs)
    assert observed == []
    made.execute_model(scheduled(ROWS[0]), None, dummy_run=False)
    made.execute_model(*(scheduled(ROWS[0]), None, False))
    assert len(observed) == 2


@pytest.mark.parametrize("runner", V2)
def test_a_step_of_v2_whose_state_is_gone_has_no_batch(runner, observed) -> None:
    """A runner that left no state, such as one whose step failed, has nothing to read."""
    made = wrapped(runner_v2, runner(Decoder()), observed)
    made.execute_model(scheduled())
    assert observed == [None]


@pytest.mark.parametrize(("module", "runner"), EVERY)
def test_an_exception_of_the_model_is_not_observed(module, runner, observed) -> None:
    """A step that the model did not finish leaves no batch, and its exception passes."""
    made = wrapped(module, runner(Decoder()), observed)

    def failing(*_: object) -> None:
        raise ValueError("the model's own")

    made.model = failing
    with pytest.raises(ValueError, match="the model's own"):
        made.execute_model(scheduled(ROWS[0]))
    assert observed == []
