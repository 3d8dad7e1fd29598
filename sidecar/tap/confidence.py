"""How sure the model is of each generated token: entropy, top probability, margin, surprisal.

All of the model's own distribution, the logits as the sampler receives them: before temperature,
penalties, top-k and top-p, after a grammar's mask, whatever the request asks for. Plain torch in
float32; scratch space is bounded by going over a few rows at a time. On the step path nothing
waits: the values stay on the device until the ring brings them.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.tap.engine import EngineTap, Step
from sidecar.tap.ring import Loan, Ring, Upload
from sidecar.tap.roster import Roster
from sidecar.tap.rows import Batch, Ints
from sidecar.tap.scan import Scanner
from sidecar.tap.tally import Tally
from sidecar.wire.frame import Table
from sidecar.wire.signals import GROUPS

# Logits at a time: two float32 copies of so many stay in a core's cache, in memory that is kept.
# Where none is given it is taken anew, at most 64 MB.
CHUNK_LOGITS: Final = 1 << 23
_KEPT_LOGITS: Final = 1 << 18

_BLOCK: Final = 128  # logits of which the largest is found first
_FLOOR: Final = -1e4  # e to the power of it is 0

_GROUP: Final = "confidence"
_NUM_SIGNALS: Final = len(GROUPS[_GROUP].signals)


class TokenSignals(NamedTuple):
    """Of each row of logits, [N] float32 on their device; non-finite where a row has no maximum.

    entropy: -sum p log p, nats. top1_probability: max p. top1_margin: max p less the second.
    top_logit: the largest. log_total: log sum exp(x - top_logit); with it the logsumexp.
    """

    entropy: torch.Tensor
    top1_probability: torch.Tensor
    top1_margin: torch.Tensor
    top_logit: torch.Tensor
    log_total: torch.Tensor

    def values(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[N, S] in wire order, given the tokens [N], int64, that were chosen. Step path.

        logits: those that were read. Clamped: a token that is none, such as that of a row of NaN,
        would kill a GPU's engine.
        """
        if logits.is_cuda:
            values: torch.Tensor = _kernels().choose(self, logits, tokens)
            return values
        places = tokens.clamp(0, logits.shape[-1] - 1).unsqueeze(-1)
        return self.with_surprisal(logits.gather(-1, places).squeeze(-1))

    def with_surprisal(self, chosen: torch.Tensor) -> torch.Tensor:
        """[N, S] in wire order, given the logits [N] of the chosen tokens.

        The surprisal is -log p of the chosen token, nats. Differences of logits come first: a
        logsumexp of large logits has lost the digits that a surprisal needs.
        """
        surprisal = (self.top_logit - chosen.float()) + self.log_total
        columns = [self.entropy, self.top1_probability, self.top1_margin, surprisal]
        return torch.stack([*columns, self.top_logit + self.log_total], -1)


class _Views(NamedTuple):
    """Scratch space as rows of logits.

    values, weights: [N, V] float32. blocks: [N, V // _BLOCK, _BLOCK] of the values; None where two
    do not fit. rest: [N, *] values behind them. rows: [N] int64, from 0.
    """

    values: torch.Tensor
    weights: torch.Tensor
    blocks: torch.Tensor | None
    rest: torch.Tensor
    rows: torch.Tensor

    @classmethod
    def of(cls, memory: torch.Tensor, shape: torch.Size) -> "_Views":
        values, weights = memory[:, : shape.numel()].view(2, *shape).unbind()
        num_blocks = shape[1] // _BLOCK
        whole = num_blocks * _BLOCK
        blocks = values[:, :whole].view(-1, num_blocks, _BLOCK) if num_blocks > 1 else None
        rows = torch.arange(shape[0], device=memory.device)
        return cls(values, weights, blocks, values[:, whole:], rows)


class Scratch:
    """Memory for two float32 copies of `size` logits at a time; each reading overwrites it."""

    def __init__(self, size: int, device: torch.device | None = None) -> None:
        self.size = size
        self._memory = torch.empty(2, size, device=device)
        self._views: _Views | None = None

    def views(self, shape: torch.Size) -> _Views:
        """It as logits of `shape`; kept for the next of that shape, as making them takes time."""
        if self._views is None or self._views.values.shape != shape:
            self._views = _Views.of(self._memory, shape)
        return self._views


def token_signals(logits: torch.Tensor, scratch: Scratch | None = None) -> TokenSignals:
    """Signals of the distribution that each row of `logits`, [N, V], any float type, stands for.

    A logit of -inf is a token of probability 0 and adds nothing. A row of nothing else, or with a
    NaN, has no distribution, and its values are not finite. V is at least 2.
    scratch: of at least V logits; memory is taken anew without it. A GPU needs none.
    """
    if logits.is_cuda:
        return TokenSignals(*_kernels().read(logits).unbind())
    num_tokens = logits.shape[-1]
    if scratch is None or scratch.size < num_tokens:
        num_rows = min(len(logits), max(1, CHUNK_LOGITS // num_tokens))
        scratch = Scratch(num_rows * num_tokens, logits.device)
    num_rows = scratch.size // num_tokens
    starts = range(0, len(logits), num_rows)
    parts = [_signals(logits[start : start + num_rows], scratch) for start in starts]
    if len(parts) == 1:
        return parts[0]
    return TokenSignals(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _signals(logits: torch.Tensor, scratch: Scratch) -> TokenSignals:
    views = scratch.views(logits.shape)
    views.values.copy_(logits)
    top, second = _two_largest(views)
    shifted = views.values.sub_(top.unsqueeze(-1))
    # One operation that reads the row twice; exp, log and sums apart take three times as long.
    p = torch.softmax(shifted, -1, out=views.weights)
    largest = p.amax(-1)
    log_total = -largest.log()
    # H = log total - sum p (x - top). A bound for -inf, because 0 times that is no number.
    entropy = log_total - torch.linalg.vecdot(p, shifted.clamp_min_(_FLOOR))
    return TokenSignals(entropy, largest, -torch.expm1(second - top) * largest, top, log_total)


def _two_largest(views: _Views) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of each row of the values and the largest of the rest, [N].

    By blocks: a maximum that says where it stands takes twenty times as long as one that does not,
    and so is asked of a block alone.
    """
    candidates = views.values
    if views.blocks is not None:
        best, places = views.blocks.amax(-1).topk(2)
        inside = views.blocks[views.rows, places[:, 0]]
        candidates = torch.cat([inside, best[:, 1:], views.rest], -1)
    first, second = candidates.topk(2).values.unbind(-1)
    return first, second


def _kernels() -> Any:
    # Triton is loaded only where a GPU is: elsewhere its first import costs seconds.
    from sidecar.tap import confidence_kernel  # noqa: PLC0415

    return confidence_kernel


class LogitRows(NamedTuple):
    """Which row of logits is whose: one for each request in batch order, one more per draft.

    owners: [N] place in the batch. drafts: [N] how many drafts of the request stand before it.
    """

    owners: Ints
    drafts: Ints

    @classmethod
    def of(cls, batch: Batch) -> "LogitRows":
        """Those of the step that computed `batch`."""
        num_requests = len(batch.req_ids)
        if not len(batch.drafts):
            return cls(np.arange(num_requests), np.zeros(num_requests, np.int64))
        counts = 1 + batch.drafts
        owners = np.repeat(np.arange(num_requests), counts)
        return cls(owners, np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners])


@dataclass
class Tokens:
    """The rows of one step on their way to the host, and whose they are.

    step: the forward pass that they end; says which drafts were accepted.
    slots, cells: [n] request slot and place of the adapter, by place in the batch.
    counts: [n] whether the request's rows may count: its prefill is done, it did not opt out.
    scanner: keeps the tokens of scanned requests apart.
    """

    loan: Loan
    step: Step
    rows: LogitRows
    slots: Ints
    cells: Ints
    counts: NDArray[np.bool_]
    scanner: Scanner

    @property
    def is_ready(self) -> bool:
        """Whether the values are here, and it is known which rows led to a token."""
        if self.step.accepted is None and self.rows.drafts.any():
            return False
        return self.loan.is_ready

    def counted(self) -> NDArray[np.bool_]:
        """[N] rows whose token was generated: all but those after a rejected draft."""
        mine: NDArray[np.bool_] = self.counts[self.rows.owners]
        if self.step.accepted is not None:
            mine &= self.rows.drafts <= self.step.accepted[self.rows.owners]
        return mine

    def positions(self) -> Ints:
        """[N] position of the row that each row of logits was made of."""
        batch, owners = self.step.batch, self.rows.owners
        lasts = batch.starts + batch.counts - 1
        certain = lasts - batch.drafts if len(batch.drafts) else lasts
        positions: Ints = certain[owners] + self.rows.drafts
        return positions


class Confidence:
    """The sampler: running totals by adapter, and an account per request.

    adapters: labels, in the order of `Roster.adapters`. max_rows: rows of logits in a step at most.
    """

    def __init__(self, adapters: Sequence[str], max_rows: int, device: torch.device) -> None:
        self._values = torch.zeros(max_rows, _NUM_SIGNALS, device=device)
        self._ring = Ring({"values": self._values}, device)
        self._places = Upload(max_rows, device)
        self._totals = Tally(_GROUP, [adapters])
        self._requests = Tally(_GROUP, [adapters])
        self._known: tuple[Ints, Ints] | None = None
        on_cpu = device.type == "cpu"
        self._scratch = Scratch(_KEPT_LOGITS) if on_cpu else None

    def read(self, logits: torch.Tensor) -> TokenSignals:
        """Signals of each row of `logits`, [N, V], which are left as they are. Step path."""
        return token_signals(logits, self._scratch)

    def rehearse(self, num_tokens: int, dtypes: Iterable[torch.dtype]) -> None:
        """Measure logits of every type that may come, so that no request waits for a compiler."""
        for dtype in dtypes:
            logits = self._values.new_zeros(2, num_tokens, dtype=dtype)
            tokens = torch.zeros(2, dtype=torch.int64, device=logits.device)
            self.read(logits).values(logits, tokens)

    def chosen(self, rows: LogitRows, sampled: torch.Tensor) -> torch.Tensor:
        """The token that each row of logits led to, [N]; of rejected rows any. Step path.

        sampled: [n, 1], or [n, 1 + drafts] with -1 where there is none.
        """
        width = sampled.shape[-1]
        if width == 1:
            return sampled[:, 0].long()
        # Clamped: an index too large would kill a GPU's engine.
        places = np.minimum(width * rows.owners + rows.drafts, sampled.numel() - 1)
        return sampled.flatten().index_select(0, self._places.put(places)).long()

    def collect(self, tap: EngineTap, step: Step, rows: LogitRows, values: torch.Tensor) -> None:
        """Send the values, [N, S], of the last step of `tap`. Step path.

        Nothing is sent when the pump has not given its memory back: those tokens are not counted.
        """
        loan = self._ring.take()
        if loan is None:
            return
        try:
            sent = self._values[: len(values)].copy_(values)
            self._ring.send(loan, {"values": sent})
            slots = step.plan.batch_slots
            cells = self._cells(tap.roster, step.batch.req_ids, slots)
            counts = _counts(step.batch, tap.roster.opted_out)
        except BaseException:
            self._ring.give_back(loan)
            raise
        tap.submit(self, Tokens(loan, step, rows, slots, cells, counts, tap.scanner))

    def account(self, pending: Tokens) -> None:
        """Add up the rows that led to a token, and free the memory."""
        try:
            counted = pending.counted()
            values = pending.loan.read("values", len(counted))[counted]
            owners = pending.rows.owners[counted]
            cells = pending.cells[owners]
            self._totals.add(np.zeros_like(owners), cells, values)
            self._requests.add(pending.slots[owners], cells, values)
            if pending.scanner.is_telling:
                positions = pending.positions()[counted]
                pending.scanner.hear(pending.slots[owners], positions, values)
        finally:
            self._ring.give_back(pending.loan)

    def totals(self) -> Iterable[Table]:
        """Running totals by adapter; extremes since the last call."""
        yield self._totals.table()
        self._totals.forget_extremes()

    def of_request(self, slot: int) -> Iterable[Table]:
        """What was measured of one request, in the cell of its adapter."""
        if self._requests.has_rows(slot):
            yield self._requests.table(slot, last=True)

    def clear(self, slot: int) -> None:
        """The request in `slot` is over."""
        self._requests.clear(slot)

    def _cells(self, roster: Roster, req_ids: list[str], slots: Ints) -> Ints:
        # A steady batch has its slots in one and the same array, step after step.
        if self._known is None or self._known[0] is not slots:
            cells = np.fromiter(map(roster.adapter_index, req_ids), np.int64, len(req_ids))
            self._known = (slots, cells)
        return self._known[1]


def _counts(batch: Batch, opted_out: Collection[str]) -> NDArray[np.bool_]:
    counts = ~batch.partial if len(batch.partial) else np.ones(len(batch.req_ids), bool)
    if opted_out:
        counts &= [req not in opted_out for req in batch.req_ids]
    return counts
