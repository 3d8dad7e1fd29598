"""What a figure was measured on: versions, processor, revision."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any


def describe(*distributions: str) -> dict[str, Any]:
    """Machine and software behind a result; `distributions` are the packages that matter."""
    return {
        "cpu": _cpu(),
        "num_cores": len(_cpus()),
        "python": platform.python_version(),
        "revision": _revision(),
        "packages": {name: version(name) for name in distributions},
    }


def _cpus() -> list[str]:
    text = Path("/proc/cpuinfo").read_text()
    return [line for line in text.splitlines() if line.startswith("processor")]


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
