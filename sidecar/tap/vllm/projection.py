"""Sketches and probes, fitted into a worker: on the first rank of a tensor-parallel group alone.

The residual stream is the same on every rank of such a group; each stage of a pipeline reads the
layers it has. A probe file that cannot be used costs the probes, and nothing else.
"""

import contextlib

import msgspec
import torch

from sidecar.errors import TapRefused
from sidecar.tap import probe_file
from sidecar.tap.probe_file import Probe
from sidecar.tap.projection import Projection, detach
from sidecar.tap.signature import evenly
from sidecar.tap.sketch import Sketching
from sidecar.tap.vllm.fitting import Workbench
from sidecar.wire.fields import MAX_LONG_TEXT


def fit(bench: Workbench) -> None:
    """Have the chosen layers read, and put what is read into requests and signatures."""
    if bench.source.tp:
        return
    sketching, probes = _sketching(bench), _probes(bench)
    if not sketching.layers and not probes:
        return
    projection = Projection(
        sketching,
        probes,
        _hidden_size(bench),
        bench.capacity,
        bench.max_groups,
        2 * bench.max_requests,
        bench.device,
    )
    _attach(bench, projection)
    kit = bench.instruments
    kit.rows.append(projection)
    kit.sketches = projection.sketches.of
    kit.layout = msgspec.structs.replace(
        kit.layout,
        sketch_layers=sketching.layers,
        sketch_size=sketching.size,
        sketch_seed=sketching.seed,
        probes=[probe.name for probe in probes],
    )


def _sketching(bench: Workbench) -> Sketching:
    """What is sketched on this rank: of the same layers, however the model is split."""
    config = bench.config
    if config.signatures and config.sketch_size > _hidden_size(bench):
        bench.instruments.absent["sketch"] = (
            f"{config.sketch_size} orthonormal directions do not fit into the model's hidden size "
            f"of {_hidden_size(bench)}; lower SIDECAR_SKETCH_SIZE"
        )
    elif config.signatures:
        chosen = evenly(list(range(_num_layers(bench))), config.sketch_layers)
        layers = sorted(set(chosen) & set(bench.layer_ids))
        if layers:
            return Sketching(layers, config.sketch_size, config.sketch_seed)
    return Sketching([], 0, 0)


def _probes(bench: Workbench) -> list[Probe]:
    """The probes at layers of this rank."""
    path = bench.config.probe_file
    if path is None:
        return []
    try:
        probes = probe_file.read(path, _num_layers(bench), _hidden_size(bench))
    except TapRefused as error:
        bench.instruments.absent["probe"] = str(error)[:MAX_LONG_TEXT]
        return []
    return [probe for probe in probes if probe.layer in bench.layer_ids]


def _attach(bench: Workbench, projection: Projection) -> None:
    wanted = set(projection.layers)
    readers = {}
    with contextlib.ExitStack() as undo:
        for site in bench.sites:
            if site.layer in wanted:
                readers[site.layer] = projection.attach(site)
                undo.callback(detach, site)
                # Rehearsed here, because inside a compiled graph nothing could be caught.
                stream = torch.zeros(
                    1, _hidden_size(bench), dtype=torch.bfloat16, device=bench.device
                )
                readers[site.layer](stream)
        bench.undo.push(undo.pop_all())
    bench.readers.update(readers)


def _num_layers(bench: Workbench) -> int:
    """Decoder layers of the whole model, over all stages of a pipeline."""
    return int(bench.vllm_config.model_config.get_total_num_hidden_layers())


def _hidden_size(bench: Workbench) -> int:
    return int(bench.vllm_config.model_config.get_hidden_size())
