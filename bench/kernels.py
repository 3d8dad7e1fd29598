"""What each device operation of the tap costs on this GPU, beside the least that it can cost.

The floor of an operation is the bytes that it has to move over the bandwidth of a copy, measured on
the same device in the same run. Time is the median over repetitions, between two events of the
device. Before each, a buffer larger than any cache is cleared: that empties the cache, and keeps
the device busy while the host launches, so that launching is not in the figure (what a step costs
the host is `bench.step_path`). Operations that are traced into the model's graph are timed eagerly
and compiled alone by Inductor for that shape; in the graph they may also be fused with the layer.

    python -m bench.kernels [--repetitions N] [--json PATH]

Without a GPU it says so, and prints no figure.
"""

import argparse
import importlib.util
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from bench.machine import describe
from bench.operations import SHAPES, Operation, Shape, operations

BATCHES: Final = (1, 32, 256)
CLEARED_BYTES: Final = 1 << 30  # 0.2 ms and more of any device, and 20 times its largest cache
LEAST_REPETITIONS: Final = 50
_WARM_CALLS: Final = 10
EAGER, COMPILED = "eager", "compiled"


class Timer(Protocol):
    """Measures calls on one device."""

    def seconds(self, call: Callable[[], object]) -> float:
        """Median time that `call` keeps the device."""


@dataclass(frozen=True)
class Row:
    """One line of the table. floor_seconds: the least; per_step: launches in a step by default."""

    shape: str
    batch: int
    operation: str
    mode: str
    per_step: float
    num_bytes: int
    seconds: float
    floor_seconds: float


@dataclass(frozen=True)
class Report:
    """Everything one run measured. empty_seconds: what the clock shows of a call of nothing."""

    copy_bytes_per_second: float
    empty_seconds: float
    rows: list[Row]


class CudaTimer:
    """The clock of a GPU: events, warm calls first, a cleared cache before each repetition."""

    def __init__(self, device: torch.device, repetitions: int) -> None:
        self._repetitions = repetitions
        self._cleared = torch.empty(CLEARED_BYTES, dtype=torch.uint8, device=device)

    def seconds(self, call: Callable[[], object]) -> float:
        """Median over the repetitions."""
        for _ in range(_WARM_CALLS):
            call()
        torch.cuda.synchronize()
        events = [self._launch(call) for _ in range(self._repetitions)]
        torch.cuda.synchronize()
        seconds: list[float] = [start.elapsed_time(end) / 1e3 for start, end in events]
        return statistics.median(seconds)

    def _launch(self, call: Callable[[], object]) -> tuple[Any, Any]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._cleared.zero_()
        start.record()
        call()
        end.record()
        return start, end


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    options = _options(arguments)
    if not torch.cuda.is_available():
        print(f"no figures: PyTorch {torch.__version__} finds no GPU here, and these are a GPU's")
        return
    device = torch.device("cuda", torch.cuda.current_device())
    # Inductor writes a GPU's kernels in Triton.
    backend = "inductor" if importlib.util.find_spec("triton") else None
    timer = CudaTimer(device, options.repetitions)
    report = measure(SHAPES, BATCHES, device, timer, backend)
    print("\n".join(table(report)))
    if options.json:
        _write(options.json, report, device, options.repetitions)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=100, help="of each operation")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args(arguments)
    if options.repetitions < LEAST_REPETITIONS:
        parser.error(f"--repetitions: {LEAST_REPETITIONS} at least, or a median means little")
    return options


@torch.inference_mode()
def measure(
    shapes: Sequence[Shape],
    batches: Sequence[int],
    device: torch.device,
    timer: Timer,
    backend: str | None,
    copied_bytes: int = CLEARED_BYTES,
) -> Report:
    """Time every operation at every shape and batch.

    backend: compiler of `torch.compile` for the traced operations; None leaves them eager.
    copied_bytes: size of the copy that gives the bandwidth.
    """
    bandwidth = _bandwidth(timer, device, copied_bytes)
    empty_seconds = timer.seconds(lambda: None)
    rows = []
    for shape in shapes:
        for batch in batches:
            for operation in operations(shape, batch, device):
                for mode, call in _calls(operation, backend):
                    seconds = timer.seconds(call)
                    rows.append(_row(shape, batch, operation, mode, seconds, bandwidth))
    return Report(bandwidth, empty_seconds, rows)


def _row(
    shape: Shape, batch: int, operation: Operation, mode: str, seconds: float, bandwidth: float
) -> Row:
    num_bytes = operation.num_bytes
    floor = num_bytes / bandwidth
    name, per_step = operation.name, operation.per_step
    return Row(shape.name, batch, name, mode, per_step, num_bytes, seconds, floor)


def _bandwidth(timer: Timer, device: torch.device, num_bytes: int) -> float:
    """Bytes per second of a copy: each is read once and written once."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * num_bytes / timer.seconds(lambda: target.copy_(source))


def _calls(operation: Operation, backend: str | None) -> Iterator[tuple[str, Callable[[], object]]]:
    """How the operation is run, and what runs it."""
    yield EAGER, lambda: operation.function(*operation.arguments)
    if operation.is_traced and backend:
        # Each shape anew: after a few, the compiler would give up or make sizes symbols.
        torch.compiler.reset()
        compiled = torch.compile(operation.function, fullgraph=True, dynamic=False, backend=backend)
        yield COMPILED, lambda: compiled(*operation.arguments)


def table(report: Report) -> Iterator[str]:
    """The report in lines of Markdown."""
    gigabytes = report.copy_bytes_per_second / 1e9
    yield f"copy bandwidth {gigabytes:.0f} GB/s; an empty call {1e6 * report.empty_seconds:.1f} us"
    yield ""
    yield "| shape | batch | operation | mode | per step | MB | time, us | floor, us | x floor |"
    yield "|---|---:|---|---|---:|---:|---:|---:|---:|"
    for row in report.rows:
        named = f"{row.shape} | {row.batch} | {row.operation} | {row.mode} | {row.per_step:g}"
        times = f"{1e6 * row.seconds:.1f} | {1e6 * row.floor_seconds:.2f}"
        ratio = row.seconds / row.floor_seconds
        yield f"| {named} | {row.num_bytes / 1e6:.3f} | {times} | {ratio:.1f} |"


def _write(path: Path, report: Report, device: torch.device, repetitions: int) -> None:
    gpu = torch.cuda.get_device_properties(device)
    result = {
        "benchmark": "kernels",
        "machine": describe("torch", "numpy")
        | {"gpu": gpu.name, "gpu_memory_bytes": gpu.total_memory, "cuda": torch.version.cuda},
        "repetitions": repetitions,
        "shapes": [shape._asdict() for shape in SHAPES],
        **asdict(report),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
