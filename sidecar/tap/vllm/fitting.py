"""Fitting instruments into a worker: what each needs, what it gives, and who can do without.

An instrument is fitted while the model loads, before it is compiled; its seat is taken once the
tap exists. One that cannot be fitted is left out with its reason, and the rest still works.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from sidecar.config import TapConfig
from sidecar.errors import TapRefused
from sidecar.tap.engine import EngineTap
from sidecar.tap.guard import Guard
from sidecar.tap.instrument import Instruments
from sidecar.tap.rows import NO_GAP, Ints
from sidecar.tap.signature import evenly
from sidecar.tap.sites import Site
from sidecar.tap.stream import Reader
from sidecar.wire.frame import Source
from sidecar.wire.signature import Layout


@dataclass
class Workbench:
    """What a fitter may look at and change.

    capacity: more than the token rows of any forward pass. max_groups: most row groups of one.
    undo: called back when the tap cannot be attached after all.
    draft_counts: how many draft tokens each of some requests has in the step under way.
    readers: what else is made of the residual stream after a layer, by its global id.
    seats: called with the tap once it exists.
    """

    runner: Any
    vllm_config: Any
    config: TapConfig
    guard: Guard
    source: Source
    sites: list[Site]
    capacity: int
    max_groups: int
    device: torch.device
    undo: contextlib.ExitStack
    instruments: Instruments
    draft_counts: Callable[[list[str]], Ints] = lambda _req_ids: NO_GAP
    readers: dict[int, Reader] = field(default_factory=dict)
    seats: list[Callable[[EngineTap], None]] = field(default_factory=list)

    @property
    def max_requests(self) -> int:
        """Requests in one batch at most."""
        return int(self.vllm_config.scheduler_config.max_num_seqs)

    @property
    def layer_ids(self) -> list[int]:
        """Global ids of the decoder layers of this rank."""
        return [site.layer for site in self.sites]


Fitter = Callable[[Workbench], None]


def fit(bench: Workbench, fitters: Mapping[str, Fitter]) -> None:
    """Fit everything that this engine and its configuration allow.

    fitters: by the group of signals that is absent when the fitter raises TapRefused.
    """
    for group, fitter in fitters.items():
        try:
            fitter(bench)
        except TapRefused as error:
            bench.instruments.absent[group] = str(error)
        except Exception as error:  # the model must load, and the other signals may be had
            bench.guard.count(f"fit_{group}", error)
            bench.instruments.absent[group] = "could not be fitted; see the engine's log"


def plain(config: TapConfig, layer_ids: list[int]) -> Instruments:
    """No instruments yet; signatures of the residual stream alone."""
    return Instruments(Layout(evenly(layer_ids, config.signature_layers)))
