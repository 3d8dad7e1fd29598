"""An image that was built, and containers that run it with as few rights as there are."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from tests.image.machine import Machine, Said

HARDENED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges")
USER = 65532
PATIENCE_SECONDS = 120.0


class Image:
    """An image in that store."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.name = name

    @cached_property
    def about(self) -> dict[str, Any]:
        """What podman knows of it."""
        [about] = json.loads(self.machine("image", "inspect", self.name))
        return dict(about)

    def run(self, *words: str, options: tuple[str, ...] = ()) -> Said:
        """Run it to its end, with as few rights as possible."""
        command = ("podman", "run", "--rm", *HARDENED, *options, self.name, *words)
        return self.machine.asked(*command)

    def python(self, code: str) -> str:
        """What a program prints in it."""
        command = ("podman", "run", "--rm", *HARDENED, "--entrypoint", "python3", self.name)
        return self.machine.said(*command, "-c", code)

    @contextmanager
    def running(self, *words: str, options: tuple[str, ...] = ()) -> Iterator["Running"]:
        """Run it in the background; it is gone afterwards, however this ends."""
        command = ("podman", "run", "--detach", *HARDENED, *options, self.name, *words)
        container = Running(self.machine, self.machine.said(*command).strip())
        try:
            yield container
        finally:
            self.machine.asked("podman", "rm", "--force", "--time=0", container.id)


class Running:
    """A container that runs."""

    def __init__(self, machine: Machine, id_: str) -> None:
        self.machine = machine
        self.id = id_

    def said(self, *words: str) -> Said:
        """What a command in it says."""
        return self.machine.asked("podman", "exec", self.id, *words)

    def get(self, url: str) -> str:
        """What an address answers, asked from within; "" when nothing does."""
        code = f"import urllib.request as r; print(r.urlopen({url!r}, timeout=30).read().decode())"
        return self.said("python3", "-c", code).out

    def logs(self) -> str:
        """All that it printed."""
        said = self.machine.asked("podman", "logs", self.id)
        return said.out + said.err

    def stop(self, seconds: int) -> int:
        """Send SIGTERM, and SIGKILL after `seconds`; its exit status."""
        self.machine("stop", f"--time={seconds}", self.id)
        about = self.machine("inspect", self.id)
        return int(json.loads(about)[0]["State"]["ExitCode"])


def eventually(found: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    """Wait until something is so; what to say when it never is."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not found():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.2)
