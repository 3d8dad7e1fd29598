"""What one step costs outside the graph: plan (host), collect (device), add (pump thread).

One thread, synthetic rows, no engine; microseconds, median over repeats.

    python -m bench.step_path [--quick] [--json PATH]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from bench.machine import describe
from sidecar.tap.ledger import Ledger
from sidecar.tap.rows import Batch, Plan, RowMap
from sidecar.tap.slab import Slab

NUM_LAYERS = 28
CASES = ((1, 1), (8, 1), (32, 1), (4, 512))  # requests, rows of each


@dataclass(frozen=True)
class Row:
    """Microseconds per step."""

    requests: int
    rows_each: int
    plan: float
    collect: float
    add: float


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    repeats = 20 if options.quick else 200
    rows = [_measure(requests, each, repeats) for requests, each in CASES]
    print("| requests | rows each | plan, us | collect, us | add, us |")
    print("|---:|---:|---:|---:|---:|")
    for row in rows:
        costs = f"{row.plan:.0f} | {row.collect:.0f} | {row.add:.0f}"
        print(f"| {row.requests} | {row.rows_each} | {costs} |")
    if options.json:
        result = {"benchmark": "step_path", "machine": describe("torch", "numpy")}
        result |= {"num_layers": NUM_LAYERS, "rows": [asdict(row) for row in rows]}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def _measure(requests: int, each: int, repeats: int) -> Row:
    slab = Slab(NUM_LAYERS, requests * each, 4 * requests, torch.device("cpu"))
    slab.rows.uniform_(0.5, 1.0)
    ledger = Ledger(list(range(NUM_LAYERS)), requests)
    row_map, names, ends = RowMap(requests), [f"r{i}" for i in range(requests)], [0]

    def plan() -> Plan:
        start, ends[0] = ends[0], ends[0] + each
        starts, counts = np.full(requests, start), np.full(requests, each)
        prompts = np.full(requests, 4 if each == 1 else 1 << 30)
        return row_map.plan(Batch(names, starts, counts, prompts))

    for _ in range(10):
        settled = plan()
    result = slab.collect(settled)
    if result is None:
        raise RuntimeError("no room for the step")
    sums, bounds, _ = slab.read(result, settled.num_groups)
    slab.release(result)

    def collect() -> None:
        filled = slab.collect(settled)
        if filled is not None:
            slab.release(filled)

    return Row(
        requests,
        each,
        median(plan, repeats),
        median(collect, repeats),
        median(lambda: ledger.add(settled, sums, bounds, 1), repeats),
    )


def median(call: Callable[[], object], repeats: int) -> float:
    """Microseconds that a call takes."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return 1e6 * statistics.median(seconds)


if __name__ == "__main__":
    main()
