"""Attention concentration: samples a few requests of a step, layer by layer, from the KV cache.

The graph leaves the query rows of the chosen requests in static buffers (`tap.query`). After the
forward pass the keys of these requests are read once for each layer whose turn it is (`tap.turns`,
`tap.concentration`), on the engine's own stream, before the next step may rewrite their blocks.
Nothing here waits; a step that finds no free loan is not sampled.

A layer whose query tap did not run is found by its pulse and left out from then on, with the
reason among the absent groups.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.tap import concentration, turns
from sidecar.tap.concentration import NUM_SIGNALS, Keys
from sidecar.tap.engine import EngineTap
from sidecar.tap.ring import Loan, Ring, Upload
from sidecar.tap.rows import Batch, Ints
from sidecar.tap.tally import Tally
from sidecar.tap.turns import Choice
from sidecar.wire.fields import MAX_LONG_TEXT
from sidecar.wire.frame import MAX_BYTES, Table
from sidecar.wire.signals import Phase

GROUP: Final = "attention"
_KEYS_TOGETHER: Final = 4096  # in one step, where layers can as well be measured apart
_BYTES_PER_CELL: Final = 8 + NUM_SIGNALS * (3 * 8 + 2 * 4)  # see wire.frame.Table
_CELLS_PER_TABLE: Final = MAX_BYTES // 2 // _BYTES_PER_CELL
_EVERYTHING: Final = 0  # the totals have one owner


class Layer(NamedTuple):
    """An attention layer that is sampled: its global id, and its query heads on this rank."""

    id: int
    num_heads: int
    head_size: int


class Sample(NamedTuple):
    """Numbers of one step on their way: of `layers` by index, in the order of the loan's rows.

    slots: [R] request slots of the choice's requests.
    """

    loan: Loan
    choice: Choice
    slots: Ints
    layers: list[int]

    @property
    def is_ready(self) -> bool:
        """Whether they are here; asking costs no wait."""
        return self.loan.is_ready


class _Found(NamedTuple):
    """A layer of an index, and where its keys are."""

    layer: int
    keys: Keys
    table: torch.Tensor


class Absence:
    """Why layers are not measured, as the one sentence that the status has for the group."""

    def __init__(self, absent: dict[str, str]) -> None:
        self.reasons: dict[int, str] = {}
        self._absent = absent

    def add(self, layer: int, reason: str) -> None:
        """Leave out the layer with this global id. The first reason stays."""
        self.reasons.setdefault(layer, reason)
        by_reason: dict[str, list[int]] = {}
        for each, why in sorted(self.reasons.items()):
            by_reason.setdefault(why, []).append(each)
        sentences = (
            f"layers {', '.join(map(str, layers))}: {why}" for why, layers in by_reason.items()
        )
        self._absent[GROUP] = "; ".join(sentences)[:MAX_LONG_TEXT]


class Attention:
    """The sampler of the groups `attention`, over everything, and `attention_mean`, per request.

    first_part: this rank's place among those that share the heads: its heads have the global ids
    from first_part times their number. max_requests: requests sampled in one step at most.
    dtype: of the queries. absence: told which layers turn out not to be measurable.
    """

    def __init__(
        self,
        layers: list[Layer],
        first_part: int,
        max_requests: int,
        dtype: torch.dtype,
        device: torch.device,
        absence: Absence,
    ) -> None:
        self.layers = layers
        self.max_requests = max_requests
        # One buffer, so that one copy tells the device everything: rows, places, lengths.
        self._upload = Upload(3 * max_requests, device)
        self.picks = self._upload.device[:max_requests]
        self.queries = [
            torch.zeros(max_requests, each.num_heads * each.head_size, dtype=dtype, device=device)
            for each in layers
        ]
        self.pulses = torch.zeros(len(layers), dtype=torch.int64, device=device)
        shape = (len(layers), max_requests, max(each.num_heads for each in layers), NUM_SIGNALS)
        self._values = torch.zeros(shape, device=device)
        self._pulses = torch.zeros_like(self.pulses)
        self._ring = Ring({"values": self._values, "pulses": self._pulses}, device)
        self._seen = np.zeros(len(layers), np.int64)
        self._asked: Choice | None = None
        self._num_keys = _KEYS_TOGETHER  # of one layer, at the last choice
        self._together = 1  # layers, in this round
        self._absence = absence
        self._totals = list(_totals(layers, first_part))
        ids = [str(each.id) for each in layers]
        self._means = Tally("attention_mean", (ids, list(Phase)))

    def refuse(self, layer: int, reason: str) -> None:
        """Measure the layer of this index no more."""
        self._absence.add(self.layers[layer].id, reason)

    def is_refused(self, layer: int) -> bool:
        """Whether the layer of this index is left out."""
        return self.layers[layer].id in self._absence.reasons

    @property
    def places(self) -> torch.Tensor:
        """[max_requests] int64 on the device: places in the batch of those asked for."""
        return self._upload.device[self.max_requests : 2 * self.max_requests]

    def is_asked(self, layer: int) -> bool:
        """Whether the pass under way is to leave query rows of the layer of this index."""
        return self._asked is not None and self._asked.num_rows(layer) > 0

    def choose(self, tap: EngineTap, read: Callable[[], Batch | None]) -> Choice | None:
        """Whom the next forward pass of `tap` is to be asked for; None for nobody. Step path.

        read: the batch of that pass; called when it is somebody's turn.
        """
        self._asked = None
        orders, every = tap.orders, tap.orders.attention_every
        if not tap.measures_next or every <= 0:
            return None
        # Counted in measured steps, or a layer's turn might fall on steps that never are.
        turn = (tap.step + 1) // orders.steps_every
        if turn % every == 0:  # not amid a round, where layers would have two turns or none
            self._together = max(1, _KEYS_TOGETHER // self._num_keys)
        is_due = turns.due(len(self.layers), every, turn, self._together)
        roster = tap.roster
        batch = read() if any(is_due) or roster.forced else None
        if batch is None:
            return None
        limit = min(orders.attention_requests, self.max_requests)
        first = turn // every * limit
        choice = turns.choose(batch, is_due, first, limit, roster.forced, roster.opted_out)
        if choice is not None:
            self._num_keys = max(1, int(choice.lengths.sum()))
        return choice

    def ask(self, choice: Choice) -> None:
        """Have the next forward pass leave the query rows of `choice`. Step path."""
        self._asked = choice
        asked = np.zeros((3, self.max_requests), np.int64)
        asked[:, : len(choice.rows)] = choice.rows, choice.places, choice.lengths
        self._upload.put(asked.ravel())

    def sample(
        self,
        choice: Choice,
        slots: Ints,
        read: Callable[[int], tuple[Keys, torch.Tensor]],
    ) -> Sample | None:
        """Start to measure what was asked for before the forward pass; None without a loan.

        slots: [R] request slots of the choice's requests. read: the keys and the block table
        ([requests of the batch, columns]) of the layer of an index. Step path.
        """
        num_layers = len(self.layers)
        chosen = [k for k in range(num_layers) if choice.num_rows(k) and not self.is_refused(k)]
        loan = self._ring.take() if chosen else None
        if loan is None:
            return None
        try:
            line = 0
            for part in self._alike(choice, [_Found(layer, *read(layer)) for layer in chosen]):
                layers, keys, tables = zip(*part, strict=True)
                self.measure(layers, choice.num_rows(layers[0]), keys, tables[0], line)
                line += len(layers)
            self._pulses.copy_(self.pulses)
            self._ring.send(loan, {"values": self._values[: len(chosen)], "pulses": self._pulses})
        except BaseException:
            self._ring.give_back(loan)
            raise
        return Sample(loan, choice, slots, chosen)

    def measure(
        self,
        layers: Sequence[int],
        num_rows: int,
        keys: Sequence[Keys],
        table: torch.Tensor,
        line: int = 0,
    ) -> None:
        """Launch the measurement of the first rows asked for, at layers of these indices, alike."""
        _, num_heads, head_size = self.layers[layers[0]]
        most = self.max_requests
        places, lengths = self.places, self._upload.device[2 * most :]
        queries = [self.queries[layer][:num_rows] for layer in layers]
        concentration.measure_layers(
            [each.view(num_rows, num_heads, head_size) for each in queries],
            keys,
            table,
            places[:num_rows],
            lengths[:num_rows],
            self._values[line : line + len(layers), :num_rows, :num_heads],
        )

    def _alike(self, choice: Choice, found: list[_Found]) -> Iterator[list[_Found]]:
        """Neighbours that can be measured at once."""
        part: list[_Found] = []
        for each in found:
            if part and not self._is_like(choice, part[0], each):
                yield part
                part = []
            part.append(each)
        yield part

    def _is_like(self, choice: Choice, one: _Found, other: _Found) -> bool:
        return (
            one.table is other.table
            and one.keys.is_like(other.keys)
            and self.layers[one.layer][1:] == self.layers[other.layer][1:]
            and choice.num_rows(one.layer) == choice.num_rows(other.layer)
        )

    def account(self, pending: Sample) -> None:
        """Add up a sample, but for layers whose pulse stood still, and free it."""
        try:
            pulses = pending.loan.read("pulses")
            values = pending.loan.read("values")
            for line, layer in enumerate(pending.layers):
                if pulses[layer] == self._seen[layer]:
                    self.refuse(layer, _DEAD)
                else:
                    self._add(pending, layer, values[line])
            self._seen[:] = pulses
        finally:
            self._ring.give_back(pending.loan)

    def totals(self) -> Iterator[Table]:
        """Per layer, phase and head, over everything; split where a frame would be too large."""
        for part in self._totals:
            if part.tally.has_rows(_EVERYTHING):
                yield part.tally.table()
                part.tally.forget_extremes()

    def of_request(self, slot: int) -> Iterator[Table]:
        """Per layer and phase, the mean over the heads of each row."""
        if self._means.has_rows(slot):
            yield self._means.table(slot, last=True)

    def clear(self, slot: int) -> None:
        """The request in `slot` is over."""
        self._means.clear(slot)

    def _add(self, sample: Sample, layer: int, values: NDArray[np.float32]) -> None:
        """values: [at least R, heads, NUM_SIGNALS] of one layer."""
        num_rows, num_heads = sample.choice.num_rows(layer), self.layers[layer].num_heads
        mine = values[:num_rows, :num_heads]
        phases = sample.choice.phases[:num_rows]
        places = len(Phase) * layer + phases
        part = next(part for part in self._totals if layer in part.layers)
        cells = num_heads * (places - len(Phase) * part.layers[0])[:, None] + np.arange(num_heads)
        owners = np.zeros(cells.size, np.int64)
        part.tally.add(owners, cells.ravel(), mine.reshape(-1, NUM_SIGNALS))
        self._means.add(sample.slots[:num_rows], places, mine.astype(np.float64).mean(1))


class _Part(NamedTuple):
    """Totals of some layers, by index, that have as many heads each."""

    layers: range
    tally: Tally


def _totals(layers: list[Layer], first_part: int) -> Iterator[_Part]:
    """Tables that a frame can carry, of neighbouring layers with as many heads each."""
    start = 0
    while start < len(layers):
        num_heads = layers[start].num_heads
        most = max(1, _CELLS_PER_TABLE // (len(Phase) * num_heads))
        end = start
        while end < len(layers) and end - start < most and layers[end].num_heads == num_heads:
            end += 1
        ids = [str(each.id) for each in layers[start:end]]
        heads = [str(first_part * num_heads + head) for head in range(num_heads)]
        yield _Part(range(start, end), Tally(GROUP, [ids, list(Phase), heads]))
        start = end


_DEAD: Final = (
    "the query tap did not run: the compiled graph was built without it; clear VLLM_CACHE_ROOT "
    "and restart"
)
