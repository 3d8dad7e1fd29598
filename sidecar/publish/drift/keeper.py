"""The state of the judges in one file, replaced as a whole.

Guarantees: windows and channels are kept as of one moment, so that no window is judged twice; a
file that is torn or foreign is put aside, never overwritten, and said for the rest of this life;
what cannot be written is said, and `save` tells so.
"""

from pathlib import Path
from typing import Final

from sidecar.config import PREFIX
from sidecar.errors import ConfigError, StoreError
from sidecar.store.snapshot import Snapshot, SnapshotFile

NAME: Final = "drift.snapshot"


class FileKeeper:
    """Keeps snapshots in `folder`, which is made when it is not there.

    Raises ConfigError when this user cannot write there.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{NAME}.probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"{PREFIX}STATE_DIR: {error}; give a folder this user can write to"
            ) from error
        self._file = SnapshotFile(folder / NAME)
        self._refusal = ""
        self._failure = ""

    @property
    def reason(self) -> str:
        """What is wrong with keeping the state; "" when all is well."""
        return "; ".join(filter(None, (self._refusal, self._failure)))

    def save(self, snapshot: Snapshot) -> bool:
        """Replace what is kept; whether that was done. A failure becomes the reason."""
        try:
            self._file.write(snapshot)
        except StoreError as error:
            self._failure = f"the state cannot be kept: {error}"
        else:
            self._failure = ""
        return not self._failure

    def load(self) -> Snapshot | None:
        """What an earlier life kept; None when there is nothing of use."""
        try:
            return self._file.read()
        except StoreError as error:
            self._refusal = f"the state of an earlier life was refused, all began again: {error}"
            return None
