"""Groups of entries that are judged together, and how they vary together within a stratum.

A group is what a request has of one phase and layer (4 to 9 signals), or one sketch. Co-moments
add up like moments (Chan et al. 1979), over the rows in which the whole group was measured.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift.arrays import Pack, unpacked
from sidecar.wire.signature import Layout, entries

Floats = NDArray[np.float64]

SHRINKAGE: Final = 0.1  # of a correlation towards independence


class Group(NamedTuple):
    """Entries that belong together.

    name: such as `decode/l3` or `sketch/l3/last_prompt`.
    layer: global id.
    places: [d] where they stand in a signature's values (not among the streams).
    """

    name: str
    layer: int
    places: tuple[int, ...]


class Related(NamedTuple):
    """How a group varies: for T = z' rho^-1 z with z = (x - mean[g]) / sd[g] in stratum g.

    mean, sd: [G, d]; NaN where a stratum has fewer than two whole rows; sd is 0 for a constant.
    rho: [d, d], 0.9 of the correlation within strata + 0.1 of the identity; never singular.
    num_rows: [G] whole rows.
    """

    group: Group
    mean: Floats
    sd: Floats
    rho: Floats
    num_rows: NDArray[np.int64]


def groups_of(layout: Layout) -> tuple[Group, ...]:
    """The groups of a layout, in order of name; the same on every machine."""
    places: dict[tuple[str, int], list[int]] = {}
    for place, name in enumerate(entries(layout)):
        found = _group_of(name)
        if found is not None:
            places.setdefault(found, []).append(place)
    return tuple(Group(name, layer, tuple(at)) for (name, layer), at in places.items())


class CoMoments:
    """A fold of rows [m, d] of one group; rows that were not measured whole are left out."""

    __slots__ = ("c", "n", "total")

    def __init__(self, size: int) -> None:
        self.n = 0
        self.total: Floats = np.zeros(size)
        self.c: Floats = np.zeros((size, size))

    def update(self, item: Floats) -> None:
        """Take rows [m, d]."""
        rows = item[np.isfinite(item).all(1)]
        batch = type(self)(len(self.total))
        batch.n = len(rows)
        batch.total = rows.sum(0)
        deviations = rows - batch.total / max(batch.n, 1)
        batch.c = deviations.T @ deviations
        self.merge(batch)

    def get(self) -> Self:
        """A copy, which later updates leave alone."""
        copy = type(self)(len(self.total))
        copy.merge(self)
        return copy

    def merge(self, other: Self) -> None:
        """Take everything that `other` took."""
        both = self.n + other.n
        delta = other.total / max(other.n, 1) - self.total / max(self.n, 1)
        weight = self.n * other.n / max(both, 1)
        self.c = self.c + other.c + np.outer(delta, delta) * weight
        self.total = self.total + other.total
        self.n = both


def related(group: Group, strata: Sequence[CoMoments]) -> Related:
    """What `strata` [G] say of `group`; the correlation is pooled within strata."""
    size = len(group.places)
    mean, sd = np.full((len(strata), size), np.nan), np.full((len(strata), size), np.nan)
    pooled, weight = np.zeros((size, size)), 0
    for g, moments in enumerate(strata):
        if moments.n > 1:
            mean[g] = moments.total / moments.n
            sd[g] = np.sqrt(np.diag(moments.c) / (moments.n - 1))
            pooled += _correlation(moments.c) * moments.n
            weight += moments.n
    correlation = pooled / weight if weight else np.eye(size)
    rho = (1 - SHRINKAGE) * correlation + SHRINKAGE * np.eye(size)
    return Related(group, mean, sd, rho, np.array([each.n for each in strata], np.int64))


def comoments_to_plain(strata: Iterable[Sequence[CoMoments]], pack: Pack) -> list[Any]:
    """Co-moments [G][groups] as a msgpack-able list, one map per group."""
    return [
        {
            "n": pack(np.array([each.n for each in column], np.int64)),
            "total": pack(np.stack([each.total for each in column])),
            "c": pack(np.stack([each.c for each in column])),
        }
        for column in zip(*strata, strict=True)
    ]


def comoments_from_plain(
    plain: Sequence[Mapping[str, Any]], groups: Sequence[Group], num_strata: int
) -> list[list[CoMoments]]:
    """What `comoments_to_plain` wrote; StateError when it is not of these groups and strata."""
    columns = []
    for group, each in zip(groups, plain, strict=True):
        size = len(group.places)
        n = unpacked(each["n"], "<i8", (num_strata,))
        total = unpacked(each["total"], "<f8", (num_strata, size))
        c = unpacked(each["c"], "<f8", (num_strata, size, size))
        columns.append([_comoments(*parts) for parts in zip(n, total, c, strict=True)])
    return [[column[g] for column in columns] for g in range(num_strata)]


def _comoments(n: int, total: Floats, c: Floats) -> CoMoments:
    moments = CoMoments(len(total))
    moments.n, moments.total, moments.c = int(n), total, c
    return moments


def _correlation(c: Floats) -> Floats:
    """[d, d]; a constant entry is related to nothing."""
    sd = np.sqrt(np.diag(c))
    scale = np.outer(sd, sd)
    correlation = np.divide(c, scale, out=np.zeros_like(c), where=scale > 0)
    np.fill_diagonal(correlation, 1.0)
    return correlation


def _group_of(entry: str) -> tuple[str, int] | None:
    kind, *parts = entry.split("/")
    if kind in ("residual", "attention", "router"):
        phase, layer = parts[0], parts[1]
        return f"{phase}/{layer}", int(layer.removeprefix("l"))
    if kind == "sketch":
        return f"sketch/{parts[0]}/{parts[1]}", int(parts[0].removeprefix("l"))
    return None
