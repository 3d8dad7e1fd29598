"""What a scan costs in one step: idle and collect (engine's thread), account (pump thread).

One thread, synthetic rows of 28 layers, no engine; microseconds, median over repeats.

    python -m bench.scan_path [--json PATH]
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from bench.machine import describe
from bench.step_path import NUM_LAYERS, median
from sidecar.tap.orders import Wish
from sidecar.tap.roster import Roster
from sidecar.tap.rows import Batch, RowMap
from sidecar.tap.scan import Scanner
from sidecar.tap.slab import Slab

REPEATS = 300
IDLE_CALLS = 1000  # at a time: one is shorter than what the clock resolves well
CASES = ((32, 1, 1), (32, 8, 1), (1, 1, 400))  # requests, of them scanned, rows of each


@dataclass(frozen=True)
class Row:
    """Microseconds per step."""

    requests: int
    scanned: int
    rows_each: int
    idle: float
    collect: float
    account: float


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [_measure(*case) for case in CASES]
    print("| requests | of them scanned | rows each | idle, us | collect, us | account, us |")
    print("|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        costs = f"{row.idle:.2f} | {row.collect:.0f} | {row.account:.0f}"
        print(f"| {row.requests} | {row.scanned} | {row.rows_each} | {costs} |")
    if options.json:
        result = {"benchmark": "scan_path", "machine": describe("torch", "numpy")}
        result |= {"num_layers": NUM_LAYERS, "rows": [asdict(row) for row in rows]}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def _measure(requests: int, scanned: int, each: int) -> Row:
    slab = Slab(NUM_LAYERS, max(64, requests * each), 4 * requests, torch.device("cpu"))
    slab.rows.uniform_(0.5, 1.0)
    scanner, roster, obeyed = Scanner(list(range(NUM_LAYERS)), slab), Roster(), Wish("", 0)
    idle = median(lambda: [scanner.is_busy(obeyed) for _ in range(IDLE_CALLS)], REPEATS)
    names = [f"r{number}" for number in range(requests)]
    wish, collects, accounts = Wish("w", scanned), [], []
    for _ in range(REPEATS):  # each time the first step of requests that nobody has seen
        batch = Batch(names, *(np.full(requests, number) for number in (0, each, each)))
        scanner = Scanner(list(range(NUM_LAYERS)), slab)
        plan = RowMap(requests).plan(batch)
        started = time.perf_counter()
        picked = scanner.collect(batch, plan, wish, roster) if scanner.is_busy(wish) else None
        collected = time.perf_counter()
        if picked is None or len(picked.owners) != scanned * each:
            raise RuntimeError("not every row was collected")
        scanner.account(picked, None)
        collects.append(collected - started)
        accounts.append(time.perf_counter() - collected)
    medians = (1e6 * statistics.median(seconds) for seconds in (collects, accounts))
    return Row(requests, scanned, each, idle / IDLE_CALLS, *medians)


if __name__ == "__main__":
    main()
