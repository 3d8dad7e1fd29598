"""Sketches and probes, fitted into a worker: on the first rank of a tensor-parallel group alone.

The residual stream is the same on every rank of such a group; each stage of a pipeline reads the
layers it has.
"""

from sidecar.tap import readings
from sidecar.tap.readings import Stream
from sidecar.tap.vllm.fitting import Workbench


def fit(bench: Workbench) -> None:
    """Have the chosen layers read, and put what is read into requests and signatures."""
    if bench.source.tp:
        return
    model = bench.vllm_config.model_config
    stream = Stream(
        bench.sites,
        int(model.get_total_num_hidden_layers()),
        int(model.get_hidden_size()),
        bench.capacity,
        bench.max_groups,
        bench.max_requests,
        bench.device,
    )
    bench.readers.update(readings.fit(bench.config, stream, bench.instruments, bench.undo))
