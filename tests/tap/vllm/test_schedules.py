"""What a scheduler may do to a request between its first row and its last, runner by runner.

Asynchronous scheduling is off in vLLM's CPU build, so what it does to rows is played here: it
schedules a step before it has seen the tokens of the one before, so a request that has met its
end gets one more row, and is said to be finished a step late.
"""

import pytest

from sidecar.tap.vllm.worker import seat_worker
from sidecar.wire.frame import Layers, Request, Requests, Status
from tests.tap.inbox import Inbox
from tests.tap.toys import Decoder
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
EAGER = {"scheduler_config": {"async_scheduling": True}}


def running(runner: type, tap_on: Inbox) -> Worker:
    """A worker that is warm and serves."""
    model = Decoder()
    made = Worker(runner(model))
    seat_worker(made, vllm_config(model, **EAGER))
    made.load_model()
    made.compile_or_warm_up_model()
    tap_on.wait_for(lambda f: isinstance(f.body, Status) and f.body.state == "live")
    return made


def step(made: Worker, *rows: Row, **said: object) -> None:
    """One step with these rows; `said` is what else the scheduler tells."""
    made.model_runner.known.update({row.req_id: row for row in rows})
    scheduled = {row.req_id: row.scheduled for row in rows}
    made.execute_model(SchedulerOutput(scheduled, **said))


def new(req_id: str, adapter: str | None = None) -> NewRequestData:
    """What the scheduler says of a request that a worker does not know."""
    return NewRequestData(req_id, lora_request=LoRARequest(adapter) if adapter else None)


def records(tap_on: Inbox, *names: str) -> dict[str, Request]:
    """Records of these requests, each of which must come once."""
    found: dict[str, Request] = {}
    while set(found) < set(names):
        for request in tap_on.wait_for(lambda f: isinstance(f.body, Requests)).body.requests:
            assert request.id not in found
            if request.id in names:
                found[request.id] = request
    return found


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_row_past_the_end_belongs_to_its_request(runner, ranks, tap_on) -> None:
    """A step that was launched before the end was seen is counted, once, to the same request."""
    made = running(runner, tap_on)
    step(made, Row("a", 0, 5, 5), Row("b", 0, 4, 4))
    step(made, Row("a", 5, 1, 5), Row("b", 4, 1, 4))  # a's last token comes out of this step
    step(made, Row("a", 6, 1, 5), Row("b", 5, 1, 4))  # launched before that was known
    step(made, Row("b", 6, 1, 4), finished_req_ids={"a"})
    step(made, finished_req_ids={"b"})

    found = records(tap_on, "a", "b")
    assert found["a"].coverage.observed == [4, 1, 0, 2]
    assert found["b"].coverage.observed == [4, 0, 0, 3]
    totals = tap_on.wait_for(lambda f: isinstance(f.body, Layers) and f.body.num_requests >= 2)
    assert totals.body.coverage.observed == [8, 1, 0, 5]
    assert totals.body.num_steps == 4


@pytest.mark.parametrize("resumed_at", [0, 4])
@pytest.mark.parametrize("runner", RUNNERS)
def test_a_resumed_request_is_the_same_request(runner, resumed_at, ranks, tap_on) -> None:
    """Computed again from its start, or from a block that the cache has kept: measured once."""
    made = running(runner, tap_on)
    step(made, Row("a", 0, 6, 6), Row("b", 0, 4, 4), scheduled_new_reqs=[new("a", "x"), new("b")])
    step(made, Row("a", 6, 1, 6), Row("b", 4, 1, 4))
    step(made, Row("b", 5, 1, 4), preempted_req_ids={"a"})
    # V2 hears of it as if it were new; its prefill then holds what it had generated.
    again = [new("a", "x")] if runner is not RunnerV1 else []
    step(
        made,
        Row("a", resumed_at, 8 - resumed_at, 6, known=8),
        Row("b", 6, 1, 4),
        scheduled_new_reqs=again,
    )
    step(made, Row("a", 8, 1, 6), Row("b", 7, 1, 4))
    step(made, finished_req_ids={"a", "b"})

    found = records(tap_on, "a", "b")
    assert found["a"].coverage.observed == [4, 2, 0, 3]
    assert found["a"].coverage.recomputed == 7 - resumed_at
    assert (found["a"].coverage.prefix_cached, found["a"].coverage.lost) == (0, 0)
    assert found["a"].preemptions == 1
    assert found["a"].adapter == "other"
    assert found["b"].coverage.observed == [4, 0, 0, 4]
    assert (found["b"].coverage.recomputed, found["b"].preemptions) == (0, 0)


@pytest.mark.parametrize("runner", RUNNERS)
def test_an_id_that_comes_back_is_a_request_of_its_own(runner, ranks, tap_on) -> None:
    """A client may use one id twice: nothing of the first life is left in the second."""
    made = running(runner, tap_on)
    step(made, Row("a", 0, 5, 5), scheduled_new_reqs=[new("a", "x")])
    step(made, Row("a", 5, 1, 5), preempted_req_ids={"a"})
    step(made, finished_req_ids={"a"})
    first = records(tap_on, "a")["a"]
    step(made, Row("a", 2, 6, 8), scheduled_new_reqs=[new("a")])
    step(made, finished_req_ids={"a"})
    second = records(tap_on, "a")["a"]

    assert (first.preemptions, first.adapter) == (1, "other")
    assert (second.preemptions, second.adapter) == (0, "")
    assert second.coverage.observed == [2, 4, 0, 0]
    assert second.coverage.prefix_cached == 2
