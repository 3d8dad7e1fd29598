"""The baseline that traffic is compared with: read at the start, and again when asked.

Guarantees: a file that cannot be read, is torn, foreign, or not signed by the configured key is a
ConfigError with the key and the remedy, and changes nothing; numbers that cannot be compared with
what is served are found later, and are a reason (`panel.Panel.doubt`), never a crash.
"""

from pathlib import Path

from sidecar.config import PREFIX
from sidecar.errors import ConfigError, StoreError
from sidecar.fold.drift.baseline import Baseline
from sidecar.publish.drift.panel import Panel, Terms, panel_of
from sidecar.store.baseline_file import read_baseline
from sidecar.store.signing import Public


class Baselines:
    """Reads the file that was configured.

    path: None when there is none. key_path: ed25519 public key; None reads unsigned files too.
    """

    def __init__(self, terms: Terms, path: Path | None, key_path: Path | None = None) -> None:
        self.path = path
        self.terms = terms
        self._key_path = key_path

    def read(self) -> Panel:
        """The panel of the file as it is now. Raises ConfigError."""
        return panel_of(self.terms, self._baseline())

    def _baseline(self) -> Baseline | None:
        if self.path is None:
            return None
        try:
            key = Public.read(self._key_path) if self._key_path else None
        except StoreError as error:
            raise ConfigError(f"{PREFIX}BASELINE_KEY_FILE: {error}") from error
        try:
            return read_baseline(self.path, key)
        except StoreError as error:
            raise ConfigError(f"{PREFIX}BASELINE_FILE: {error}") from error
