"""A real `sidecar serve` to be loaded: what it has counted, and what it uses."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx

from sidecar.wire.frame import Source

_EVERYTHING: Final = Path(__file__).parents[2] / "examples" / "metrics_everything.toml"
_COUNTERS: Final = ("received", "lost", "refused")


class Server(NamedTuple):
    """A running sidecar: its process, the base of its metrics port, the path of its socket."""

    pid: int
    url: str
    socket: Path

    def counted(self, source: Source) -> dict[str, int]:
        """Frames so far: received and lost, of a source; and refused, of anybody.

        A source that is silent for long is published no more: ask while it is there.
        """
        names = [("name[]", f"llm_internals_frames_{each}_total") for each in _COUNTERS]
        names += [("name[]", f"llm_internals_frames_{each}") for each in _COUNTERS]
        reply = httpx.get(f"{self.url}/metrics", params=names, timeout=60, trust_env=False)
        found = dict.fromkeys(_COUNTERS, 0)
        for line in reply.raise_for_status().text.splitlines():
            series, _, value = line.rpartition(" ")
            name, _, labels = series.partition("{")
            each = name.removeprefix("llm_internals_frames_").removesuffix("_total")
            if each == "refused" or (each in found and f'"{source.name}"' in labels):
                found[each] += int(float(value))
        return found

    def await_frames(
        self, source: Source, num: int, patience_seconds: float = 20.0
    ) -> dict[str, int]:
        """What is counted once `num` frames of it are received, or once nothing more comes."""
        found, moved = self.counted(source), time.monotonic()
        while found["received"] < num and time.monotonic() - moved < patience_seconds:
            time.sleep(0.1)
            before, found = found, self.counted(source)
            if found != before:
                moved = time.monotonic()
        return found

    def cpu_seconds(self) -> float:
        """CPU that all its threads have used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        """Resident memory, now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def serving(*, everything: bool = False, on_one_core: bool = False) -> Iterator[Server]:
    """A sidecar of its own folder, ended on the way out.

    everything: all series there are. on_one_core: none of its threads may run on another.
    """
    with tempfile.TemporaryDirectory(prefix="capacity-") as folder:
        socket = Path(folder) / "ingest.sock"
        command = [sys.executable, "-m", "sidecar", "serve", "--metrics-host", "127.0.0.1"]
        command += ["--metrics-port", "0", "--api-port", "0", "--socket", str(socket)]
        if everything:
            choice = Path(folder) / "metrics.toml"
            choice.write_text(_EVERYTHING.read_text())
            command += ["--metrics-file", str(choice), "--series-cap", "100000"]
        core = {min(os.sched_getaffinity(0))}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            if on_one_core:
                os.sched_setaffinity(process.pid, core)
            try:
                yield Server(process.pid, _url(process), socket)
            finally:
                process.terminate()


@contextmanager
def loading(what: str, socket: Path, *words: str) -> Iterator[dict[str, Any]]:
    """What a process that loads `socket` says once it is done; see `bench.capacity.load`.

    It stays connected meanwhile: libzmq gives up a connection whose peer has gone and whose frames
    it had no room to read yet, and those frames with it.
    """
    command = [sys.executable, "-m", "bench.capacity.load", what, str(socket), *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        if process.stdout is None:
            raise RuntimeError("the load has no stdout")
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load {what} ended early; its error is above")
        yield json.loads(line)
        process.communicate()  # closes its stdin, which ends it


def _url(process: "subprocess.Popen[str]") -> str:
    if process.stdout is None:
        raise RuntimeError("the sidecar has no stdout")
    line = process.stdout.readline()
    if "metrics " not in line:
        raise RuntimeError(f"the sidecar did not start: {line!r}; its log is above")
    return line.split("metrics ")[1].split()[0].removesuffix("/metrics").rstrip("/")
