"""Additive statistics of one group of signals, per owner: what `wire.frame.Table` carries.

Pure numpy; owned by the pump thread. An owner is a request slot, or everything. Values come row by
row with the cell they belong to; a row with any non-finite value is left out whole.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sidecar.tap.rows import Ints
from sidecar.wire.fields import MAX_TEXT
from sidecar.wire.frame import NUM_EXTREMES, NUM_POWERS, Table
from sidecar.wire.signals import GROUPS, Transform

_TINY: Final = 1e-30  # the logarithm of less is that of this: finite
_NEARLY_ONE: Final = 1e-7  # float32 resolution of a probability


class Tally:
    """Counts, sums and extremes of a group over its cells, for `num_owners` owners; grows.

    group: key of `GROUPS`. axes: labels along each of its axes; the cells are their product.
    """

    def __init__(self, group: str, axes: Sequence[Sequence[str]], num_owners: int = 1) -> None:
        self.group = GROUPS[group]
        self._axes = [[label[:MAX_TEXT] for label in labels] for labels in axes]
        self.shape = tuple(len(labels) for labels in axes)
        self._allocate(num_owners)

    def add(self, owners: Ints, cells: Ints, values: NDArray[np.floating]) -> None:
        """Add rows: owners [N], flat cell numbers [N], values [N, S] in signal order."""
        self._reserve(owners)
        finite = np.isfinite(values).all(-1)
        at = (owners[finite], cells[finite])
        v = values[finite].astype(np.float64)
        phi = transformed(self.group.id, v)
        np.add.at(self.count, at, np.uint64(1))
        np.add.at(self.sums, at, np.stack([v, phi, phi * phi], -1))
        np.maximum.at(self._bounds, at, np.stack([-v, v], -1).astype(np.float32))
        self.last[at] = v  # of several rows of one cell, the last

    def add_sums(
        self,
        owners: Ints,
        cells: Ints,
        count: NDArray[np.integer],
        sums: NDArray[np.float64],
        bounds: NDArray[np.float32],
    ) -> None:
        """Add rows that were added up already.

        count: [N] rows. sums: [N, S, 3] as on the wire. bounds: [N, S, 2], largest -v, largest v.
        """
        self._reserve(owners)
        at = (owners, cells)
        np.add.at(self.count, at, count.astype(np.uint64))
        np.add.at(self.sums, at, sums)
        np.maximum.at(self._bounds, at, bounds)

    def table(self, owner: int = 0, *, last: bool = False) -> Table:
        """Statistics of one owner for the wire; with the latest values when `last`."""
        return Table(
            self.group.id,
            self._axes,
            self.count[owner].astype("<u8", copy=False).tobytes(),
            self.sums[owner].astype("<f8", copy=False).tobytes(),
            self._extremes(owner).astype("<f4", copy=False).tobytes(),
            self.last[owner].astype("<f4", copy=False).tobytes() if last else b"",
        )

    def has_rows(self, owner: int) -> bool:
        """Whether anything was added for this owner."""
        return owner < len(self.count) and bool(self.count[owner].any())

    def forget_extremes(self, owner: int = 0) -> None:
        """Begin the extremes anew: on the wire those of totals cover one frame."""
        self._bounds[owner] = -np.inf

    def clear(self, owner: int) -> None:
        """Empty the account of one owner for the next."""
        if owner < len(self.count):
            self.count[owner] = 0
            self.sums[owner] = 0.0
            self._bounds[owner] = -np.inf
            self.last[owner] = np.nan

    def _extremes(self, owner: int) -> NDArray[np.float32]:
        low, high = -self._bounds[owner, ..., 0], self._bounds[owner, ..., 1]
        extremes = np.stack([low, high], -1)
        extremes[~np.isfinite(extremes)] = np.nan
        return extremes

    def _reserve(self, owners: Ints) -> None:
        if len(owners) and (most := int(owners.max())) >= len(self.count):
            known = self._tables()
            self._allocate(max(most + 1, 2 * len(self.count)))
            for new, old in zip(self._tables(), known, strict=True):
                new[: len(old)] = old

    def _tables(self) -> list[NDArray[Any]]:
        return [self.count, self.sums, self._bounds, self.last]

    def _allocate(self, num_owners: int) -> None:
        num_cells, num_signals = int(np.prod(self.shape)), len(self.group.signals)
        shape = (num_owners, num_cells)
        self.count = np.zeros(shape, np.uint64)
        self.sums = np.zeros((*shape, num_signals, NUM_POWERS))
        self._bounds = np.full((*shape, num_signals, NUM_EXTREMES), -np.inf, np.float32)
        self.last = np.full((*shape, num_signals), np.nan, np.float32)


def transformed(group: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Phi of each signal of `group`, values [..., S]; finite for every finite value."""
    phi = values.copy()
    for column, signal in enumerate(GROUPS[group].signals):
        if signal.transform is Transform.LOG:
            phi[..., column] = np.log(np.maximum(values[..., column], _TINY))
        elif signal.transform is Transform.LOGIT:
            p = np.clip(values[..., column], _NEARLY_ONE, 1.0 - _NEARLY_ONE)
            phi[..., column] = np.log(p) - np.log1p(-p)
    return phi
