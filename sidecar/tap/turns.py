"""Whose turn it is: which requests, and which layers, attention is sampled of at a step.

Pure numpy. Each layer is sampled once in a round of `every` steps. All of them at one step would
make it pay for all, and that step is what a user waits for; each at a step of its own would have
most steps pay for what any sample costs, however short. So layers take their turns by bunches: of
n, bunch b is due at the steps that are b * every // n past a multiple of `every`. Requests take
turns by the round, so that the layers of one round tell of the same requests, and no layer meets
the same ones for ever.

A request that asks for it is sampled at every layer of every step, before the others.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.tap.rows import NO_GAP, Batch, Ints
from sidecar.wire.signals import Phase

_PREFILL, _DECODE = (list(Phase).index(phase) for phase in (Phase.PREFILL, Phase.DECODE))


class Choice(NamedTuple):
    """What is sampled at one step.

    places: [R] places of the requests in the batch, the first `num_forced` of them at all layers.
    rows: [R] number of the query row of each in the forward pass: its last certain one.
    lengths: [R] position of that row plus 1. phases: [R] index in `Phase` of that row.
    is_due: [L] whether it is a layer's turn. num_requests: of the whole batch.
    """

    places: Ints
    rows: Ints
    lengths: Ints
    phases: Ints
    num_forced: int
    is_due: list[bool]
    num_requests: int

    def num_rows(self, layer: int) -> int:
        """How many of the requests are sampled at the layer of this index."""
        return len(self.places) if self.is_due[layer] else self.num_forced


def due(num_layers: int, every: int, turn: int, together: int = 1) -> list[bool]:
    """Whether it is the turn of each layer; `every` is at least 1.

    together: how many layers may share a step that need not, at least 1.
    """
    num_bunches = -(-num_layers // together)
    bunches = [k * num_bunches // num_layers for k in range(num_layers)]
    return [bunch * every // num_bunches == turn % every for bunch in bunches]


def choose(
    batch: Batch,
    is_due: list[bool],
    first: int,
    limit: int,
    forced: Collection[str] = (),
    opted_out: Collection[str] = (),
) -> Choice | None:
    """At most `limit` requests of `batch`; None when there is nobody to sample.

    first: the place in the batch where this round begins, modulo the requests there are.
    A request whose last row leads to no token, its prefill being unfinished, has to wait, and one
    that opted out is never chosen.
    """
    num = len(batch.req_ids)
    places = np.arange(num) if not len(batch.partial) else np.flatnonzero(~batch.partial)
    if opted_out:
        places = places[~_among(places, batch.req_ids, opted_out)]
    if not len(places):
        return None
    places = np.roll(places, -(first % len(places)))
    wishes = _among(places, batch.req_ids, forced)
    wanted = places[wishes][:limit] if forced else NO_GAP
    others = places[~wishes][: limit - len(wanted)] if any(is_due) else NO_GAP
    chosen = np.concatenate([wanted, others])
    if not len(chosen):
        return None
    drafts = batch.drafts[chosen] if len(batch.drafts) else 0
    lengths = batch.starts[chosen] + batch.counts[chosen] - drafts
    return Choice(
        chosen,
        np.cumsum(batch.counts)[chosen] - 1 - drafts,
        lengths,
        np.where(lengths > batch.prompts[chosen], _DECODE, _PREFILL),
        len(wanted),
        is_due,
        num,
    )


def _among(places: Ints, req_ids: list[str], chosen: Collection[str]) -> NDArray[np.bool_]:
    if not chosen:
        return np.zeros(len(places), bool)
    return np.array([req_ids[place] in chosen for place in places], bool)
