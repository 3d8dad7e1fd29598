"""Records of requests: what is told of each, at its end and while it runs, and of all together.

Owned by the pump thread. A request that is over leaves a record with the tables of every instrument
and a signature; a long one is signed every second. Instruments are asked under the guard, each at a
site of its own: one that fails is disarmed alone. Whether a request is a canary is proven here.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np

from sidecar.config import TapConfig
from sidecar.tap import signature
from sidecar.tap.guard import Guard
from sidecar.tap.instrument import Instrument, Instruments, site_of
from sidecar.tap.ledger import Ledger
from sidecar.tap.roster import Entry, Roster
from sidecar.tap.tally import Tally
from sidecar.wire import canary
from sidecar.wire.frame import (
    MAX_BYTES,
    MAX_TABLES,
    Coverage,
    Request,
    Requests,
    Signature,
    Signatures,
    Table,
    Totals,
)

SIGNATURE_NS: Final = 900_000_000
MAX_RUNNING: Final = 32  # long requests signed in one flush: some milliseconds of the pump's time


class Ended(NamedTuple):
    """A request that is over, the slot it held, and what was known of it."""

    req_id: str
    slot: int
    entry: Entry
    is_ready: bool = True


class Records:
    """Requests that ended since the last flush, and those that go on.

    layer_ids: global ids of the layers in `ledger`; with none, another rank tells of the requests.
    """

    def __init__(
        self,
        config: TapConfig,
        layer_ids: list[int],
        ledger: Ledger,
        roster: Roster,
        instruments: Instruments,
        guard: Guard,
    ) -> None:
        self._config = config
        self._canary_key = config.canary_key()
        self._layer_ids = layer_ids
        self._ledger = ledger
        self._roster = roster
        self._instruments = instruments
        self._guard = guard
        self._census = Tally("requests", [roster.adapters])
        self._finished: list[Request] = []
        self._signatures: list[Signature] = []
        self._signed_ns: dict[int, int] = {}

    def end(self, ended: Ended) -> None:
        """Close the account of a request, in every instrument."""
        slot, entry = ended.slot, ended.entry
        num_generated = self._ledger.num_generated(slot)
        request = self._ledger.finish(ended.req_id, slot, is_out=entry.is_out)
        try:
            if request is not None and self._layer_ids and not entry.is_out:
                self._count(entry)
                self._complete(request, slot, entry)
                if self._config.signatures:
                    signed = self._sign(request, slot, entry, num_generated, is_final=True)
                    self._signatures.append(signed)
                if self._config.requests:
                    self._finished.append(request)
        finally:
            self._signed_ns.pop(slot, None)
            for instrument in self._instruments.all:
                self._guard.run_aside(site_of(instrument), instrument.clear, slot)

    def _count(self, entry: Entry) -> None:
        adapter = np.array([self._roster.adapters.index(entry.adapter)])
        self._census.add(np.zeros(1, np.int64), adapter, np.zeros((1, 0)))

    def _complete(self, request: Request, slot: int, entry: Entry) -> None:
        request.adapter = entry.adapter
        request.preemptions = entry.preemptions
        for instrument in self._instruments.all:
            request.tables += self._tables(instrument, lambda i: i.of_request(slot))

    def _tables(
        self, instrument: Instrument, read: Callable[[Instrument], Iterable[Table]]
    ) -> list[Table]:
        return self._guard.run_aside(site_of(instrument), lambda: list(read(instrument))) or []

    def _sign(
        self, request: Request, slot: int, entry: Entry, num_generated: int, *, is_final: bool
    ) -> Signature:
        kit = self._instruments
        sketches = None if kit.sketches is None else kit.sketches(slot)
        return Signature(
            request.id,
            request.end_ns,
            is_final,
            request.num_prompt_tokens,
            num_generated,
            request.adapter,
            request.preemptions,
            signature.values(kit.layout, self._layer_ids, request, sketches)
            .astype("<f4", copy=False)
            .tobytes(),
            entry.route,
            canary.proven(entry.tag, self._canary_key, entry.entered_ns // 1_000_000),
            _num_unobserved(request.coverage),
        )

    def _sign_running(self) -> None:
        """Signatures of requests that have run for another second, the longest unsigned first."""
        now = time.time_ns()
        running = self._ledger.running_since(now - SIGNATURE_NS)
        due = [(self._signed_ns.get(slot, 0), slot, req_id) for slot, req_id in running]
        due = [each for each in due if each[0] <= now - SIGNATURE_NS]
        for _, slot, req_id in sorted(due)[:MAX_RUNNING]:
            request = self._ledger.peek(req_id, slot)
            # One that the roster knows no more has ended: its last signature is on its way.
            if request is not None and req_id in self._roster:
                self._signed_ns[slot] = now
                entry = self._roster.get(req_id)
                self._complete(request, slot, entry)
                num_generated = self._ledger.num_generated(slot)
                signed = self._sign(request, slot, entry, num_generated, is_final=False)
                self._signatures.append(signed)

    def bodies(self) -> Iterator[Totals | Requests | Signatures]:
        """What to send of the requests and the instruments since the last call."""
        if self._layer_ids:
            yield Totals([self._census.table()])
        yield from self._totals()
        if not self._layer_ids:
            return
        finished, self._finished = self._finished, []
        for start in range(0, len(finished), step := self._requests_per_frame(finished)):
            yield Requests(self._layer_ids, finished[start : start + step])
        if self._config.signatures:
            self._sign_running()
        signed, self._signatures = self._signatures, []
        for start in range(0, len(signed), step := self._signatures_per_frame(signed)):
            yield Signatures(self._instruments.layout, signed[start : start + step])

    def _totals(self) -> Iterator[Totals]:
        tables: list[Table] = []
        size = 0
        for instrument in self._instruments.all:
            for table in self._tables(instrument, lambda i: i.totals()):
                size += _num_bytes(table)
                if tables and (size > MAX_BYTES // 2 or len(tables) == MAX_TABLES):
                    yield Totals(tables)
                    tables, size = [], _num_bytes(table)
                tables.append(table)
        if tables:
            yield Totals(tables)

    def _requests_per_frame(self, finished: list[Request]) -> int:
        # sums, extremes and counts of one request; see frame.Moments.
        moments = 4 * len(self._layer_ids) * (72 + 24 + 8) + 1024
        tables = max((sum(map(_num_bytes, each.tables)) for each in finished), default=0)
        return max(1, MAX_BYTES // 2 // (moments + tables))

    def _signatures_per_frame(self, signed: list[Signature]) -> int:
        size = len(signed[0].values) + 1024 if signed else 1
        return max(1, MAX_BYTES // 2 // size)


def _num_unobserved(coverage: Coverage) -> int:
    return coverage.prefix_cached + coverage.lost + coverage.shed


def _num_bytes(table: Table) -> int:
    labels = sum(len(label) + 2 for axis in table.axes for label in axis)
    return len(table.count) + len(table.sums) + len(table.extremes) + len(table.last) + labels
