"""Keys as they are pressed, without Enter.

Guarantee: the terminal is as it was when this is left, however it is left.
"""

import os
import select
import sys
import termios
import tty
from types import TracebackType
from typing import Any, Final, Self

_NAMES: Final = {
    b"\x1b[A": "up", b"\x1b[B": "down", b"\x1b[5~": "page up", b"\x1b[6~": "page down",
    b"\x1b": "escape",
}  # fmt: skip


class Keys:
    """Reads a terminal; a context manager. file: its descriptor."""

    def __init__(self, file: int | None = None) -> None:
        self._file = sys.stdin.fileno() if file is None else file
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self._file)
        tty.setcbreak(self._file)  # Ctrl-C stays what it is
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)

    def pressed(self, seconds: float) -> list[str]:
        """Keys pressed within `seconds`, at once when there are some; "q" when nobody is there."""
        ready, _, _ = select.select([self._file], [], [], seconds)
        if not ready:
            return []
        typed = os.read(self._file, 64)
        if not typed:
            return ["q"]
        named = _NAMES.get(typed)
        return [named] if named else list(typed.decode(errors="ignore"))
