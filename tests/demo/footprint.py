"""What a demo has running on the machine, found in two ways, for neither sees everything.

A mark in the environment is inherited by every process, even one that left its parent, but vLLM's
workers overwrite their environment with their title. Descent is seen only while parents live.
"""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NAME = "DEMO_TEST"


class Running(NamedTuple):
    """One living process; its start time tells it from a later one with the same number."""

    pid: int
    parent: int
    start: int


class Footprint:
    """A mark for one demo's environment, and the processes that carry it."""

    def __init__(self) -> None:
        self.environ = {NAME: str(uuid.uuid4())}

    def marked(self) -> list[str]:
        """Command lines of the living processes that carry the mark."""
        mark = f"{NAME}={self.environ[NAME]}".encode()
        return [
            _read(each, "cmdline").decode().replace("\0", " ")
            for each in running()
            if mark in _read(each, "environ").split(b"\0")
        ]


def running() -> Iterator[Running]:
    """Every process of this machine but zombies, which hold nothing and wait to be reaped."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text()
        except OSError:
            continue
        fields = status.rpartition(")")[2].split()
        if fields[0] != "Z":
            yield Running(int(folder.name), int(fields[1]), int(fields[19]))


def family(pid: int) -> set[Running]:
    """A process and all that descend from it."""
    everyone = list(running())
    found = {each for each in everyone if each.pid == pid}
    while more := {e for e in everyone if e.parent in {f.pid for f in found}} - found:
        found |= more
    return found


def left_of(earlier: set[Running]) -> list[str]:
    """Titles of those that still run, whoever their parent is now."""
    known = {(each.pid, each.start) for each in earlier}
    now = [each for each in running() if (each.pid, each.start) in known]
    return [_read(each, "comm").decode().strip() for each in now]


def _read(process: Running, name: str) -> bytes:
    try:
        return Path(f"/proc/{process.pid}/{name}").read_bytes()
    except OSError:
        return b""
