"""Scans: the rows of chosen requests, kept apart instead of added up (docs/scan.md).

Step path: nothing but one comparison while nothing is scanned. Else the chosen rows are copied out
of the slab, which holds them anyway, by one gather; nothing of the compiled graph changes. Bounds:
`MAX_OPEN` requests at once, `ROWS_PER_STEP` rows in a step, `window` of each request, and
`MAX_HELD_BYTES` between two flushes; what does not fit is left out, and the receiver counts it,
being told how many rows each request has. Canaries are never chosen: they are not the traffic that
the operator asks about, and would be most of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.tap import probes
from sidecar.tap.orders import Wish
from sidecar.tap.ring import Loan, Ring, Upload
from sidecar.tap.roster import Roster
from sidecar.tap.rows import Batch, Ints, Plan
from sidecar.tap.slab import Slab
from sidecar.wire.fields import MAX_TEXT
from sidecar.wire.frame import MAX_BYTES
from sidecar.wire.scan import CONFIDENCE, Scan, num_bytes_of_row, window

SITE: Final = "Scanner"  # where its exceptions are counted
MAX_OPEN: Final = 8
ROWS_PER_STEP: Final = 512  # the end of one prompt
MAX_HELD_BYTES: Final = 16 << 20
_NUM_COLUMNS: Final = probes.NONFINITE + 1
_HEADROOM: Final = 2  # a frame is filled to half of what is read


class _Rows(NamedTuple):
    """Rows [R] of one request: positions, and what was measured at each, [R, ...]."""

    positions: Ints
    values: NDArray[np.float32]

    def cut(self, some: slice) -> "_Rows":
        """Some of the rows."""
        return _Rows(self.positions[some], self.values[some])


@dataclass(eq=False)
class Opened:
    """A request that is scanned; what waits for the next flush is in `parts` and `tokens`.

    parts: columns [R, L, _NUM_COLUMNS] as in the slab. tokens: signals [R, C] of the tokens that
    rows led to.
    """

    req_id: str
    slot: int
    num_prompt_tokens: int
    num_rows: int = 0
    is_final: bool = False
    parts: list[_Rows] = field(default_factory=list)
    tokens: list[_Rows] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.window = window(self.num_prompt_tokens)


class Picked(NamedTuple):
    """Rows of one step on their way to the host.

    loan: None when there is no row. scans: the requests; owners: [R] places in `scans`.
    positions, groups: [R] position in the request, and group in the plan.
    """

    loan: Loan | None
    scans: list[Opened]
    owners: Ints
    positions: Ints
    groups: Ints

    @property
    def is_ready(self) -> bool:
        """Whether the values are here."""
        return self.loan is None or self.loan.is_ready


class Scanner:
    """Chooses requests as the operator wishes, and tells their rows.

    layer_ids: global ids of the layers in `slab`. is_on: False chooses none and holds no memory.
    """

    def __init__(self, layer_ids: list[int], slab: Slab, *, is_on: bool = True) -> None:
        self._layer_ids = layer_ids
        self._slab = slab
        self._is_on = is_on
        # Of the engine's thread: what is scanned, by slot, and how many may still be chosen.
        self._wish = Wish()
        self._num_left = 0
        self._open: dict[int, Opened] = {}
        # Of the pump's: the same as far as its steps have been added up, and what is over.
        self._told: dict[int, Opened] = {}
        self._ended: list[Opened] = []
        self._num_held = 0
        self._no_columns = np.zeros((0, len(layer_ids), _NUM_COLUMNS), np.float32)
        if is_on:
            self._allocate()

    def is_busy(self, wish: Wish | None) -> bool:
        """Whether a step has to be looked at. Step path."""
        if wish is not None and wish != self._wish:
            self._wish, self._num_left = wish, wish.num_requests
        return self._is_on and (bool(self._open) or (wish is not None and self._num_left > 0))

    def collect(self, batch: Batch, plan: Plan, wish: Wish | None, roster: Roster) -> Picked | None:
        """Start to copy the rows of scanned requests; None when the batch has none. Step path."""
        if wish is not None:
            self._choose(batch, plan, roster)
        rows, picked = self._pick(batch, plan)
        if not len(rows):
            return picked if picked.scans else None
        loan = self._ring.take()
        if loan is None:
            return None
        try:
            self._send(loan, rows)
        except BaseException:
            self._ring.give_back(loan)
            raise
        return picked._replace(loan=loan)

    def leave(self, slot: int) -> None:
        """The request in `slot` has ended. Step path."""
        self._open.pop(slot, None)

    def account(self, picked: Picked, kept: NDArray[np.bool_] | None) -> None:
        """Keep the rows for the next flush, and free the memory.

        kept: [G] groups to count, when drafts were rejected.
        """
        for scan in picked.scans:
            self._told[scan.slot] = scan
        if picked.loan is None:
            return
        try:
            columns = picked.loan.read("rows", len(picked.owners))
            counted = np.ones(len(picked.owners), bool) if kept is None else kept[picked.groups]
            for owner, scan in enumerate(picked.scans):
                mine = counted & (picked.owners == owner)
                # Picked by a mask, so it is a copy: the memory is lent to another step.
                self._keep(scan, picked.positions[mine], columns[mine])
        finally:
            self._ring.give_back(picked.loan)

    def hear(self, slots: Ints, positions: Ints, values: NDArray[np.floating]) -> None:
        """Signals [N, C] of tokens, and the slots and positions [N] of the rows they came from."""
        for slot, scan in self._told.items():
            inside = (positions >= scan.window.start) & (positions < scan.window.stop)
            mine = inside & (slots == slot)
            if mine.any() and self._num_held < MAX_HELD_BYTES:
                kept = _Rows(positions[mine], values[mine].astype(np.float32))
                scan.tokens.append(kept)
                self._num_held += kept.values.nbytes

    def end(self, slot: int, num_rows: int) -> None:
        """The request in `slot` is over; it had so many rows, told or not."""
        scan = self._told.pop(slot, None)
        if scan is not None:
            scan.is_final, scan.num_rows = True, num_rows
            self._ended.append(scan)

    def bodies(self, num_rows: Callable[[int], int]) -> list[Scan]:
        """What is new since the last call. num_rows: of the request in a slot, so far."""
        for scan in self._told.values():
            scan.num_rows = num_rows(scan.slot)
        ended, self._ended = self._ended, []
        told = [*ended, *self._told.values()]
        bodies = [part for scan in told for part in self._parts(scan)]
        self._num_held = 0
        return bodies

    @property
    def is_telling(self) -> bool:
        """Whether any request is scanned whose tokens should be heard."""
        return bool(self._told)

    def _allocate(self) -> None:
        device = self._slab.rows.device
        self._max_rows = min(ROWS_PER_STEP, self._slab.capacity)
        shape = (self._max_rows, len(self._layer_ids), _NUM_COLUMNS)
        self._ring = Ring({"rows": torch.zeros(shape, device=device)}, device)
        self._places = Upload(self._max_rows, device)

    def _choose(self, batch: Batch, plan: Plan, roster: Roster) -> None:
        for slot, req_id in plan.entered:
            if not self._num_left or len(self._open) >= MAX_OPEN:
                return
            if roster.get(req_id).tag:
                continue
            self._num_left -= 1
            prompt = int(batch.prompts[batch.req_ids.index(req_id)])
            self._open[slot] = Opened(req_id, slot, prompt)

    def _pick(self, batch: Batch, plan: Plan) -> tuple[Ints, Picked]:
        """Rows of the slab that are to be told, [R], and whose they are."""
        places = [p for p, slot in enumerate(plan.batch_slots.tolist()) if slot in self._open]
        scans = [self._open[int(plan.batch_slots[place])] for place in places]
        begins = np.cumsum(batch.counts) - batch.counts
        positions, rows, owners = [_NONE], [_NONE], [_NONE]
        for owner, (place, scan) in enumerate(zip(places, scans, strict=True)):
            inside = _inside(scan.window, int(batch.starts[place]), int(batch.counts[place]))
            positions.append(inside)
            rows.append(inside - batch.starts[place] + begins[place])
            owners.append(np.full(len(inside), owner, np.int64))
        at = np.concatenate(rows)
        if len(batch.real):
            at = np.flatnonzero(batch.real)[at]
        groups = plan.groups[at]
        # Rows that are computed again were told when they were computed first.
        new = np.flatnonzero(groups < plan.num_groups)[: self._max_rows]
        owner_of, position_of = np.concatenate(owners)[new], np.concatenate(positions)[new]
        return at[new], Picked(None, scans, owner_of, position_of, groups[new])

    def _send(self, loan: Loan, rows: Ints) -> None:
        target = self._ring.target(loan)["rows"][: len(rows)]
        columns = self._slab.rows[:, :_NUM_COLUMNS]
        gathered = columns.index_select(2, self._places.put(rows))
        target.copy_(gathered.permute(2, 0, 1))
        self._ring.send(loan, {"rows": target})

    def _keep(self, scan: Opened, positions: Ints, columns: NDArray[np.float32]) -> None:
        if len(positions) and self._num_held < MAX_HELD_BYTES:
            scan.parts.append(_Rows(positions, columns))
            self._num_held += columns.nbytes

    def _parts(self, scan: Opened) -> Iterator[Scan]:
        """Frames of what waits of one request; one at least, which says how far it has come."""
        parts = _joined(self._no_columns, scan.parts)
        tokens = _joined(_NO_TOKENS, scan.tokens)
        scan.parts, scan.tokens = [], []
        size = MAX_BYTES // _HEADROOM // num_bytes_of_row(len(self._layer_ids))
        num_frames = max(1, -(-max(len(parts.positions), len(tokens.positions)) // size))
        for k in range(num_frames):
            some = slice(k * size, (k + 1) * size)
            is_final = scan.is_final and k == num_frames - 1
            yield self._scan(scan, parts.cut(some), tokens.cut(some), is_final=is_final)

    def _scan(self, scan: Opened, part: _Rows, tokens: _Rows, *, is_final: bool) -> Scan:
        moments = torch.from_numpy(part.values)[..., : probes.NONFINITE].unbind(-1)
        log_rms, peak, influence = probes.row_signals(*moments)
        values = torch.stack([log_rms.exp(), peak, influence], -1).numpy()
        nonfinite = part.values[..., probes.NONFINITE]
        return Scan(
            scan.req_id[:MAX_TEXT],  # the client chose most of it
            self._layer_ids,
            scan.num_prompt_tokens,
            scan.num_rows,
            is_final,
            part.positions.astype("<u4").tobytes(),
            values.astype("<f4", copy=False).tobytes(),
            nonfinite.astype("<u4").tobytes() if nonfinite.any() else b"",
            tokens.positions.astype("<u4").tobytes(),
            tokens.values.astype("<f4", copy=False).tobytes(),
        )


def _inside(wanted: range, start: int, count: int) -> Ints:
    """Which of the positions from `start` on are wanted."""
    return np.arange(max(start, wanted.start), min(start + count, wanted.stop), dtype=np.int64)


def _joined(nothing: NDArray[np.float32], parts: Sequence[_Rows]) -> _Rows:
    """All parts end to end; `nothing` has the shape of no rows."""
    return _Rows(
        np.concatenate([_NONE, *(each.positions for each in parts)]),
        np.concatenate([nothing, *(each.values for each in parts)]),
    )


_NONE: Final[Ints] = np.zeros(0, np.int64)
_NO_TOKENS: Final = np.zeros((0, len(CONFIDENCE)), np.float32)
