"""What a scheduler may do to a request between its first row and its last, runner by runner.

Asynchronous scheduling is off in vLLM's CPU build, so what it does to rows is played here: it
schedules a step before it has seen the tokens of the one before, so a request that has met its
end gets one more row, and is said to be finished a step late.
"""

import numpy as np
import pytest

from sidecar.config import CONTROL_NAME
from sidecar.fold.scans import RecentScans
from sidecar.tap.vllm.worker import seat_worker
from sidecar.wire import control
from sidecar.wire.control import Control
from sidecar.wire.frame import Arrays, Layers, Request, Requests, Status
from sidecar.wire.scan import Scan
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


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_scan_holds_each_row_of_its_request_once(runner, ranks, tap_on, socket_path) -> None:
    """Preempted, resumed and one row past its end: the rows add up to what the record says."""
    control.write(socket_path.with_name(CONTROL_NAME), Control(scan_requests=1))
    made = running(runner, tap_on)
    step(made, Row("a", 0, 6, 6), scheduled_new_reqs=[new("a")])
    step(made, Row("b", 0, 4, 4), Row("a", 6, 1, 6), scheduled_new_reqs=[new("b")])
    step(made, Row("b", 4, 1, 4), preempted_req_ids={"a"})
    again = [new("a")] if runner is not RunnerV1 else []
    step(made, Row("b", 5, 1, 4), Row("a", 0, 8, 6, known=8), scheduled_new_reqs=again)
    step(made, Row("a", 8, 1, 6), Row("b", 6, 1, 4))
    step(made, finished_req_ids={"a", "b"})

    scans, record = RecentScans(), None
    while record is None or not any(each.scan.is_final for each in scans.get()):
        frame = tap_on.wait_for(lambda f: isinstance(f.body, Scan | Requests))
        if isinstance(frame.body, Scan):
            scans.update("engine", 0, frame.body)
        else:
            record = next((each for each in frame.body.requests if each.id == "a"), record)
    (scanned,) = scans.get()
    columns, moments = scanned.columns(), Arrays.unpack(record.moments, 3)

    assert (scanned.scan.id, scanned.num_left_out) == ("a", 0)
    assert columns.positions.tolist() == list(range(9))
    assert moments.count.sum(0).tolist() == [9] * 3
    np.testing.assert_allclose(columns.values.sum(0), moments.sums[..., 0].sum(0), rtol=1e-5)
    largest = np.nanmax(moments.extremes[..., 1], 0)
    np.testing.assert_allclose(columns.values.max(0), largest, rtol=1e-6)
