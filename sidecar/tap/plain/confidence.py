"""The seat of confidence in a plain model: logits are kept until it is known what was chosen.

Nobody says here which token was sampled. It is the one that the next pass is fed, or for the last
pass of `generate` the one that it returns: so it is the same for greedy and sampled ones, and a
pass that leads nowhere (training, scoring a text) counts for nothing. One copy of the last row of
logits of each sequence is made a step.
"""

from typing import Any, Final, NamedTuple

import torch

from sidecar.tap.confidence import Confidence, LogitRows
from sidecar.tap.engine import EngineTap, Step

_GROUP: Final = "confidence"
_NUM_DIMS: Final = 3  # of logits: sequences, rows, vocabulary


class Undecided(NamedTuple):
    """The logits [B, V] of the last rows of a step, whose tokens are not known yet."""

    step: Step
    logits: torch.Tensor


class NextToken:
    """Keeps the logits of one pass of `tap` until its tokens are known.

    absent: told when the model returns no logits. max_rows: sequences of one pass at most.
    """

    def __init__(
        self, sampler: Confidence, tap: EngineTap, absent: dict[str, str], max_rows: int
    ) -> None:
        self._sampler = sampler
        self._tap = tap
        self._absent = absent
        self._max_rows = max_rows
        self._undecided: Undecided | None = None

    def keep(self, output: Any) -> None:
        """Keep what the pass just observed has returned, when it is its turn."""
        self._undecided = None
        tap, step = self._tap, self._tap.last_step
        if step is None or not tap.orders.samples_confidence(tap.step):
            return
        logits = getattr(output, "logits", None)
        if not isinstance(logits, torch.Tensor) or logits.dim() != _NUM_DIMS:
            self._absent[_GROUP] = (
                f"the model returned a {type(output).__name__} without logits; tap a model with a "
                "head for language modelling, and leave return_dict on"
            )
        elif len(logits) == len(step.batch.req_ids) <= self._max_rows:
            self._undecided = Undecided(step, logits[:, -1].detach().clone())

    def learn(self, tokens: torch.Tensor | None) -> None:
        """Measure what was kept: `tokens`, [B], were chosen; None when none was, or it is unknown.

        To be called before the requests of the step are finished.
        """
        undecided, self._undecided = self._undecided, None
        if undecided is None or tokens is None:
            return
        step, logits = undecided
        values = self._sampler.read(logits).values(logits, tokens.to(logits.device).long())
        self._sampler.collect(self._tap, step, LogitRows.of(step.batch), values)
