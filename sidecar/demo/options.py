"""What the user chose for one run of the demo.

Guarantee: every value is checked when it is read, so nothing later meets a port outside
1..65535, a rate outside 0..50 requests/s, or a relative path.
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sidecar.config import API_PORT, METRICS_PORT

HOST: Final = "127.0.0.1"
VLLM_PORT: Final = 8000
MODEL: Final = Path(__file__).parent / "model"
GREATEST_RATE: Final = 50.0


@dataclass(frozen=True, slots=True)
class Options:
    """One run of the demo.

    port, metrics_port, api_port: where vLLM, /metrics and the API are served, on loopback.
    rate: requests per second that the traffic generator sends, on average.
    seconds: time of traffic before the demo ends by itself; None means until Ctrl-C.
    seed: of prompts, lengths, temperatures and pauses; not of what is sampled.
    model: folder of the model. cache: folder for compiled graphs and logs.
    start_seconds: longest time that one server may take to become ready.
    tamper: whether the served model is tampered with as soon as the canary is armed.
    """

    port: int = VLLM_PORT
    metrics_port: int = METRICS_PORT
    api_port: int = API_PORT
    rate: float = 2.0
    seconds: float | None = None
    seed: int = 0
    model: Path = MODEL
    cache: Path = Path(".cache")
    start_seconds: float = 600.0
    tamper: bool = False

    @property
    def vllm_url(self) -> str:
        """Address of the vLLM server."""
        return f"http://{HOST}:{self.port}"

    @property
    def metrics_url(self) -> str:
        """Address of /metrics and of health."""
        return f"http://{HOST}:{self.metrics_port}"

    @property
    def api_url(self) -> str:
        """Address of the API."""
        return f"http://{HOST}:{self.api_port}"


def parse(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> Options:
    """Options from a command line; prints usage and exits with 2 when one is wrong."""
    parser = argparse.ArgumentParser(
        prog="sidecar demo",
        description="Serve the bundled model with the tap on, send it requests, show internals.",
    )
    for option, default, what in (
        ("--port", VLLM_PORT, "port of the vLLM server"),
        ("--metrics-port", METRICS_PORT, "port of /metrics, /healthz and /readyz"),
        ("--api-port", API_PORT, "port of the /v1 API"),
    ):
        parser.add_argument(
            option, type=_port, default=default, metavar="PORT", help=f"{what} ({default})"
        )
    number = _number(0.0, GREATEST_RATE)
    parser.add_argument("--rate", type=number, default=2.0, help="requests per second (2)")
    parser.add_argument(
        "--seconds",
        type=_number(0.0, 1e6),
        help="end by itself after this much traffic (until Ctrl-C)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the traffic (0)")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of another model")
    parser.add_argument(
        "--cache-dir", type=Path, help=f"compiled graphs and logs ({default_cache(environ)})"
    )
    parser.add_argument(
        "--start-seconds",
        type=_number(1.0, 1e6),
        default=600.0,
        help="longest start of one server (600)",
    )
    parser.add_argument(
        "--tamper",
        action="store_true",
        help="tamper with the model while it serves, once the canary is armed (when you type t)",
    )
    return _options(parser.parse_args(argv), environ)


def default_cache(environ: Mapping[str, str]) -> Path:
    """`.cache/` of the clone this package runs from, else a folder in the user's cache."""
    root = Path(__file__).parents[2]
    if (root / "pyproject.toml").is_file():
        return root / ".cache"
    base = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "llm-internals"


def _options(given: argparse.Namespace, environ: Mapping[str, str]) -> Options:
    return Options(
        port=given.port,
        metrics_port=given.metrics_port,
        api_port=given.api_port,
        rate=given.rate,
        seconds=given.seconds,
        seed=given.seed,
        model=given.model.absolute(),
        cache=(given.cache_dir or default_cache(environ)).absolute(),
        start_seconds=given.start_seconds,
        tamper=given.tamper,
    )


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is not a port; use 1 to 65535")
    return port


def _number(smallest: float, largest: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        # Written so that NaN, which compares false with everything, is refused too.
        if not smallest <= value <= largest:
            raise argparse.ArgumentTypeError(f"{text} is not within {smallest:g} to {largest:g}")
        return value

    return number
