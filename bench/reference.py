"""What the reference of drift costs and gains: clipping, buckets in own units, size of its file.

    python -m bench.reference [--windows 4032] [--strata 12] [--quick] [--json PATH]

Prints one table per question; takes about a minute. The figures of docs/decisions/0012 are its.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from sidecar.fold.drift.cells import Sums
from sidecar.fold.drift.fit import Fit
from sidecar.fold.drift.header import Header
from sidecar.fold.drift.moments import Moments
from sidecar.fold.drift.plan import CLIP_SD, Plan
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.spread import PER_OCTAVE, Spread
from sidecar.fold.drift.strata import OTHER
from sidecar.fold.drift.window import LENGTH_NS, Window
from sidecar.store.baseline_file import read_baseline, read_file, write_baseline
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout

LAYOUT = Layout(list(range(8)), [0, 7], [], [0, 4, 7], 16, 7)
REQUESTS = 60  # of a window
Result = TypeVar("Result")


def clipping(rng: np.random.Generator) -> dict[str, list[float]]:
    """Windows without drift: how far their means lie, with and without winsorising."""
    print("means of 4000 windows of 60 requests without drift, in sd of these means")
    print(f"{'values':16}{'sd raw':>10}{'sd clipped':>12}{'largest raw':>13}{'clipped':>10}")
    worlds: dict[str, Callable[[tuple[int, int]], np.ndarray]] = {
        "normal": rng.standard_normal,
        "Student, 5 df": lambda shape: rng.standard_t(5, shape),
        "Student, 2.5 df": lambda shape: rng.standard_t(2.5, shape),
        "lognormal, 1.5": lambda shape: rng.lognormal(0, 1.5, shape),
    }
    found = {}
    for name, draw in worlds.items():
        raw = draw((4000, REQUESTS))
        reach = CLIP_SD * raw.std()
        clipped = np.clip(raw, raw.mean() - reach, raw.mean() + reach)
        a, b = (values.mean(1) - values.mean() for values in (raw, clipped))
        largest = np.abs(a).max() / a.std(), np.abs(b).max() / b.std()
        print(f"{name:16}{a.std():10.3f}{b.std():12.3f}{largest[0]:13.1f}{largest[1]:10.1f}")
        found[name] = [float(value) for value in (a.std(), b.std(), *largest)]
    return found


def buckets(rng: np.random.Generator) -> dict[str, int]:
    """Buckets that a log RMS of 3.20 +- 0.02 falls into."""
    values = 3.2 + 0.02 * rng.standard_normal(100_000)
    raw = np.unique(np.floor(np.log2(values) * PER_OCTAVE))
    spread = Spread(1)
    reach = np.array([CLIP_SD * 0.02])
    spread.update(values[:, None], 3.2 - reach, 3.2 + reach)
    own = np.count_nonzero(spread.get())
    print(f"\nbuckets of base 2^(1/8) used by 3.20 +- 0.02: {len(raw)} raw, {own} in own units")
    return {"raw": len(raw), "own": int(own)}


def size(rng: np.random.Generator, num_windows: int, num_strata: int) -> dict[str, float]:
    """Bytes and seconds of a baseline, with and without what merging needs."""
    fit = filled(rng, num_windows, num_strata)
    seconds = {}
    baseline, seconds["fit.get"] = timed(fit.get)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "baseline"
        _, seconds["write"] = timed(lambda: write_baseline(path, baseline, fit))
        whole = path.stat().st_size
        _, seconds["read"] = timed(lambda: read_baseline(path))
        _, seconds["read to merge"] = timed(lambda: read_file(path))
        write_baseline(path, baseline)
        small = path.stat().st_size
    strata = dict(zip(fit.plan.strata, baseline.strata, strict=True))
    window = Window(0, LENGTH_NS, 20 * num_strata, strata)
    seconds["score"] = min(timed(lambda: baseline.score(window))[1] for _ in range(50))
    streams = baseline.schema.num_streams
    print(f"\n{num_windows} windows, {num_strata} strata, {streams} streams:")
    print(f"{'file':16}{small / 1e6:10.1f} MB\n{'mergeable':16}{whole / 1e6:10.1f} MB")
    for name, took in seconds.items():
        print(f"{name:16}{1000 * took:10.1f} ms")
    return {"file_bytes": small, "mergeable_bytes": whole, **seconds}


def filled(rng: np.random.Generator, num_windows: int, num_strata: int) -> Fit:
    """A fit of 20 requests in each cell and stratum, without the detour over signatures."""
    num_streams = Schema.of(LAYOUT).num_streams
    names = (*(f"-|-|p64-127|g{i}" for i in range(num_strata - 1)), OTHER)
    open_ended = np.full((num_strata, num_streams), np.inf)
    plan = Plan(names, frozenset(), -open_ended, open_ended)
    fit = Fit(Header(Identity(dtype="bfloat16"), LAYOUT), plan)
    for k in range(num_windows):
        for place in range(num_strata):
            batch = Moments(num_streams)
            batch.update(rng.normal(3, 0.1, (20, num_streams)).astype(np.float32).astype(float))
            fit._strata[place].merge(batch)
            sums = Sums(batch.num_rows, batch.n, batch.total)
            fit._cells.update(k * LENGTH_NS, place, sums)
    return fit


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """What `work` gives, and the seconds it took."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=4032)
    parser.add_argument("--strata", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="one day of windows")
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    generator = np.random.default_rng(0)
    num_windows = 288 if parsed.quick else parsed.windows
    results = {
        "clipping": clipping(generator),
        "buckets": buckets(generator),
        "size": size(generator, num_windows, parsed.strata),
    }
    if parsed.json:
        parsed.json.write_text(json.dumps(results, indent=1))
