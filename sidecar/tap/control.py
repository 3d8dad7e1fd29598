"""The control as the tap hears it: looked for at each flush, and the last good one obeyed.

Loads no torch; called on the pump's thread, which may read a file.
"""

import logging
import os
from pathlib import Path

from sidecar.errors import ConfigError
from sidecar.wire import control
from sidecar.wire.control import Control


class ControlFile:
    """Watches one file.

    control: what is in force; the last good one while the file cannot be used.
    refusal: why the file as it stands cannot be used; "" when it can, or is not there.
    num_refused: files that could not be used so far.
    """

    def __init__(self, path: Path) -> None:
        self.control = Control()
        self.refusal = ""
        self.num_refused = 0
        self._path = path
        self._seen: tuple[int, ...] | None = None

    def look(self) -> None:
        """Read the file when it is not the one that was read last."""
        seen = _stamp(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self.control = control.read(self._path) or Control()
            self.refusal = ""
        except ConfigError as error:
            self.refusal = str(error)
            self.num_refused += 1
            _LOG.warning("sidecar: the control is not obeyed: %s", error)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What tells one file from another; None when there is none."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return (error.errno or 0,)
    # Its mode and owner too: they may be what was wrong.
    return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode, found.st_uid


_LOG = logging.getLogger("sidecar.tap")
