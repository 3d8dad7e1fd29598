"""How a mixture of experts sends its rows: how sure the gate is, and the load of each expert.

In the graph a row's gate becomes two numbers and the ids of its experts, in buffers that are
allocated once. After the step they are added up by its plan: the numbers per request, phase and
layer, the ids per layer and expert. Rows that no group counts (padding, recomputed, opted out) are
in neither. What was not written since it was last added up is NaN and counts for nothing, so a gate
that is no longer measured falls silent and is never repeated.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sidecar.tap.aside import Aside, Place
from sidecar.tap.guard import Guard
from sidecar.tap.probes import CHUNK_CELLS
from sidecar.tap.ring import Loan, Ring, Upload
from sidecar.tap.rows import Plan
from sidecar.tap.tally import Tally
from sidecar.wire.frame import NUM_EXTREMES, NUM_POWERS, Table
from sidecar.wire.signals import GROUPS, Phase

SCORINGS: Final = ("softmax", "sigmoid")

VALUES: Final = "_sidecar_gate_values"  # buffers of a measured gate
EXPERTS: Final = "_sidecar_gate_experts"

_NUM_SIGNALS: Final = len(GROUPS["router"].signals)
_NUM_SUMS: Final = _NUM_SIGNALS * NUM_POWERS
_NO_EXPERT: Final = -1
_NUM_DIMS: Final = 2  # token rows by experts
_TINY: Final = 1e-30  # as in Tally: the logarithm of less is that of this


class Decision(NamedTuple):
    """What a gate made of the rows of one pass: logits [T, E], and ids [T, k] where known."""

    logits: Any
    chosen: Any = None


class Gate(NamedTuple):
    """The gate of one decoder layer, and where its decisions are seen.

    layer: global id. holder: the module that is given the buffers.
    owner, method: what is wrapped. read: the decision in its arguments and result.
    """

    layer: int
    holder: nn.Module
    owner: Any
    method: str
    read: Callable[[tuple[Any, ...], dict[str, Any], Any], Decision | None]


class Shape(NamedTuple):
    """What the gates of a model have in common: k of E experts, by scores of one kind."""

    num_experts: int
    num_chosen: int
    scoring: str


def gate_signals(logits: torch.Tensor, k: int, scoring: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Signals of every token row at one gate, and the k experts of its largest scores.

    logits: [T, E] of any float type. scoring: one of `SCORINGS`; sigmoid scores are made to sum
    to 1, so that g is a distribution either way. Returns [2, T] float32: the entropy
    -sum g log g / log E, and the margin g_(k) - g_(k+1), where 0 stands for the next that k = E
    has not; and the ids, [T, k].
    """
    num_experts = logits.shape[-1]
    scores = logits.float()
    if scoring == "sigmoid":
        # softmax(log s) is s / sum s, and does not underflow where every s does.
        scores = nn.functional.logsigmoid(scores)
    gates = scores.softmax(-1)
    entropy = torch.special.entr(gates).sum(-1) / math.log(num_experts)
    largest = scores.topk(min(k + 1, num_experts), -1).indices
    ranked = gates.gather(-1, largest)
    margin = ranked[:, k - 1] - ranked[:, k] if k < num_experts else ranked[:, k - 1]
    return torch.stack([entropy, margin]), largest[:, :k]


def attach_gate(
    gate: Gate, shape: Shape, values: torch.Tensor, experts: torch.Tensor, guard: Guard
) -> Callable[[], None]:
    """Measure `gate` into `values` [2, capacity] and `experts` [k, capacity]; returns the undo."""
    method = getattr(gate.owner, gate.method)
    holder, read = gate.holder, gate.read
    # Buffers, so that the graph fetches them by attribute and CUDA graphs keep their addresses.
    holder.register_buffer(VALUES, values, persistent=False)
    holder.register_buffer(EXPERTS, experts, persistent=False)

    def measured(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        try:
            decision = read(args, kwargs, result)
            if decision is not None and _fits(decision, shape):
                _record(getattr(holder, VALUES), getattr(holder, EXPERTS), decision, shape)
        except Exception as error:  # see guard: the guest never hurts the host
            guard.count("router", error)
        return result

    setattr(gate.owner, gate.method, measured)

    def detach() -> None:
        setattr(gate.owner, gate.method, method)
        delattr(holder, VALUES)
        delattr(holder, EXPERTS)

    return detach


def group_gates(
    values: torch.Tensor, groups: torch.Tensor, sums: torch.Tensor, bounds: torch.Tensor
) -> None:
    """Add up the rows of each group, and find their extremes, a few layers at a time.

    values: [L, 2, T] as in `gate_signals`; groups: [T] int64. Overwritten: sums [G, L, 2 * 3 + 1],
    of v, phi(v) and phi(v)^2 of each signal and then the rows that were finite; and bounds
    [G, L, 2 * 2], largest -v and largest v of each.
    """
    for part in _parts(values):
        _group_layers(values[part], groups, sums[:, part], bounds[:, part])


def count_experts(experts: torch.Tensor, is_counted: torch.Tensor, load: torch.Tensor) -> None:
    """Count the rows that were sent to each expert, a few layers at a time.

    experts: [L, k, T]; is_counted: [T] bool. load: [L, E + 1] int64, overwritten; the last column
    takes what is not to be counted, ids that name no expert among it.
    """
    nowhere = load.shape[-1] - 1
    load.zero_()
    for part in _parts(experts):
        ids = experts[part]
        is_real = is_counted & (ids >= 0) & (ids < nowhere)
        places = torch.where(is_real, ids, nowhere).flatten(1).long()
        load[part].scatter_add_(1, places, torch.ones_like(places))


class Router:
    """The instrument: buffers of every measured gate, and what was added up of them.

    layer_ids: global ids of the layers with a gate. capacity: more than the token rows of any
    forward pass. max_groups: most groups of one. has_load: whether the chosen experts are known.
    """

    def __init__(
        self,
        layer_ids: list[int],
        shape: Shape,
        capacity: int,
        max_groups: int,
        device: torch.device,
        *,
        has_load: bool,
    ) -> None:
        num_layers, num_experts = len(layer_ids), shape.num_experts
        self.values = torch.full((num_layers, _NUM_SIGNALS, capacity), torch.nan, device=device)
        self.experts = torch.full(
            (num_layers, shape.num_chosen, capacity), _NO_EXPERT, dtype=torch.int32, device=device
        )
        self._values_aside, self._experts_aside = Aside(self.values), Aside(self.experts)
        self._capacity = capacity
        self._max_groups = max_groups
        self._has_load = has_load
        # One group more than may be asked for: rows that are not to be counted end there.
        cells = (max_groups + 1, num_layers)
        self._sums = torch.zeros(*cells, _NUM_SUMS + 1, dtype=torch.float64, device=device)
        self._bounds = torch.zeros(*cells, _NUM_SIGNALS * NUM_EXTREMES, device=device)
        self._load = torch.zeros(num_layers, num_experts + 1, dtype=torch.int64, device=device)
        self._groups = Upload(capacity, device)
        self._ring = Ring({"sums": self._sums, "bounds": self._bounds, "load": self._load}, device)
        layers, experts = list(map(str, layer_ids)), list(map(str, range(num_experts)))
        self._totals = Tally("router", [layers, list(Phase)])
        self._requests = Tally("router", [layers, list(Phase)])
        self._loads = Tally("expert_load", [layers, experts])

    def keep(self, place: Place) -> bool:
        """Put the current rows aside. Step path."""
        self._values_aside.put(self.values, place)
        self._experts_aside.put(self.experts, place)
        self._forget(place.num_rows)
        return True

    def collect(self, plan: Plan, place: Place | None = None) -> Loan | None:
        """Start to add up rows by `plan`, those at `place` or else the current ones. Step path.

        None when there is no room.
        """
        num_rows = len(plan.groups)
        if plan.num_groups > self._max_groups or num_rows > self._capacity:
            return None
        loan = self._ring.take()
        if loan is None:
            return None
        try:
            if place is None:
                self._reduce(loan, plan, self.values[..., :num_rows], self.experts[..., :num_rows])
                self._forget(num_rows)
            else:
                kept = self._values_aside.rows(place), self._experts_aside.rows(place)
                self._reduce(loan, plan, *kept)
        except BaseException:
            self._ring.give_back(loan)
            raise
        return loan

    def account(self, pending: Loan, plan: Plan, kept: NDArray[np.bool_] | None) -> None:
        """Add up what `pending` holds of the step of `plan`, and free it.

        kept: [G] groups to count, when drafts were rejected.
        """
        try:
            chosen = np.arange(plan.num_groups) if kept is None else np.flatnonzero(kept)
            if len(chosen):
                sums = pending.read("sums", plan.num_groups)[chosen]
                bounds = pending.read("bounds", plan.num_groups)[chosen]
                self._add(plan.slots[chosen], plan.populations[chosen] // 2, sums, bounds)
            if self._has_load:
                counts = pending.read("load")[:, :-1].ravel()
                self._loads.count[0] += counts.astype(np.uint64)
        finally:
            self._ring.give_back(pending)

    def totals(self) -> Iterator[Table]:
        """Over all requests; extremes since the last call."""
        yield self._totals.table()
        self._totals.forget_extremes()
        if self._has_load:
            yield self._loads.table()

    def of_request(self, slot: int) -> Iterator[Table]:
        """What was measured of the request in `slot`; nothing when no row was."""
        if self._requests.has_rows(slot):
            yield self._requests.table(slot)

    def clear(self, slot: int) -> None:
        """The request in `slot` is over."""
        self._requests.clear(slot)

    def _forget(self, num_rows: int) -> None:
        """What the next pass does not write shall not be taken for its own."""
        self.values[..., :num_rows].fill_(torch.nan)
        self.experts[..., :num_rows].fill_(_NO_EXPERT)

    def _reduce(self, loan: Loan, plan: Plan, values: torch.Tensor, experts: torch.Tensor) -> None:
        num_groups = plan.num_groups + 1
        sums, bounds = self._sums[:num_groups], self._bounds[:num_groups]
        groups = self._groups.put(plan.groups)
        group_gates(values, groups, sums, bounds)
        if self._has_load:
            count_experts(experts, groups < plan.num_groups, self._load)
        self._ring.send(loan, {"sums": sums, "bounds": bounds, "load": self._load})

    def _add(
        self,
        slots: NDArray[np.int64],
        phases: NDArray[np.int64],
        sums: NDArray[np.float64],
        bounds: NDArray[np.float32],
    ) -> None:
        """Groups [G] of slots and phases: sums [G, L, 7] and bounds [G, L, 4]."""
        num_layers = sums.shape[1]
        _add_groups(self._requests, slots, phases, sums, bounds)
        for phase in np.unique(phases):
            mine = phases == phase
            _add_groups(
                self._totals,
                np.zeros(1, np.int64),
                phases[mine][:1],
                sums[mine].sum(0).reshape(1, num_layers, -1),
                bounds[mine].max(0).reshape(1, num_layers, -1),
            )


def _fits(decision: Decision, shape: Shape) -> bool:
    """Whether the decision is of rows by experts, as the buffers are.

    Compared before any arithmetic: what raises inside a trace is the compiler's own error, which
    no guard of ours can catch.
    """
    logits, chosen = decision
    if not isinstance(logits, torch.Tensor) or logits.dim() != _NUM_DIMS:
        return False
    if logits.shape[1] != shape.num_experts:
        return False
    return chosen is None or (
        isinstance(chosen, torch.Tensor)
        and chosen.dim() == _NUM_DIMS
        and chosen.shape[1] == shape.num_chosen
    )


def _record(values: torch.Tensor, experts: torch.Tensor, decision: Decision, shape: Shape) -> None:
    logits, chosen = decision
    if logits.is_cuda and not torch.compiler.is_compiling():
        # Triton is loaded only where a GPU is: elsewhere its first import costs seconds.
        from sidecar.tap import router_kernel  # noqa: PLC0415

        router_kernel.record(values, experts, logits, chosen, shape.scoring)
        return
    num_rows = logits.shape[0]
    signals, largest = gate_signals(logits, shape.num_chosen, shape.scoring)
    values[:, :num_rows] = signals
    experts[:, :num_rows] = (largest if chosen is None else chosen).t()


def _parts(rows: torch.Tensor) -> Iterator[slice]:
    """Slices of the layers of [L, ..., T] that bound the scratch space of one."""
    step = max(1, CHUNK_CELLS // max(1, rows.shape[-1]))
    for start in range(0, len(rows), step):
        yield slice(start, start + step)


def _group_layers(
    values: torch.Tensor, groups: torch.Tensor, sums: torch.Tensor, bounds: torch.Tensor
) -> None:
    v = values.permute(2, 0, 1)  # [T, L, 2]
    finite = torch.isfinite(v).all(-1, keepdim=True)
    entropy, margin = v.unbind(-1)
    phi = torch.stack([entropy, margin.clamp_min(_TINY).log()], -1)
    powers = torch.stack([v, phi, phi.square()], -1).flatten(-2)
    terms = torch.cat([torch.where(finite, powers, 0.0), finite.to(powers.dtype)], -1)
    sums.zero_().index_add_(0, groups, terms.to(sums.dtype))

    signed = torch.where(finite, torch.stack([-v, v], -1).flatten(-2), -torch.inf)
    places = groups.view(-1, 1, 1).expand_as(signed)
    bounds.fill_(-torch.inf).scatter_reduce_(0, places, signed, "amax")


def _add_groups(
    tally: Tally,
    owners: NDArray[np.int64],
    phases: NDArray[np.int64],
    sums: NDArray[np.float64],
    bounds: NDArray[np.float32],
) -> None:
    num_groups, num_layers = sums.shape[:2]
    cells = len(Phase) * np.arange(num_layers) + phases[:, None]
    num_cells = num_groups * num_layers
    tally.add_sums(
        np.repeat(owners, num_layers),
        cells.ravel(),
        sums[..., _NUM_SUMS].ravel().astype(np.int64),
        sums[..., :_NUM_SUMS].reshape(num_cells, _NUM_SIGNALS, NUM_POWERS),
        bounds.reshape(num_cells, _NUM_SIGNALS, NUM_EXTREMES),
    )
