"""What a scrape costs: CPU of our writer over that of the stock client, for the same series.

    python -m bench.scrape [--json FILE]

Synthetic frames of one engine; the best of some turns, since other work on the machine only adds.
Each line is one size of model, with every series there is or by the default selection; `stock` is
prometheus_client's own encoder on families read back from our text, so that both write the same
samples. Then a real `sidecar serve` of the largest model is scraped without a pause while
another client asks for /healthz.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import httpx
import numpy as np
from prometheus_client import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from bench.machine import describe
from sidecar.fold.reducer import Limits, Reducer, Snapshot
from sidecar.publish.metrics.exposition import Exposition
from sidecar.publish.metrics.selection import Selection
from sidecar.wire.channel import Sender
from sidecar.wire.frame import Body, Frame, Header, Source, pack, unpack
from sidecar.wire.synthetic import SyntheticEngine

NOW: Final = 1_790_000_000 * 10**9
TURNS: Final = 7
WARM_UP_SECONDS: Final = 15.0  # the first window has closed by then
LOOK_SECONDS: Final = 20.0
LARGEST: Final = (97, 128, 256)  # some 50,000 series
MODELS: Final = {
    "6 layers, 4 heads, 8 experts": (6, 4, 8),
    "32 layers, 32 heads, 8 experts": (32, 32, 8),
    "80 layers, 64 heads, 8 experts": (80, 64, 8),
    "61 layers, 128 heads, 256 experts": (61, 128, 256),
    "97 layers, 128 heads, 256 experts": LARGEST,
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


def measure(model: str, selection: Selection) -> Row:
    """Render the same snapshot in turns, as scrapes after the first one do."""
    num_layers, num_heads, num_experts = MODELS[model]
    engine = SyntheticEngine(num_layers, num_heads=num_heads, num_experts=num_experts)
    snapshot = _snapshot(engine)
    exposition = Exposition(1_000_000, selection, collectors={})
    body = exposition.render(snapshot)
    registry = told_again(body)
    return Row(
        model,
        sum(len(family.samples) for family in registry.collect()),
        len(body),
        _best_ms(lambda: exposition.render(snapshot)),
        _best_ms(lambda: gzip.compress(body, compresslevel=1)),
        _best_ms(lambda: generate_latest(registry)),
    )


def told_again(body: bytes) -> CollectorRegistry:
    """What the stock client would write the same samples from."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Told(list(text_string_to_metric_families(body.decode()))))
    return registry


def main() -> None:
    """Print one table; write JSON when asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    choices = {"everything": Selection.everything(), "default": Selection()}
    rows = [
        measure(model, chosen)._replace(model=f"{model}, {name}")
        for model in MODELS
        for name, chosen in choices.items()
    ]
    print("| model | series | MB | ours, ms | us a series | gzip, ms | stock, ms | stock / ours |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row.model} | {row.series} | {row.bytes / 1e6:.1f} | {row.ours_ms:.1f} "
            f"| {1e3 * row.ours_ms / row.series:.2f} | {row.gzip_ms:.1f} | {row.stock_ms:.1f} "
            f"| {row.stock_ms / row.ours_ms:.1f} |"
        )
    health = serve_and_scrape()
    print(
        f"\n/healthz beside {health.num_scrapes} scrapes of {health.num_series} series without a "
        f"pause: p50 {health.p50_ms:.1f} ms, p99 {health.p99_ms:.1f} ms of {health.num_looks}; "
        f"a scrape took {health.scrape_cpu_ms:.0f} ms of the server's CPU"
    )
    if arguments.json:
        result = {
            "health": health._asdict(),
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


class Health(NamedTuple):
    """How a server answers while it is scraped without a pause; of its CPU, all but idling."""

    num_series: int
    num_scrapes: int
    num_looks: int
    p50_ms: float
    p99_ms: float
    scrape_cpu_ms: float


def serve_and_scrape() -> Health:
    """Start a sidecar, tell it of the largest model, and look at it from two sides."""
    with tempfile.TemporaryDirectory(prefix="scrape-") as folder:
        choice = Path(folder) / "metrics.toml"
        choice.write_text(
            (Path(__file__).parents[1] / "examples/metrics_everything.toml").read_text()
        )
        socket = Path(folder) / "ingest.sock"
        command = [sys.executable, "-m", "sidecar", "serve", "--metrics-host", "127.0.0.1"]
        command += ["--metrics-port", "0", "--api-port", "0", "--socket", str(socket)]
        command += ["--metrics-file", str(choice), "--series-cap", "100000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            url = server.stdout.readline().split("metrics ")[1].rstrip("/")
            try:
                return _look(server.pid, url, Sender(socket, Source("engine")))
            finally:
                server.terminate()


def _look(pid: int, url: str, sender: Sender) -> Health:
    num_layers, num_heads, num_experts = LARGEST
    engine = SyntheticEngine(num_layers, num_heads=num_heads, num_experts=num_experts)
    over = threading.Event()
    looks: list[float] = []

    def tell() -> None:
        while not over.wait(1.0):
            bodies: list[Body] = [engine.status(), engine.step((4, 60, 2, 8)), engine.tables()]
            for body in bodies:
                sender.send(body)

    def ask() -> None:
        with httpx.Client(trust_env=False) as client:
            while not over.wait(0.01):
                started = time.perf_counter()
                client.get(f"{url}/healthz").raise_for_status()
                looks.append(1e3 * (time.perf_counter() - started))

    threads = [threading.Thread(target=tell), threading.Thread(target=ask)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(WARM_UP_SECONDS)
        looks.clear()
        num_scrapes, num_series, cpu = _scrape(pid, url)
    finally:
        over.set()
        for thread in threads:
            thread.join()
        sender.close()
    p50, p99 = np.percentile(looks, (50, 99)).tolist()
    return Health(num_series, num_scrapes, len(looks), p50, p99, 1e3 * cpu / num_scrapes)


def _scrape(pid: int, url: str) -> tuple[int, int, float]:
    until, before, num_scrapes, text = time.monotonic() + LOOK_SECONDS, _cpu_seconds(pid), 0, ""
    with httpx.Client(trust_env=False, timeout=30) as client:
        while time.monotonic() < until:
            text = client.get(f"{url}/metrics").raise_for_status().text
            num_scrapes += 1
    num_series = sum(not line.startswith("#") for line in text.splitlines())
    return num_scrapes, num_series, _cpu_seconds(pid) - before


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _best_ms(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(TURNS):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return 1e3 * min(seconds)


if __name__ == "__main__":
    main()
