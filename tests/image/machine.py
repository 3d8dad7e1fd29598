"""podman and buildah on a machine that may have neither systemd nor a network for containers.

Guarantees: images, containers and volumes are in `.cache/containers`, apart from the machine's
own; containers have no network but their loopback. A layer that was built before is taken again.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from tests.deploy.chart import ROOT

FOLDER: Final = ROOT / ".cache" / "containers"
PROGRAMS: Final = ("buildah", "podman", "runc")
BUILD_SECONDS: Final = 1800
# runc, and control groups by their files: crun and systemd ask for more than this machine has.
_SETTINGS: Final = """
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
netns = "none"
default_ulimits = ["nofile=1024:1024", "nproc=512:512"]
"""


class Said(NamedTuple):
    """What became of a program: its exit status, and both of its outputs."""

    status: int
    out: str
    err: str


class Machine:
    """Runs podman; calls return what it printed, and fail the test with what it said."""

    def __init__(self) -> None:
        lacking = [name for name in PROGRAMS if shutil.which(name) is None]
        assert not lacking, f"no {', '.join(lacking)} here: `make tools` installs it, as root"
        FOLDER.mkdir(parents=True, exist_ok=True)
        settings, storage = FOLDER / "containers.conf", FOLDER / "storage.conf"
        settings.write_text(_SETTINGS)
        places = {"graphroot": FOLDER / "store", "runroot": FOLDER / "run"}
        lines = [f'{key} = "{path}"' for key, path in places.items()]
        storage.write_text("\n".join(["[storage]", 'driver = "overlay"', *lines, ""]))
        self.environ = {
            **os.environ,
            "CONTAINERS_CONF": str(settings),
            "CONTAINERS_STORAGE_CONF": str(storage),
        }

    def __call__(self, *words: str | Path) -> str:
        """Run podman to its end."""
        return self.said("podman", *words)

    def build(self, target: str, *options: str) -> str:
        """Build a target of the Dockerfile on bases made of Debian's packages; its name."""
        name = f"localhost/llm-internals-{target}:test"
        self.said(*_building(target, *options), **_told(name))
        return name

    def fails_to_build(self, target: str, *options: str) -> str:
        """What a build says that must fail."""
        said = self.asked(*_building(target, *options), **_told("localhost/never:test"))
        assert said.status != 0, said.out
        return said.out + said.err

    def said(self, *command: str | Path, **environ: str) -> str:
        """What a program prints that must be content."""
        said = self.asked(*command, **environ)
        assert said.status == 0, f"{command}: {said.out[-3000:]}{said.err[-6000:]}"
        return said.out

    def asked(self, *command: str | Path, **environ: str) -> Said:
        """What becomes of a program, be it content or not."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environ | environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def release(self) -> None:
        """Give back what the store keeps mounted, so that its folder can be removed."""
        self.asked("umount", FOLDER / "store" / "overlay")


def _building(target: str, *options: str) -> tuple[str | Path, ...]:
    return (ROOT / "scripts" / "image.sh", target, *options)


def _told(name: str) -> dict[str, str]:
    return {"BUILDER": "buildah", "BASES": "debian", "TAG": name}
