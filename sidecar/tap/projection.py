"""Projections of the residual stream: sketches and probes, in one product per layer.

In the graph, a layer that is read adds one product [T, H] x [H, K] in float32 to its forward, into
a static buffer. After the step the rows are reduced by group on the device; no row and no direction
leaves it. What the pump makes of the groups is in `sketch` and `scores`.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.tap.aside import Aside, Place
from sidecar.tap.pooling import Part
from sidecar.tap.probe_file import Probe
from sidecar.tap.ring import NUM_LOANS, Loan, Ring, Upload
from sidecar.tap.rows import Plan
from sidecar.tap.scores import Scores
from sidecar.tap.sites import Site
from sidecar.tap.sketch import Sketches, Sketching
from sidecar.tap.stream import Reader
from sidecar.wire.frame import Table

DIRECTIONS: Final = "_sidecar_directions"  # buffers of a layer that is read: [K, H]
PROJECTED: Final = "_sidecar_projected"  # and [K, capacity], its view of the static rows

_CHUNK_CELLS: Final = 1 << 20  # rows times columns at a time: some 30 MB of scratch space
# One more than the slab has: it gives its own back a moment earlier, so ours never run out.
_NUM_LOANS: Final = NUM_LOANS + 1


def record(projected: torch.Tensor, directions: torch.Tensor, after: torch.Tensor) -> None:
    """Write the product of each row of `after` [T, H] with `directions` [K, H]; traced.

    projected: [K, capacity]. Does nothing where the widths differ: nothing may raise in a trace.
    """
    if after.shape[-1] == directions.shape[-1]:
        product = torch.nn.functional.linear(after.float(), directions)
        projected[:, : after.shape[0]] = product.T


class Index(NamedTuple):
    """Which rows belong together, on the device.

    groups, distances: [T] group of each row, and how many rows of it follow.
    firsts, lasts: [G] first and last row of each group.
    """

    groups: torch.Tensor
    distances: torch.Tensor
    firsts: torch.Tensor
    lasts: torch.Tensor

    @classmethod
    def of(cls, numbers: torch.Tensor, num_rows: int, num_groups: int) -> "Index":
        """All four from one tensor, in which they follow each other."""
        # Slices: Tensor.split takes ten times as long.
        groups, rest = numbers[:num_rows], numbers[num_rows:]
        distances, rest = rest[:num_rows], rest[num_rows:]
        return cls(groups, distances, rest[:num_groups], rest[num_groups:])


def reduce_rows(
    rows: torch.Tensor,
    index: Index,
    alphas: torch.Tensor | None,
    sums: torch.Tensor,
    parts: torch.Tensor,
) -> None:
    """Reduce the rows of each group to the parts that pooling needs.

    rows: [T, K] float32. alphas: [K] float64, 0 where the plain sum is wanted; None: everywhere.
    sums: [G + 1, K] float64, scratch. parts: [G + 1, len(Part), K] float32, overwritten; the last
    group is that of rows not to be counted. Goes by a few columns at a time, because the engine's
    memory plan knows nothing of our scratch space.
    """
    num_rows, num_columns = rows.shape
    step = max(1, _CHUNK_CELLS // max(1, num_rows))
    for start in range(0, num_columns, step):
        some = slice(start, start + step)
        mine = None if alphas is None else alphas[some]
        _reduce_columns(rows[:, some], index, mine, sums[:, some], parts[..., some])


def _reduce_columns(
    rows: torch.Tensor,
    index: Index,
    alphas: torch.Tensor | None,
    sums: torch.Tensor,
    parts: torch.Tensor,
) -> None:
    terms = rows.double()
    if alphas is not None:
        shares = torch.where(alphas > 0, alphas, 1.0)
        terms *= shares * (1.0 - alphas) ** index.distances.unsqueeze(-1)
    parts[:, Part.SUM] = sums.zero_().index_add_(0, index.groups, terms)
    places = index.groups.unsqueeze(-1).expand_as(rows)
    parts[:, Part.MAX].fill_(-torch.inf).scatter_reduce_(0, places, rows, "amax")
    num_groups = len(index.firsts)
    parts[:num_groups, Part.FIRST] = rows.index_select(0, index.firsts)
    parts[:num_groups, Part.LAST] = rows.index_select(0, index.lasts)


class Projection:
    """The row instrument of sketches and probes.

    probes: those at layers of this rank. capacity: more than the token rows of any forward pass.
    max_groups: most row groups of one. num_slots: request slots at the start; grows.
    """

    def __init__(
        self,
        sketching: Sketching,
        probes: list[Probe],
        hidden_size: int,
        capacity: int,
        max_groups: int,
        num_slots: int,
        device: torch.device,
    ) -> None:
        layers = np.array(
            [*np.repeat(sketching.layers, sketching.size), *(probe.layer for probe in probes)],
            np.int64,
        )
        order = np.argsort(layers, kind="stable")  # columns of one layer stand together
        self._layers = layers[order]
        self._directions = _directions(sketching, probes, hidden_size)[order]
        num_columns, num_sketched = len(order), len(order) - len(probes)
        places = np.argsort(order)
        self.sketches = Sketches(sketching, places[:num_sketched], num_slots)
        self.scores = Scores(probes, places[num_sketched:], num_slots)
        self.rows = torch.zeros(num_columns, capacity, device=device)
        alphas = np.array([0.0] * num_sketched + [probe.alpha for probe in probes])[order]
        # Weights cost more than all the rest: without ema there are none.
        self._alphas = torch.from_numpy(alphas).to(device) if alphas.any() else None
        self._max_groups = max_groups
        self._sums = torch.zeros(max_groups + 1, num_columns, dtype=torch.float64, device=device)
        self._parts = torch.zeros(max_groups + 1, len(Part), num_columns, device=device)
        self._upload = Upload(2 * (capacity + max_groups), device, _NUM_LOANS)
        self._ring = Ring({"parts": self._parts}, device, _NUM_LOANS)
        self._aside = Aside(self.rows)

    @property
    def layers(self) -> list[int]:
        """Global ids of the layers that are read."""
        return sorted(set(self._layers.tolist()))

    def attach(self, site: Site) -> Reader:
        """Give the layer its buffers; the result is for `stream.attach_probe`."""
        module = site.module
        start, end = np.searchsorted(self._layers, [site.layer, site.layer + 1]).tolist()
        directions = torch.from_numpy(self._directions[start:end]).to(self.rows.device)
        # Buffers, so that the graph fetches them by attribute and CUDA graphs keep their address.
        module.register_buffer(DIRECTIONS, directions, persistent=False)
        module.register_buffer(PROJECTED, self.rows[start:end], persistent=False)

        def project(after: torch.Tensor) -> None:
            record(getattr(module, PROJECTED), getattr(module, DIRECTIONS), after)

        return project

    def keep(self, place: Place) -> bool:
        """Put the current rows aside. Step path."""
        self._aside.put(self.rows, place)
        return True

    def collect(self, plan: Plan, place: Place | None = None) -> Loan | None:
        """Start to reduce rows, those at `place` or else the current ones. Step path.

        None when there is no room.
        """
        if plan.num_groups > self._max_groups or len(plan.groups) > self.rows.shape[1]:
            return None
        loan = self._ring.take()
        if loan is None:
            return None
        try:
            num_groups, num_rows = plan.num_groups, len(plan.groups)
            uploaded = self._upload.put(np.concatenate(_index(plan)))
            index = Index.of(uploaded, num_rows, num_groups)
            sums, parts = self._sums[: num_groups + 1], self._parts[: num_groups + 1]
            rows = self.rows[:, :num_rows] if place is None else self._aside.rows(place)
            reduce_rows(rows.T, index, self._alphas, sums, parts)
            self._ring.send(loan, {"parts": parts[:num_groups]})
        except BaseException:
            self._ring.give_back(loan)
            raise
        return loan

    def account(self, pending: Loan, plan: Plan, kept: NDArray[np.bool_] | None) -> None:
        """Add up and free it. kept: [G] groups to count, when drafts were rejected."""
        try:
            parts = pending.read("parts", plan.num_groups)
            self.sketches.add(plan, parts, kept)
            self.scores.add(plan, parts, kept)
        finally:
            self._ring.give_back(pending)

    def totals(self) -> Iterable[Table]:
        """Running totals of the probes; extremes since the last call."""
        return self.scores.totals()

    def of_request(self, slot: int) -> Iterable[Table]:
        """The scores of the request in `slot` so far."""
        return self.scores.of_request(slot)

    def clear(self, slot: int) -> None:
        """The request in `slot` is over."""
        self.sketches.clear(slot)
        self.scores.clear(slot)


def detach(site: Site) -> None:
    """Take the buffers off a layer again."""
    delattr(site.module, DIRECTIONS)
    delattr(site.module, PROJECTED)


def _directions(sketching: Sketching, probes: list[Probe], hidden_size: int) -> NDArray[np.float32]:
    """[K, H], those of the sketches and then those of the probes."""
    return np.concatenate(
        [sketching.directions(hidden_size), *(probe.direction[None] for probe in probes)]
    )


def _index(plan: Plan) -> tuple[NDArray[np.int64], ...]:
    """Groups [T], distances [T], firsts [G] and lasts [G]; see `Index`."""
    rows = np.arange(len(plan.groups))
    lasts = np.zeros(plan.num_groups + 1, np.int64)
    lasts[plan.groups] = rows  # of several rows of one group the last is kept
    distances = lasts[plan.groups] - rows
    lasts = lasts[: plan.num_groups]
    return plan.groups, distances, lasts - plan.sizes + 1, lasts  # the rows of a group are adjacent
