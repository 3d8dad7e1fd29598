"""A fleet simulated replica by replica: what Prometheus, sockets, merge and contrast take.

    python -m bench.fleet [--quick] [--json PATH]

1,000 replicas of a dense 80-layer model on eight ranks each: the shipped fold, renderer, baseline
merge and replica contrast on synthetic frames, in one process. CPU seconds of one thread. What it
comes to for more GPUs is arithmetic, and stands in docs/scale.md (`bench.performance`).
"""

import argparse
import gzip
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from bench import report
from bench.capacity.frames import Stream
from bench.capacity.growth import NOW, intake
from bench.reference import LAYOUT, filled
from bench.report import Section, progress
from sidecar.fold.drift.contrast import MAX_REPLICAS, ContrastChannel
from sidecar.fold.drift.moments import Moments
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.window import LENGTH_NS, Window
from sidecar.publish.intake import Intake
from sidecar.publish.metrics.exposition import Exposition
from sidecar.publish.metrics.selection import Selection
from sidecar.store.baseline_file import read_file, write_baseline
from sidecar.wire.frame import Body, Source, Totals
from sidecar.wire.synthetic import SyntheticEngine

NUM_LAYERS: Final = 80
NUM_RANKS: Final = 8
NUM_HEADS: Final = 64
REQUESTS_A_SECOND: Final = 4  # of a replica
WINDOW_REQUESTS: Final = 120  # of a replica and window, for the contrast
NUM_STRATA: Final = 12
PACKAGES: Final = ("numpy", "msgspec")
SEED: Final = 7


class Size(NamedTuple):
    """Replicas; seconds of frames of each; windows of each baseline, and of the contrast."""

    replicas: int = 1000
    seconds: int = 3
    windows: int = 288
    contrasted: int = 6


class Replicas(NamedTuple):
    """What one replica publishes and sends, medians; and CPU of folding and of a scrape."""

    series: int
    scrape_bytes: int
    scrape_gzip_bytes: int
    socket_bytes_a_second: float
    frames_a_second: float
    fold_ms_a_second: float
    scrape_ms: float


class Merge(NamedTuple):
    """Baselines of all replicas, added up: CPU seconds, and bytes of one and of the sum."""

    baselines: int
    read_seconds: float
    merge_seconds: float
    one_bytes: int
    whole_bytes: int


class Contrast(NamedTuple):
    """One job over as many replicas as it holds: CPU of a window, bytes of its state."""

    replicas: int
    streams: int
    window_ms: float
    state_bytes: int
    judged: int
    pages: int


def main() -> None:
    """Print one table; write JSON when asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer replicas: under a minute")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    size = Size(24, 2, 24, 3) if options.quick else Size()
    started = time.monotonic()
    section = run(size)
    progress("")
    print("\n".join(report.table(section)))
    if options.json:
        command = "python -m bench.fleet" + " --quick" * options.quick + f" --json {options.json}"
        done = report.Run("fleet", command, time.monotonic() - started, SEED)
        report.write(options.json, done, section, PACKAGES)


def run(size: Size) -> Section:
    """Simulate, and tell the sums."""
    one, merge, contrast = replicas(size), merging(size), contrasting(size)
    num = size.replicas
    rows = [
        ["series", f"{one.series:,}", f"{num * one.series:,}"],
        ["scrape, KB compressed", f"{one.scrape_gzip_bytes / 1e3:.0f}", _kb(num, one)],
        ["scrape, ms of CPU", f"{one.scrape_ms:.1f}", f"{num * one.scrape_ms:,.0f}"],
        ["frames/s", f"{one.frames_a_second:.0f}", f"{num * one.frames_a_second:,.0f}"],
        ["socket, MB/s, within the pod", _mb(one, 1), _mb(one, num)],
        ["folding, ms of CPU a second", f"{one.fold_ms_a_second:.1f}", ""],
        ["reading its baseline, ms", _ms(merge.read_seconds, num), f"{merge.read_seconds:.1f} s"],
        ["merging it, ms", _ms(merge.merge_seconds, num), f"{merge.merge_seconds:.1f} s"],
        [
            f"contrast of {contrast.replicas} replicas, ms of CPU a window",
            f"{contrast.window_ms / contrast.replicas:.2f}",
            f"{contrast.window_ms * num / contrast.replicas:,.0f}",
        ],
    ]
    parts = {"replica": one, "merge": merge, "contrast": contrast}
    return Section(
        f"A fleet of {num:,} replicas",
        ("", "of one", f"of {num:,}"),
        rows,
        {"size": size._asdict()} | {name: part._asdict() for name, part in parts.items()},
        _notes(size, merge, contrast),
    )


def _notes(size: Size, merge: Merge, contrast: Contrast) -> list[str]:
    shape = f"{NUM_LAYERS} layers, {NUM_HEADS} heads, {NUM_RANKS} ranks"
    bytes_of = f"{merge.one_bytes / 1e6:.1f} MB each, {merge.whole_bytes / 1e6:.1f} MB merged"
    judged = f"Of {contrast.judged} windows of replicas that are alike, {contrast.pages} paged"
    state = f"its state is {contrast.state_bytes / 1e6:.1f} MB"
    return [
        f"Each: {shape}, {REQUESTS_A_SECOND} requests/s, default selection of series.",
        f"Baselines of {size.windows} windows and {NUM_STRATA} strata: {bytes_of}.",
        f"A job contrasts {MAX_REPLICAS} replicas at most; {state}. {judged}.",
    ]


def replicas(size: Size) -> Replicas:
    """Each replica has a sidecar of its own, made and dropped in turn."""
    engines = [_bodies(rank) for rank in range(NUM_RANKS)]
    found = []
    for number in range(size.replicas):
        found.append(_replica(engines, size.seconds))
        progress(f"fleet: replica {number + 1} of {size.replicas}")
    return Replicas(*(type(column[0])(median(column)) for column in zip(*found, strict=True)))


def _bodies(rank: int) -> list[Body]:
    """What a rank says in a second: layers and requests are told by the first alone."""
    engine = SyntheticEngine(NUM_LAYERS, seed=rank, num_heads=NUM_HEADS // NUM_RANKS, num_experts=0)
    tables = engine.tables()
    dense = Totals([table for table in tables.tables if _is_dense(table.group, rank)])
    bodies: list[Body] = [engine.status(), dense]
    if rank == 0:
        requests = engine.requests(REQUESTS_A_SECOND, NOW)
        bodies += [engine.step(), requests, engine.signatures(REQUESTS_A_SECOND, NOW)]
    return bodies


def _is_dense(group: str, rank: int) -> bool:
    return group == "attention" or (rank == 0 and group not in ("router", "expert_load"))


def _replica(engines: list[list[Body]], seconds: int) -> tuple[float, ...]:
    into = intake()
    streams = [Stream(Source("engine", tp=rank)) for rank in range(NUM_RANKS)]
    num_bytes = num_frames = 0
    used = 0.0
    for _ in range(seconds):
        pairs = zip(streams, engines, strict=True)
        packed = [stream.message(body, NOW) for stream, bodies in pairs for body in bodies]
        num_bytes += sum(len(each) for each in packed)
        num_frames += len(packed)
        used += _cpu(partial(_accept, into, packed))[0]
    exposition = Exposition(100_000, Selection())
    exposition.render(into.get())
    scrape, body = _cpu(lambda: exposition.render(into.get()))
    series = sum(not line.startswith(b"#") for line in body.splitlines())
    return (
        series,
        len(body),
        len(gzip.compress(body, compresslevel=1)),
        num_bytes / seconds,
        num_frames / seconds,
        1e3 * used / seconds,
        1e3 * scrape,
    )


def _accept(into: Intake, messages: list[bytes]) -> None:
    for each in messages:
        into.accept(each)


def merging(size: Size) -> Merge:
    """Read and add up as many baselines as replicas; a few different ones, over and over."""
    rng = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        paths = [Path(folder) / f"{number}.baseline" for number in range(3)]
        for path in paths:
            fit = filled(rng, size.windows, NUM_STRATA)
            write_baseline(path, fit.get(), fit)
        whole = filled(rng, size.windows, NUM_STRATA)
        read = merge = 0.0
        for number in range(size.replicas):
            progress(f"fleet: baseline {number + 1} of {size.replicas}")
            path = paths[number % len(paths)]
            took, file = _cpu(partial(read_file, path))
            read += took
            if file.fit is None:
                raise RuntimeError("a baseline was written without what merging needs")
            merge += _cpu(partial(whole.merge, file.fit))[0]
        sum_path = Path(folder) / "whole.baseline"
        write_baseline(sum_path, whole.get(), whole)
        sizes = paths[0].stat().st_size, sum_path.stat().st_size
    return Merge(size.replicas, read, merge, *sizes)


def contrasting(size: Size) -> Contrast:
    """Windows of one job's replicas, alike but for chance; the first one is not judged."""
    num = min(size.replicas, MAX_REPLICAS)
    schema = Schema.of(LAYOUT)
    channel = ContrastChannel(schema)
    names = [f"replica-{number}" for number in range(num)]
    channel.expect(names)
    rng = np.random.default_rng(SEED)
    took = []
    for index in range(size.contrasted + 1):
        progress(f"fleet: contrast, window {index} of {size.contrasted}")
        windows = dict(zip(names, _windows(rng, schema.num_streams, index, num), strict=True))
        took.append(_cpu(partial(_told, channel, windows))[0])
    state = len(msgspec.msgpack.encode(channel.export()))
    counts = channel.counts.judged, channel.num_pages
    return Contrast(num, schema.num_streams, 1e3 * median(took[1:]), state, *counts)


def _told(channel: ContrastChannel, windows: dict[str, Window]) -> None:
    for name, window in windows.items():
        channel.update(name, window)


def _windows(rng: np.random.Generator, num_streams: int, index: int, num: int) -> Iterator[Window]:
    start_ns = NOW // LENGTH_NS * LENGTH_NS + index * LENGTH_NS
    each = WINDOW_REQUESTS // NUM_STRATA
    for _ in range(num):
        strata = {}
        for place in range(NUM_STRATA):
            moments = Moments(num_streams)
            moments.update(rng.normal(place, 1.0, (each, num_streams)))
            strata[f"-|-|p64-127|g{place}"] = moments
        yield Window(start_ns, start_ns + LENGTH_NS, WINDOW_REQUESTS, strata)


def _cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.thread_time()
    made = work()
    return time.thread_time() - started, made


def _kb(num: int, one: Replicas) -> str:
    return f"{num * one.scrape_gzip_bytes / 1e3:,.0f}"


def _mb(one: Replicas, num: int) -> str:
    return f"{num * one.socket_bytes_a_second / 1e6:,.2f}"


def _ms(seconds: float, num: int) -> str:
    return f"{1e3 * seconds / num:.1f}"


if __name__ == "__main__":
    main()
