"""What one rank of a model of 80 layers with everything on has to tell, second by second.

Cheap, so that the senders leave the machine to whom they send: numbers are drawn once and then
only added up. Totals grow as a tap's do; ids are new for ever, and the same on all ranks, as under
tensor parallelism.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np

from sidecar.wire.frame import (
    Arrays,
    Body,
    Cells,
    Coverage,
    Identity,
    Layers,
    Requests,
    Serving,
    Signatures,
    Status,
    Table,
    Totals,
)
from sidecar.wire.scan import Scan
from sidecar.wire.synthetic import SyntheticEngine

NUM_LAYERS: Final = 80
NUM_HEADS: Final = 8  # of 64, on each of eight ranks
SCAN_EVERY: Final = 10  # seconds; of rank 0
IDENTITY: Final = Identity(model_name="synthetic", num_layers=NUM_LAYERS, hidden_size=8192)
_NUM_DRAWN: Final = 16
_ROWS: Final = (1, 7, 0, 8)


class Engine:
    """One rank."""

    def __init__(self, seed: int) -> None:
        self._made = made = SyntheticEngine(NUM_LAYERS, seed, num_heads=NUM_HEADS)
        steps = [made.step(_ROWS) for _ in range(_NUM_DRAWN + 1)]
        self._residual = _Residual(steps)
        told = [made.tables(1).tables for _ in range(_NUM_DRAWN + 1)]
        self._tables = [_Growing(each) for each in zip(*told, strict=True)]
        self._requests = [made.requests(1) for _ in range(_NUM_DRAWN)]
        self._scan = made.scan()

    def bodies(self, second: int, now_ns: int) -> Iterator[Body]:
        """What its tap sends at the end of `second`: five frames, and now and then a scan."""
        request_id, turn = f"cmpl-{second}-0-0badcafe", second % _NUM_DRAWN
        yield self.status()
        yield self._residual.next(second)
        yield Totals([each.next(second) for each in self._tables])
        yield self._finished(request_id, turn, now_ns)
        yield self._signed(request_id, now_ns)

    def status(self) -> Status:
        """A tap that lives."""
        return msgspec.structs.replace(self._made.status(), identity=IDENTITY)

    def scan(self, second: int) -> Scan:
        """A scan of the request of that second."""
        return msgspec.structs.replace(self._scan, id=f"cmpl-{second}-0-0badcafe")

    def serving(self, second: int, now_ns: int) -> Serving:
        """What the front end saw of the request of that second."""
        self._made.num_requests = second
        return self._made.serving(now_ns)

    def _finished(self, request_id: str, turn: int, now_ns: int) -> Requests:
        body = self._requests[turn]
        (one,) = body.requests
        end = {"id": request_id, "start_ns": now_ns - 10**9, "end_ns": now_ns}
        return Requests(body.layers, [msgspec.structs.replace(one, **end)])

    def _signed(self, request_id: str, now_ns: int) -> Signatures:
        body = self._made.signatures(1)  # drawn anew: judges would page at sixteen over and over
        (one,) = body.signatures
        return Signatures(body.layout, [msgspec.structs.replace(one, id=request_id, t_ns=now_ns)])


class _Residual:
    """The layers' running totals: those drawn, over and over."""

    def __init__(self, drawn: Sequence[Layers]) -> None:
        arrays = [Arrays.unpack(each.moments, NUM_LAYERS) for each in drawn]
        self._ids = drawn[0].layers
        pairs = list(itertools.pairwise(arrays))
        self._counts = [after.count - before.count for before, after in pairs]
        self._sums = [after.sums - before.sums for before, after in pairs]
        self._extremes = [after.extremes for _, after in pairs]
        self._total = Arrays.zeros(NUM_LAYERS)

    def next(self, second: int) -> Layers:
        turn, total = second % _NUM_DRAWN, self._total
        total.count[:] += self._counts[turn]
        total.sums[:] += self._sums[turn]
        total.extremes[:] = self._extremes[turn]
        observed = Coverage([rows * second for rows in _ROWS])
        return Layers(self._ids, second, second, observed, total.pack())


class _Growing:
    """Running totals of one table, likewise."""

    def __init__(self, drawn: Sequence[Table]) -> None:
        cells = [Cells.unpack(each) for each in drawn]
        self._table = drawn[0]
        pairs = list(itertools.pairwise(cells))
        self._counts = [after.count - before.count for before, after in pairs]
        self._sums = [after.sums - before.sums for before, after in pairs]
        self._extremes = [table.extremes for table in drawn[1:]]
        self._count = np.zeros_like(self._counts[0])
        self._sum = np.zeros_like(self._sums[0])

    def next(self, second: int) -> Table:
        turn, told = second % _NUM_DRAWN, self._table
        self._count += self._counts[turn]
        self._sum += self._sums[turn]
        extremes = self._extremes[turn]
        return Table(told.group, told.axes, self._count.tobytes(), self._sum.tobytes(), extremes)
