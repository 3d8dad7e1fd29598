"""What a scrape costs: CPU of our writer over that of the stock client, for the same series.

    python -m bench.scrape [--json FILE]

Synthetic frames of one engine; the best of some turns, since other work on the machine only adds.
Each line is one size of model; `stock` is prometheus_client's own encoder on families read back
from our text, so that both write the same samples.
"""

import argparse
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from bench.machine import describe
from sidecar.fold.reducer import Limits, Reducer, Snapshot
from sidecar.publish.metrics import Exposition
from sidecar.wire.frame import Body, Frame, Header, Source, pack, unpack
from sidecar.wire.synthetic import SyntheticEngine

NOW: Final = 1_790_000_000 * 10**9
TURNS: Final = 7
MODELS: Final = {
    "6 layers, 4 heads, 8 experts": (6, 4, 8),
    "32 layers, 32 heads, 8 experts": (32, 32, 8),
    "80 layers, 64 heads, 8 experts": (80, 64, 8),
    "61 layers, 128 heads, 256 experts": (61, 128, 256),
}


class Row(NamedTuple):
    """One line of the table; milliseconds of CPU."""

    model: str
    series: int
    bytes: int
    ours_ms: float
    gzip_ms: float
    stock_ms: float


class _Told(Collector):
    """Families that the stock client writes."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def measure(model: str, num_layers: int, num_heads: int, num_experts: int) -> Row:
    """Render the same snapshot in turns, as scrapes after the first one do."""
    engine = SyntheticEngine(num_layers, num_heads=num_heads, num_experts=num_experts)
    snapshot = _snapshot(engine)
    exposition = Exposition(1_000_000, collectors={})
    body, _ = exposition.render(snapshot, "")
    told = list(text_string_to_metric_families(body.decode()))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Told(told))
    return Row(
        model,
        sum(len(family.samples) for family in told),
        len(body),
        _best_ms(lambda: exposition.render(snapshot, "")),
        _best_ms(lambda: gzip.compress(body, compresslevel=1)),
        _best_ms(lambda: generate_latest(registry)),
    )


def main() -> None:
    """Print one table; write JSON when asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = [measure(model, *sizes) for model, sizes in MODELS.items()]
    print("| model | series | MB | ours, ms | us a series | gzip, ms | stock, ms | stock / ours |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row.model} | {row.series} | {row.bytes / 1e6:.1f} | {row.ours_ms:.1f} "
            f"| {1e3 * row.ours_ms / row.series:.2f} | {row.gzip_ms:.1f} | {row.stock_ms:.1f} "
            f"| {row.stock_ms / row.ours_ms:.1f} |"
        )
    if arguments.json:
        result = {
            "machine": describe("numpy", "prometheus-client"),
            "turns": TURNS,
            "rows": [row._asdict() for row in rows],
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def _snapshot(engine: SyntheticEngine) -> Snapshot:
    reducer = Reducer(Limits(30 * 10**9, 10 * 10**9))
    source, seq = Source("engine"), 0
    for second in (0, 5, 12):
        t_ns = NOW + second * 10**9
        bodies: list[Body] = [engine.status(), engine.step((4, 60, 2, 8)), engine.tables()]
        for body in bodies:
            seq += 1
            header = Header("boot-one", source, seq, t_ns, 0, 0)
            reducer.update(unpack(pack(Frame(header, body))), t_ns)
    return reducer.get(NOW + 12 * 10**9)


def _best_ms(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(TURNS):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return 1e3 * min(seconds)


if __name__ == "__main__":
    main()
