"""One tapped engine: rows in on the engine's thread, frames out on the pump's.

Step path (`observe`, `finish`): plan the rows, launch the grouping, append to a deque. No wait, no
lock, no log. Everything else happens on the pump thread, at its own pace; when it falls behind,
steps are lost and counted, and the engine does not notice.
"""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sidecar.config import TapConfig
from sidecar.tap.guard import Guard
from sidecar.tap.ledger import Ledger
from sidecar.tap.liveness import Liveness
from sidecar.tap.nameplate import Nameplate
from sidecar.tap.pump import Pump, Work
from sidecar.tap.rows import Batch, Plan, RowMap
from sidecar.tap.slab import Result, Slab
from sidecar.wire.channel import Sender
from sidecar.wire.frame import MAX_BYTES, Body, Request, Requests, Status, TapState

MAX_PENDING: Final = 4096  # events between two polls; more means that the pump has stopped


class Step(NamedTuple):
    """A measured forward pass; `result` is None when there was no room for it."""

    plan: Plan
    result: Result | None
    t_ns: int


class Ended(NamedTuple):
    """Requests that are over, with the slots they held."""

    requests: list[tuple[str, int]]


@dataclass
class Verdict:
    """State of the tap and why; written by the pump thread, read by it alone."""

    state: TapState = "starting"
    reason: str = "no_forward_pass"
    detail: str = "no forward pass has been measured yet; send a request"
    dead_layers: list[int] = field(default_factory=list)


class EngineTap:
    """Puts slab, rows, ledger and pump together.

    layer_ids: global ids of the layers whose views of `slab` were attached.
    max_requests: requests in one batch at most.
    """

    def __init__(
        self,
        config: TapConfig,
        engine: Nameplate,
        layer_ids: list[int],
        slab: Slab,
        sender: Sender,
        guard: Guard,
        max_requests: int,
    ) -> None:
        self._config = config
        self._engine = engine
        self._layer_ids = layer_ids
        self._slab = slab
        self._guard = guard
        self._rows = RowMap(2 * max_requests)
        self._ledger = Ledger(layer_ids, self._rows.capacity)
        self._liveness = Liveness(layer_ids)
        self._events: deque[Step | Ended] = deque()
        self._finished: list[Request] = []
        self._is_armed = False
        work = Work(self._drain, self._bodies, lambda: self._ledger.num_steps)
        self._pump = Pump(sender, work, guard, config.flush_seconds)

    def start(self) -> None:
        """Begin to report; nothing is measured before `arm`."""
        self._pump.start()

    def arm(self, *, was_warmed_up: bool) -> None:
        """Begin to measure. Warm-up rows are over; they have shown which taps run.

        was_warmed_up: whether the engine has run the model already, so that a tap without a
        pulse is dead rather than unproven.
        """
        pulses = self._slab.pulses()
        if was_warmed_up or any(pulses):
            self._liveness.update(pulses)
        self._is_armed = True

    def observe(self, batch: Batch) -> None:
        """Measure the forward pass that has just been launched. Step path."""
        if not self._is_armed or self._guard.disarmed:
            return
        if len(self._events) >= MAX_PENDING:
            return
        plan = self._rows.plan(batch)
        result = None
        try:
            result = self._slab.collect(plan)
        finally:  # planned rows that could not be collected are lost, and must be counted
            self._events.append(Step(plan, result, time.time_ns()))

    def finish(self, req_ids: Iterable[str]) -> None:
        """Close the accounts of requests that the scheduler has finished. Step path."""
        if self._is_armed:
            known = self._rows.forget(list(req_ids))
            if known:
                self._events.append(Ended(known))

    def stop(self) -> None:
        """Report what is left and end the pump."""
        self._is_armed = False
        self._pump.stop()

    def _drain(self) -> None:
        while self._events and _is_ready(self._events[0]):
            match self._events.popleft():
                case Step() as step:
                    self._account(step)
                case Ended(requests):
                    self._end(requests)

    def _account(self, step: Step) -> None:
        if step.result is None:
            self._ledger.lose(step.plan, step.t_ns)
        else:
            self._add(step.plan, step.result, step.t_ns)

    def _add(self, plan: Plan, result: Result, t_ns: int) -> None:
        try:
            sums, bounds, pulse = result.arrays(plan.num_groups)
            self._ledger.add(plan, sums, bounds, t_ns)
            self._liveness.update(pulse)
        finally:
            self._slab.release(result)

    def _end(self, requests: list[tuple[str, int]]) -> None:
        for req_id, slot in requests:
            request = self._ledger.finish(req_id, slot)
            if request is not None and self._config.requests:
                self._finished.append(request)

    def _bodies(self) -> Iterable[Body]:
        yield self._status()
        yield self._ledger.layers()
        finished, self._finished = self._finished, []
        for start in range(0, len(finished), step := self._requests_per_frame()):
            yield Requests(self._layer_ids, finished[start : start + step])

    def _requests_per_frame(self) -> int:
        # sums, extremes and counts of one request; see frame.Moments.
        bytes_per_request = 4 * len(self._layer_ids) * (72 + 24 + 8) + 1024
        return max(1, MAX_BYTES // 2 // bytes_per_request)

    def _status(self) -> Status:
        verdict = self._verdict()
        status = self._engine.status(
            verdict.state, verdict.reason, verdict.detail, self._guard.errors
        )
        status.num_layers = len(self._layer_ids)
        status.dead_layers = verdict.dead_layers
        return status

    def _verdict(self) -> Verdict:
        if disarmed := self._guard.disarmed:
            sites = ", ".join(disarmed)
            detail = f"too many errors at {sites}; see the engine's log, then restart it"
            return Verdict("disarmed", "too_many_errors", detail)
        if not self._liveness.has_proof:
            return Verdict()
        if dead := self._liveness.dead_layers:
            detail = (
                f"{len(dead)} of {len(self._layer_ids)} taps did not run in the last step: the "
                "compiled graph was built without them; clear VLLM_CACHE_ROOT and restart"
            )
            return Verdict("dead", "no_pulse", detail, dead)
        return Verdict("live", "", "")


def _is_ready(event: Step | Ended) -> bool:
    return isinstance(event, Ended) or event.result is None or event.result.is_ready
