"""Who steers the tap is written down: every control that comes into force, whoever wrote it.

`sidecar control` and posted scans tell the audit log by themselves, before they write. The control
is a file, though, which an editor can change as well; so the sidecar looks at it once a second, and
tells what it found, with the file's owner.

Guarantees: the thread never ends by itself and holds nothing but the last look; a change that could
not be told is told at a later look; two changes within one second may be told as one.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from sidecar.errors import SidecarError
from sidecar.publish.guard.audited import Log
from sidecar.wire import control

LOOK_SECONDS: Final = 1.0
STOP_SECONDS: Final = 0.75
_log = logging.getLogger(__name__)


class _Look(NamedTuple):
    """Tells one file from the next at its place; all zero where there is none."""

    inode: int = 0
    mtime_ns: int = 0
    num_bytes: int = 0
    owner: int = 0


class Steering:
    """Looks at the control at `path`, and tells `log` when it is another one."""

    def __init__(self, path: Path, log: Log, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._path = path
        self._log = log
        self._clock_ns = clock_ns
        self._told = _Look()
        self._trouble = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sidecar-steering", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def look(self) -> None:
        """Tell what is in force, if it is not what was told last; never raises."""
        try:
            found = self._found()
            if found != self._told:
                self._tell(found)
                self._told = found
            self._trouble = ""
        except (SidecarError, OSError) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                _log.error("a change of the control is not in the audit log yet: %s", error)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.look()
            self._stopping.wait(LOOK_SECONDS)

    def _found(self) -> _Look:
        try:
            seen = self._path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return _Look()
        return _Look(seen.st_ino, seen.st_mtime_ns, seen.st_size, seen.st_uid)

    def _tell(self, found: _Look) -> None:
        who = f"uid {found.owner}" if found.inode else "unknown"
        detail = {"file": str(self._path), **(self._wishes() if found.inode else {"removed": True})}
        self._log.append(self._clock_ns(), who, "control.seen", detail)

    def _wishes(self) -> dict[str, Any]:
        """What it asks for; why it was not read, where this process must not believe it."""
        try:
            asked = control.read(self._path)
        except SidecarError as error:
            return {"not_read": str(error)}
        return {"removed": True} if asked is None else {"wishes": msgspec.to_builtins(asked)}
