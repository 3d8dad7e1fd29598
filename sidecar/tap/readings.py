"""Fits sketches and probes to a residual stream: what is read of which layer, and who says so.

Knows nothing of the engine. A probe file that cannot be used, or sketches that do not fit, cost
themselves and nothing else; the reason stands among the absent groups.
"""

import contextlib
from typing import NamedTuple

import msgspec
import torch

from sidecar.config import TapConfig
from sidecar.errors import TapRefused
from sidecar.tap import probe_file
from sidecar.tap.instrument import Instruments
from sidecar.tap.probe_file import Probe
from sidecar.tap.projection import Projection, detach
from sidecar.tap.signature import evenly
from sidecar.tap.sites import Site
from sidecar.tap.sketch import Sketching
from sidecar.tap.stream import Reader
from sidecar.wire.fields import MAX_LONG_TEXT


class Stream(NamedTuple):
    """The residual stream as it passes here.

    sites: decoder layers of this rank. num_layers: of the whole model.
    capacity: more than the rows of any forward pass. max_groups: most row groups of one.
    max_requests: requests in one batch at most.
    """

    sites: list[Site]
    num_layers: int
    hidden_size: int
    capacity: int
    max_groups: int
    max_requests: int
    device: torch.device

    @property
    def layer_ids(self) -> list[int]:
        """Global ids of the layers of this rank."""
        return [site.layer for site in self.sites]


def fit(
    config: TapConfig, stream: Stream, kit: Instruments, undo: contextlib.ExitStack
) -> dict[int, Reader]:
    """Add sketches and probes to `kit`; the readers that feed them, by the layer's global id.

    undo: takes the layers' buffers away again.
    """
    sketching, probes = _sketching(config, stream, kit), _probes(config, stream, kit)
    if not sketching.layers and not probes:
        return {}
    projection = Projection(
        sketching,
        probes,
        stream.hidden_size,
        stream.capacity,
        stream.max_groups,
        2 * stream.max_requests,
        stream.device,
    )
    readers = _attach(stream, projection, undo)
    kit.rows.append(projection)
    kit.sketches = projection.sketches.of
    kit.layout = msgspec.structs.replace(
        kit.layout,
        sketch_layers=sketching.layers,
        sketch_size=sketching.size,
        sketch_seed=sketching.seed,
        probes=[probe.name for probe in probes],
    )
    return readers


def _sketching(config: TapConfig, stream: Stream, kit: Instruments) -> Sketching:
    """What is sketched on this rank: of the same layers, however the model is split."""
    if config.signatures and config.sketch_size > stream.hidden_size:
        kit.absent["sketch"] = (
            f"{config.sketch_size} orthonormal directions do not fit into the model's hidden size "
            f"of {stream.hidden_size}; lower SIDECAR_SKETCH_SIZE"
        )
    elif config.signatures:
        chosen = evenly(list(range(stream.num_layers)), config.sketch_layers)
        layers = sorted(set(chosen) & set(stream.layer_ids))
        if layers:
            return Sketching(layers, config.sketch_size, config.sketch_seed)
    return Sketching([], 0, 0)


def _probes(config: TapConfig, stream: Stream, kit: Instruments) -> list[Probe]:
    """The probes at layers of this rank."""
    path = config.probe_file
    if path is None:
        return []
    try:
        probes = probe_file.read(path, stream.num_layers, stream.hidden_size)
    except TapRefused as error:
        kit.absent["probe"] = str(error)[:MAX_LONG_TEXT]
        return []
    return [probe for probe in probes if probe.layer in stream.layer_ids]


def _attach(
    stream: Stream, projection: Projection, undo: contextlib.ExitStack
) -> dict[int, Reader]:
    wanted = set(projection.layers)
    readers = {}
    with contextlib.ExitStack() as mine:
        for site in stream.sites:
            if site.layer in wanted:
                readers[site.layer] = projection.attach(site)
                mine.callback(detach, site)
                # Rehearsed here, because inside a compiled graph nothing could be caught.
                rows = torch.zeros(
                    1, stream.hidden_size, dtype=torch.bfloat16, device=stream.device
                )
                readers[site.layer](rows)
        undo.push(mine.pop_all())
    return readers
