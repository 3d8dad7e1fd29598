"""Images that are built here, and containers that run: buildah and podman, in a store of ours.

The store is .cache/containers, so that nothing of the machine's own is touched and layers are kept
from one run to the next. `make tools` installs the programs; a machine that lacks them, or that may
not run containers, fails the tests with what it said.
"""

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".cache" / "containers"
HARDENED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges")
USER = 65532
PATIENCE_SECONDS = 120.0


class Said:
    """What became of a program: its status, and both of its outputs."""

    def __init__(self, done: "subprocess.CompletedProcess[str]") -> None:
        self.status = done.returncode
        self.out = done.stdout
        self.err = done.stderr


class Containers:
    """podman and buildah with a store and settings of their own.

    folder: where the store is; made when it is not there.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        storage = folder / "storage.conf"
        storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\n'
            f'runroot = "{folder}/run"\n'
        )
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(Path(__file__).with_name("containers.conf")),
            "CONTAINERS_STORAGE_CONF": str(storage),
        }

    def said(self, *command: str | Path, timeout: float = 300.0) -> Said:
        """Run a program to its end, whatever becomes of it."""
        assert shutil.which(str(command[0])), f"no {command[0]} here: `make tools` installs it"
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Said(done)

    def told(self, *command: str | Path, timeout: float = 300.0) -> str:
        """What a program prints that must succeed."""
        said = self.said(*command, timeout=timeout)
        assert said.status == 0, (
            f"{' '.join(map(str, command))}:\n{said.out[-2000:]}{said.err[-4000:]}"
        )
        return said.out

    def build(self, target: str, tag: str, *options: str) -> Said:
        """Build a target of the Dockerfile as `make image` does, on bases of Debian's packages."""
        self.environment |= {"BUILDER": "buildah", "BASES": "debian", "TAG": tag}
        return self.said("scripts/image.sh", target, *options, timeout=900.0)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One process of the tests at a time: what the other has built is then only looked up."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def release(self) -> None:
        """Give back what a store keeps mounted, so that its folder can be removed."""
        self.said("podman", "umount", "--all")
        self.said("umount", self.folder / "graph" / "overlay")


class Image:
    """An image in that store."""

    def __init__(self, containers: Containers, name: str) -> None:
        self.containers = containers
        self.name = name

    @cached_property
    def about(self) -> dict[str, Any]:
        """What podman knows of it."""
        [about] = json.loads(self.containers.told("podman", "image", "inspect", self.name))
        return dict(about)

    def run(self, *words: str, options: tuple[str, ...] = ()) -> Said:
        """Run it to its end, with as few rights as possible."""
        command = ("podman", "run", "--rm", *HARDENED, *options, self.name, *words)
        return self.containers.said(*command)

    def python(self, code: str) -> str:
        """What a program prints in it."""
        command = ("podman", "run", "--rm", *HARDENED, "--entrypoint", "python3", self.name)
        return self.containers.told(*command, "-c", code)

    @contextmanager
    def running(self, *words: str, options: tuple[str, ...] = ()) -> Iterator["Running"]:
        """Run it in the background; it is gone afterwards, however this ends."""
        command = ("podman", "run", "--detach", *HARDENED, *options, self.name, *words)
        container = Running(self.containers, self.containers.told(*command).strip())
        try:
            yield container
        finally:
            self.containers.said("podman", "rm", "--force", "--time=0", container.id)


class Running:
    """A container that runs."""

    def __init__(self, containers: Containers, id_: str) -> None:
        self.containers = containers
        self.id = id_

    def said(self, *words: str) -> Said:
        """What a command in it says."""
        return self.containers.said("podman", "exec", self.id, *words)

    def get(self, url: str) -> str:
        """What an address answers, asked from within; "" when nothing does."""
        code = f"import urllib.request as r; print(r.urlopen({url!r}, timeout=30).read().decode())"
        return self.said("python3", "-c", code).out

    def logs(self) -> str:
        """All that it printed."""
        said = self.containers.said("podman", "logs", self.id)
        return said.out + said.err

    def stop(self, seconds: int) -> int:
        """Send SIGTERM, and SIGKILL after `seconds`; its exit status."""
        self.containers.told("podman", "stop", f"--time={seconds}", self.id)
        about = self.containers.told("podman", "inspect", self.id)
        return int(json.loads(about)[0]["State"]["ExitCode"])


def eventually(found: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    """Wait until something is so; what to say when it never is."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not found():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.2)
