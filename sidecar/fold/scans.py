"""The latest scans: token rows of the requests that the operator asked for, put together.

Guarantees: at most `MAX_SCANS` scans and `MAX_BYTES` bytes, whatever comes: those unheard the
longest go first; of one scan at most `scan.MAX_ROWS` rows and `MAX_SCAN_BYTES` bytes, and rows that
do not fit, or were told before, are counted as left out. A request that is told anew begins anew.
"""

from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from sidecar.fold.requests import client_ids
from sidecar.wire.scan import CONFIDENCE, MAX_ROWS, Rows, Scan

MAX_SCANS: Final = 128
MAX_BYTES: Final = 64 << 20
MAX_SCAN_BYTES: Final = 4 << 20


class Columns(NamedTuple):
    """The rows of a scan by rising position: a column of the picture each.

    positions: [R]. values: [R, L, S]. nonfinite: [R, L]. confidence: [R, C] of the token that the
    row led to, NaN where there was none or it was not measured; None where that is so of all.
    """

    positions: NDArray[np.uint32]
    values: NDArray[np.float32]
    nonfinite: NDArray[np.uint32]
    confidence: NDArray[np.float32] | None


class Scanned(NamedTuple):
    """One scanned request as one engine rank told it; `t_ns` is when its last part was sent."""

    source: str
    t_ns: int
    scan: Scan

    @property
    def num_columns(self) -> int:
        """Rows that were told."""
        return len(self.scan.positions) // 4

    @property
    def num_left_out(self) -> int:
        """Rows that the request has and that were not told: cached, lost, shed or beyond bounds."""
        return max(0, self.scan.num_rows - self.num_columns)

    def columns(self) -> Columns:
        """Its rows, in order."""
        rows = Rows.unpack(self.scan)
        order = np.argsort(rows.positions)
        positions = rows.positions[order]
        return Columns(
            positions, rows.values[order], rows.nonfinite[order], _confidence(positions, rows)
        )


class RecentScans:
    """A bounded queue of scans; the parts of one request join."""

    def __init__(self, max_scans: int = MAX_SCANS, max_bytes: int = MAX_BYTES) -> None:
        self._max_scans = max_scans
        self._max_bytes = max_bytes
        self._held: dict[tuple[str, str], Scanned] = {}  # the latest heard stands last
        self._num_bytes = 0

    def update(self, source: str, t_ns: int, part: Scan) -> None:
        """Take one part, sent at `t_ns`."""
        before = self._forget((source, part.id))
        if before is None or not _goes_on(before, part):
            before = _without_rows(part)
        scan = _joined(before, part)
        self._held[source, part.id] = Scanned(source, t_ns, scan)
        self._num_bytes += _num_bytes(scan)
        while len(self._held) > self._max_scans or self._num_bytes > self._max_bytes:
            self._forget(next(iter(self._held)))

    def get(self) -> list[Scanned]:
        """All that are held, latest first."""
        return list(reversed(self._held.values()))

    def find(self, request_id: str) -> list[Scanned]:
        """Scans with this engine id or client id (several: ranks, or children), latest first."""
        return [
            each for each in self.get() if request_id in (each.scan.id, *client_ids(each.scan.id))
        ]

    def _forget(self, key: tuple[str, str]) -> Scan | None:
        held = self._held.pop(key, None)
        if held is None:
            return None
        self._num_bytes -= _num_bytes(held.scan)
        return held.scan


def _goes_on(before: Scan, part: Scan) -> bool:
    is_same = before.layers == part.layers and before.num_prompt_tokens == part.num_prompt_tokens
    return is_same and not before.is_final and before.num_rows <= part.num_rows


def _without_rows(part: Scan) -> Scan:
    return Scan(part.id, part.layers, part.num_prompt_tokens, part.num_rows, part.is_final)


def _joined(before: Scan, part: Scan) -> Scan:
    """Both in one: arrays by rows join end to end. A part that does not fit adds no rows."""
    if not _fits(before, part):
        part = _without_rows(part)
    return msgspec.structs.replace(
        part,
        positions=before.positions + part.positions,
        values=before.values + part.values,
        nonfinite=_padded(before) + _padded(part) if before.nonfinite or part.nonfinite else b"",
        token_positions=before.token_positions + part.token_positions,
        confidence=before.confidence + part.confidence,
    )


def _fits(before: Scan, part: Scan) -> bool:
    if _num_bytes(before) + _num_bytes(part) > MAX_SCAN_BYTES:
        return False
    pairs = (
        (before.positions, part.positions),
        (before.token_positions, part.token_positions),
    )
    return all(_are_new(np.frombuffer(a + b, "<u4")) for a, b in pairs)


def _are_new(positions: NDArray[np.uint32]) -> bool:
    return len(positions) <= MAX_ROWS and len(np.unique(positions)) == len(positions)


def _padded(scan: Scan) -> bytes:
    return scan.nonfinite or bytes(len(scan.positions) * len(scan.layers))


def _confidence(positions: NDArray[np.uint32], rows: Rows) -> NDArray[np.float32] | None:
    known = np.isin(rows.token_positions, positions)
    if not known.any():
        return None
    found = np.full((len(positions), len(CONFIDENCE)), np.nan, np.float32)
    found[np.searchsorted(positions, rows.token_positions[known])] = rows.confidence[known]
    return found


def _num_bytes(scan: Scan) -> int:
    arrays = (scan.positions, scan.values, scan.nonfinite, scan.token_positions, scan.confidence)
    return sum(map(len, arrays)) + 8 * len(scan.layers)
