"""The other side, as a test sees it: frames that arrive, and threads of ours that run."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.wire.channel import Receiver
from sidecar.wire.frame import Frame, unpack


class Inbox:
    """The sidecar's end of the channel: unpacks what arrives, and waits for what should."""

    def __init__(self, path: Path) -> None:
        self._receiver = Receiver(path)

    def wait_for(self, is_wanted: Callable[[Frame], bool], seconds: float = 60.0) -> Frame:
        """The first frame from now on that is wanted; fails when none comes in time."""
        deadline = time.monotonic() + seconds
        seen: list[Frame] = []
        while (left := deadline - time.monotonic()) > 0:
            data = self._receiver.receive(left)
            if data is None:
                continue
            frame = unpack(data)
            if is_wanted(frame):
                return frame
            seen.append(frame)
        pytest.fail(f"not among {len(seen)} frames; the last: {seen[-1:]}")

    def read(self, seconds: float) -> list[Frame]:
        """Every frame that arrives within `seconds`."""
        deadline = time.monotonic() + seconds
        frames: list[Frame] = []
        while (left := deadline - time.monotonic()) > 0:
            data = self._receiver.receive(left)
            if data is not None:
                frames.append(unpack(data))
        return frames

    def close(self) -> None:
        """Stop listening."""
        self._receiver.close()


def pumps() -> list[threading.Thread]:
    """Threads of ours that run in this process."""
    return [thread for thread in threading.enumerate() if thread.name == "sidecar-pump"]
