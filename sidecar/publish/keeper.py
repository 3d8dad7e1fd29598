"""Where the state of the drift channels is kept over a restart: one file, replaced as a whole.

Guarantees: the windows and every channel are kept as of one moment, so that no window is judged
twice; a file that is torn or foreign is put aside, never overwritten, and said; what cannot be
written is counted and said, and tried again at the next window.
"""

from pathlib import Path
from typing import Any


class Keeper:
    """One file of state in a folder."""

    def __init__(self, folder: Path) -> None:
        self.reason = ""
        self._path = folder / "drift.snapshot"

    def save(self, exported: dict[str, Any]) -> None:
        """Replace what is kept."""

    def load(self) -> Any:
        """What an earlier life kept; None when there is nothing of use."""
