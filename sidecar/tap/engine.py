"""One tapped engine: rows in on the engine's thread, frames out on the pump's.

Step path (`observe`, `settle`, `submit`, `finish`): plan the rows, put them aside or launch the
grouping, append to a deque. No wait, no lock, no log. Everything else happens on the pump thread,
at its own pace; when it falls behind, steps are lost and counted, and the engine does not notice.
An instrument that keeps failing is disarmed alone.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec
import numpy as np

from sidecar.config import TapConfig
from sidecar.tap import signature
from sidecar.tap.governor import Governor
from sidecar.tap.guard import Guard
from sidecar.tap.instrument import Instruments, Pending, RowInstrument, Sampler, site_of
from sidecar.tap.ledger import Ledger
from sidecar.tap.liveness import Liveness
from sidecar.tap.meter import Meter
from sidecar.tap.nameplate import Nameplate
from sidecar.tap.notary import Notary
from sidecar.tap.orders import Orders
from sidecar.tap.pump import Pump, Work
from sidecar.tap.records import Ended, Records
from sidecar.tap.ring import Loan
from sidecar.tap.roster import Roster
from sidecar.tap.rows import Batch, Ints, Plan, RowMap
from sidecar.tap.run import Run
from sidecar.tap.scan import SITE as SCANNER
from sidecar.tap.scan import Picked, Scanner
from sidecar.tap.slab import Selection, Slab
from sidecar.wire.channel import Sender
from sidecar.wire.fields import MAX_LONG_TEXT
from sidecar.wire.frame import (
    Body,
    Status,
    TapState,
)
from sidecar.wire.scan import Scan
from sidecar.wire.signature import Layout

MAX_PENDING: Final = 4096  # events between two polls; more means that the pump has stopped
_HOLD_SHARE: Final = 0.25  # of the time between two flushes, that rows may be put aside for


@dataclass
class Step:
    """A forward pass over `batch`; `loan` is None when it was not measured, for the given cause.

    Or a run of them, `batch` being the last. passed: when each was launched, Unix time, ns.
    accepted: [n] draft tokens accepted of each request; None while that is not known.
    extras: what the row instruments made of the same pass.
    picked: its rows of scanned requests; None when there are none.
    """

    batch: Batch
    plan: Plan
    t_ns: int
    loan: Loan | None = None
    selection: Selection | None = None
    cause: str = "lost"
    accepted: Ints | None = None
    extras: list[tuple[RowInstrument, Pending]] = field(default_factory=list)
    picked: Picked | None = None
    passed: list[int] = field(default_factory=list)

    @property
    def is_ready(self) -> bool:
        """Whether it can be added up without a wait."""
        if self.plan.has_drafts and self.accepted is None:
            return False
        if self.loan is None:
            return True
        if self.picked is not None and not self.picked.is_ready:
            return False
        return self.loan.is_ready and all(pending.is_ready for _, pending in self.extras)


class Reading(NamedTuple):
    """Numbers of a sampler, on their way."""

    sampler: Sampler
    pending: Pending

    @property
    def is_ready(self) -> bool:
        """Whether they are here."""
        return self.pending.is_ready


@dataclass
class Verdict:
    """State of the tap and why; written by the pump thread, read by it alone."""

    state: TapState = "starting"
    reason: str = "no_forward_pass"
    detail: str = "no forward pass has been measured yet; send a request"
    dead_layers: list[int] = field(default_factory=list)


class EngineTap:
    """Puts slab, rows, ledger, instruments and pump together.

    layer_ids: global ids of the layers whose views of `slab` were attached; with none, another rank
    speaks for the requests, and this one for its instruments alone.
    max_requests: requests in one batch at most.
    notary: attests what the model was loaded from; None where another rank does.
    most_together: steps that may be reduced at once, when each is like the one before.
    step, plan: of the last forward pass observed: its number from 0, and its rows; None when it was
    not planned.
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
        instruments: Instruments | None = None,
        governor: Governor | None = None,
        notary: Notary | None = None,
        most_together: int = 1,
    ) -> None:
        self.roster = Roster(config.adapters, config.routes, allow_opt_out=config.allow_opt_out)
        meter = Meter(guard, slab.rows.device)
        self.governor = governor or Governor(config, layer_ids, slab, meter)
        self.step = -1
        self.plan: Plan | None = None
        self.last_step: Step | None = None
        self._config = config
        self._engine = engine
        self._notary = notary
        self._layer_ids = layer_ids
        self._slab = slab
        self._guard = guard
        self._rows = RowMap(2 * max_requests)
        self._ledger = Ledger(layer_ids, self._rows.capacity)
        self._liveness = Liveness(layer_ids)
        self._instruments = instruments or Instruments(
            Layout(signature.evenly(layer_ids, config.signature_layers))
        )
        self.scanner = Scanner(layer_ids, slab, is_on=config.scans and bool(layer_ids))
        self._events: deque[Step | Reading | Ended] = deque()
        self._undecided: Step | None = None
        self._run: Run | None = None
        self._most_together = most_together
        self._hold_ns = round(_HOLD_SHARE * 1e9 * config.flush_seconds)
        self._records = Records(
            config, layer_ids, self._ledger, self.roster, self._instruments, guard
        )
        self._is_armed = False
        work = Work(self._drain, self._bodies, lambda: self._ledger.num_steps)
        self._pump = Pump(sender, work, guard, config.flush_seconds)

    @property
    def orders(self) -> Orders:
        """What to measure now."""
        return self.governor.orders

    @property
    def is_measuring(self) -> bool:
        """Whether the last forward pass observed is one to measure."""
        return self.plan is not None and self.orders.measures(self.step)

    @property
    def measures_next(self) -> bool:
        """Whether the next forward pass will be one to measure."""
        return self._is_armed and not self._disarmed and self.orders.measures(self.step + 1)

    def start(self) -> None:
        """Begin to report; nothing is measured before `arm`."""
        self._pump.start()

    def arm(self, *, was_warmed_up: bool) -> None:
        """Begin to measure. Warm-up rows are over; they have shown which taps run.

        was_warmed_up: whether the engine has run the model already, so that a tap without a
        pulse is dead rather than unproven.
        """
        pulses = self._slab.pulses()
        if pulses and (was_warmed_up or any(pulses)):
            self._liveness.update(pulses)
        self._guard.run("govern", self.governor.begin)
        if self._notary is not None:  # not earlier: loading a model needs the disk for itself
            self._guard.run("notary", self._notary.start)
        self._is_armed = True

    def observe(self, batch: Batch) -> None:
        """Measure the forward pass that has just been launched. Step path."""
        self._settle_doubt()
        self.plan = self.last_step = None
        if not self._is_armed or self._disarmed or len(self._events) >= MAX_PENDING:
            return
        plan = self._rows.plan(batch, self.roster.opted_out)
        step = Step(batch, plan, time.time_ns())
        self.step += 1
        self.plan, self.last_step = plan, step
        self._undecided = step if plan.has_drafts else None
        is_kept = False
        try:
            is_kept = self._keep(step)
            if not is_kept:
                self._collect(step)
        finally:  # planned rows that could not be collected are lost, and must be counted
            if not is_kept:
                self._events.append(step)

    def settle(self, accepted: Ints) -> None:
        """Tell how many draft tokens of each request of the last batch, [n], were accepted."""
        step, self._undecided = self._undecided, None
        if step is None:
            return
        settled = np.zeros(len(step.plan.batch_slots), np.int64)
        try:
            settled = self._rows.settle(step.plan, accepted)
        finally:  # or the steps behind it would wait for ever
            step.accepted = settled

    def submit(self, sampler: Sampler, pending: Pending) -> None:
        """Numbers of the last batch that a sampler has started to read. Step path."""
        self._events.append(Reading(sampler, pending))

    def finish(self, req_ids: Iterable[str]) -> None:
        """Close the accounts of requests that the scheduler has finished. Step path."""
        self._settle_doubt()
        self._end_run()
        entries = {req_id: self.roster.leave(req_id) for req_id in req_ids}
        if self._is_armed:
            for req_id, slot in self._rows.forget(list(entries)):
                self.scanner.leave(slot)
                self._events.append(Ended(req_id, slot, entries[req_id]))

    def stop(self) -> None:
        """Report what is left and end the pump."""
        self._settle_doubt()
        self._end_run()
        self._is_armed = False
        if self._notary is not None:
            self._notary.stop()
        self._pump.stop()

    @property
    def _disarmed(self) -> list[str]:
        """Sites without which the tap cannot go on."""
        disarmed = self._guard.disarmed
        return [site for site in disarmed if site not in self._sites()] if disarmed else disarmed

    def _sites(self) -> set[str]:
        return {SCANNER, *map(site_of, self._instruments.all)}

    def _settle_doubt(self) -> None:
        """Nobody said which drafts were accepted: those rows are in doubt, so not counted."""
        if self._undecided is not None:
            self.settle(np.zeros(len(self._undecided.plan.batch_slots), np.int64))

    def _keep(self, step: Step) -> bool:
        """Put the rows of a steady batch aside; False when the step is to be reduced alone."""
        orders, plan = self.orders, step.plan
        is_steady = (
            self._rows.is_steady
            and orders.measures(self.step)
            and not self.scanner.is_busy(orders.scan)
        )
        if self._run is not None and not (is_steady and self._run.takes(plan, orders.selection)):
            self._end_run()
        if is_steady and self._run is None:
            limit = min(self._most_together, self._slab.capacity // max(1, len(plan.groups)))
            self._run = Run.begin(plan, orders.selection, limit)
        if not is_steady or self._run is None:
            return False
        self._continue(self._run, step)
        return True

    def _continue(self, run: Run, step: Step) -> None:
        place = run.next_place
        self._slab.keep(place)
        for instrument in self._instruments.rows:
            site = site_of(instrument)
            if not self._guard.run(site, instrument.keep, place):
                run.failed.add(site)
        run.add(step.batch, step.plan, step.t_ns)
        if run.is_over(self._hold_ns):
            self._end_run()

    def _end_run(self) -> None:
        """Start to reduce what was put aside."""
        run, self._run = self._run, None
        if run is not None and run.passed:
            # Guarded here: the step that is being observed is not to be lost with this one.
            self._guard.run("step", self._reduce_run, run)

    def _reduce_run(self, run: Run) -> None:
        step = Step(*run.whole(), run.passed[-1], passed=run.passed)
        try:
            self._reduce(step, run)
        finally:
            self._events.append(step)

    def _collect(self, step: Step) -> None:
        orders = self.orders
        if not orders.measures(self.step):
            step.cause = "shed"
            return
        self._reduce(step)
        if step.loan is not None and self.scanner.is_busy(orders.scan):
            wanted = (step.batch, step.plan, orders.scan, self.roster)
            step.picked = self._guard.run(SCANNER, self.scanner.collect, *wanted)

    def _reduce(self, step: Step, run: Run | None = None) -> None:
        """Start to reduce the rows of one step, or of a run."""
        place = None if run is None else run.place
        step.selection = self.orders.selection if run is None else run.selection
        step.loan = self._slab.collect(step.plan, step.selection, place)
        if step.loan is None:
            return
        for instrument in self._instruments.rows:
            site = site_of(instrument)
            if run is not None and site in run.failed:
                continue
            pending = self._guard.run(site, instrument.collect, step.plan, place)
            if pending is not None:
                step.extras.append((instrument, pending))

    def _drain(self) -> int:
        num_drained = 0
        while self._events and self._events[0].is_ready:
            num_drained += 1
            match self._events.popleft():
                case Step() as step:
                    for t_ns in step.passed or [step.t_ns]:
                        self.governor.passed(t_ns)
                    self._account(step)
                case Reading(sampler, pending):
                    self._guard.run_aside(site_of(sampler), sampler.account, pending)
                case Ended() as ended:
                    num_rows = self._ledger.num_rows(ended.slot)
                    self._guard.run_aside(SCANNER, self.scanner.end, ended.slot, num_rows)
                    self._records.end(ended)
        return num_drained

    def _account(self, step: Step) -> None:
        kept = None if step.accepted is None else step.plan.accept(step.accepted)
        try:
            self._add(step)
        finally:
            for each, pending in step.extras:
                self._guard.run_aside(site_of(each), each.account, pending, step.plan, kept)
            if step.picked is not None:
                self._guard.run_aside(SCANNER, self.scanner.account, step.picked, kept)

    def _add(self, step: Step) -> None:
        plan, selection = step.plan, step.selection
        if step.loan is None:
            self._ledger.lose(plan, step.t_ns, step.cause, accepted=step.accepted)
            return
        try:
            grouped = self._slab.read(step.loan, plan.num_groups, selection)
            self._ledger.add(
                plan,
                grouped.sums,
                grouped.bounds,
                step.t_ns,
                accepted=step.accepted,
                places=None if selection is None else selection.places,
            )
            self._liveness.update(grouped.pulses)
        finally:
            self._slab.release(step.loan)

    def _bodies(self) -> Iterator[Body]:
        if self._is_armed:  # while graphs are captured, nobody may ask the device anything
            self._guard.run_aside("govern", self.governor.govern)
        yield self._status()
        if self._notary is not None and (manifest := self._notary.due(time.time_ns())):
            yield manifest
        if self._layer_ids:
            yield self._ledger.layers()
        yield from self._records.bodies()
        yield from self._guard.run_aside(SCANNER, self._scans) or ()

    def _scans(self) -> list[Scan]:
        return self.scanner.bodies(self._ledger.num_rows)

    def _status(self) -> Status:
        verdict = self._verdict()
        errors = dict(self._guard.errors)
        if self.governor.num_refused:  # mistakes of the operator's, which disarm nothing
            errors["control"] = self.governor.num_refused
        status = self._engine.status(verdict.state, verdict.reason, verdict.detail, errors)
        status.num_layers = len(self._layer_ids)
        status.dead_layers = verdict.dead_layers
        status.absent = self._absent()
        if refusal := self.governor.refusal:
            status.absent["control"] = refusal[:MAX_LONG_TEXT]
        status.shed_level = self.orders.shed_level
        status.cost_share = self.governor.cost_share
        status.control = self.orders.revision
        if self._notary is not None:
            manifest = self._notary.get()
            status.identity = msgspec.structs.replace(
                status.identity,
                weights_digest=manifest.weights_digest,
                tokenizer_digest=manifest.tokenizer_digest,
            )
        return status

    def _absent(self) -> dict[str, str]:
        detail = "disarmed after too many errors; see the engine's log, then restart it"
        failed = self._sites() & set(self._guard.disarmed)
        absent = self._instruments.absent | dict.fromkeys(failed, detail)
        if not self._config.scans and self._layer_ids:
            absent["scan"] = "switched off; set SIDECAR_SCANS=1 and restart the engine"
        # A longer reason would have the whole status refused.
        return {group: reason[:MAX_LONG_TEXT] for group, reason in absent.items()}

    def _verdict(self) -> Verdict:
        if disarmed := self._disarmed:
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
