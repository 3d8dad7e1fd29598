"""A disk that is full while the sidecar has something to keep."""

import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from bench.chaos.alarms import Alarms, options
from bench.chaos.row import Row, Size
from bench.chaos.stand import Stand

MIB = 1 << 20


def disk_full(folder: Path, size: Size) -> Row:
    """No byte can be written while a verdict changes; then there is room again."""
    state = folder / "state"
    state.mkdir(parents=True)
    with _small(state) as disk, Stand(folder, size.num_ranks, options(folder)) as stand:
        alarms = Alarms(stand)
        alarms.canary()
        alarms.overflow()
        recoveries, num_unsaid = [], 0
        for _ in range(size.num_full_disks):
            alarms.acknowledge("integrity")  # refused once the audit log has no room
            disk.fill(stand.pid)
            alarms.overflow()
            stand.wait("it says that nothing can be kept", lambda: _failure(stand))
            disk.free(stand.pid)
            recoveries.append(stand.wait("all is kept", lambda: not _failure(stand)))
            stand.kill_sidecar()
            stand.start_sidecar()
            stand.wait("all ranks are heard again", stand.hears_all)
            alarms.check()
            num_unsaid += bool(_failure(stand))
        alarms.close()
        account = stand.account()
    return Row(
        f"disk full {size.num_full_disks} times while an alarm was to be kept ({disk.kind}), and "
        "the sidecar killed after each",
        account,
        num_unsaid,
        alarms.num_raised,
        alarms.num_lost,
        tuple(recoveries),
        "from the moment at which there was room again to `keeping` of /v1/drift without a "
        "complaint; then the sidecar was killed, and the next one had to tell of the alarm; failed "
        "would be a state that was refused as torn",
        {},
    )


def _failure(stand: Stand) -> str:
    return str(stand.ask("/v1/drift")["keeping"])


class _Disk(Protocol):
    """Something that can be full."""

    kind: str

    def fill(self, pid: int) -> None:
        """Leave no room, for process `pid` at least."""

    def free(self, pid: int) -> None:
        """Make room again."""


class _Mounted:
    """A file system of 1 MiB in memory."""

    kind = "a tmpfs of 1 MiB"

    def __init__(self, folder: Path) -> None:
        self._filler = folder / "filler"

    def fill(self, pid: int) -> None:  # noqa: ARG002 - the seam's
        with self._filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass

    def free(self, pid: int) -> None:  # noqa: ARG002 - the seam's
        self._filler.unlink()


class _Limited:
    """Where nobody may mount: the process may write no byte into any file."""

    kind = "no byte may be written, RLIMIT_FSIZE"

    def fill(self, pid: int) -> None:
        _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, most))

    def free(self, pid: int) -> None:
        _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))


@contextlib.contextmanager
def _small(folder: Path) -> Iterator[_Disk]:
    command = ["mount", "-t", "tmpfs", "-o", f"size={MIB}", "chaos", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        yield _Limited()
        return
    try:
        yield _Mounted(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
