"""The baseline that traffic is compared with: read at the start, and again when asked.

Guarantees: a file that cannot be read, is torn, foreign, or not signed by the configured key is a
ConfigError with the key and the remedy, and changes nothing; numbers that cannot be compared with
what is served are found later, and are a reason (`panel.Panel.doubt`), never a crash.
"""

import logging
from pathlib import Path

from sidecar.config import PREFIX
from sidecar.errors import ConfigError, StoreError
from sidecar.fold.drift.baseline import Baseline
from sidecar.publish.drift.panel import Panel, Terms, panel_of
from sidecar.store import atomic
from sidecar.store.baseline_file import read_baseline
from sidecar.store.signing import Public

_log = logging.getLogger(__name__)


class Baselines:
    """Reads the file that was configured.

    path: None when there is none. key_path: ed25519 public key; None reads unsigned files too.
    is_fetched: the file comes later (`fetch.Fetcher`), so there may be none yet.
    """

    def __init__(
        self,
        terms: Terms,
        path: Path | None,
        key_path: Path | None = None,
        *,
        is_fetched: bool = False,
    ) -> None:
        self.path = path
        self.terms = terms
        self._key_path = key_path
        self._is_fetched = is_fetched

    def read(self) -> Panel:
        """The panel of the file as it is now. Raises ConfigError."""
        if self.path is None or (self._is_fetched and not self.path.exists()):
            return panel_of(self.terms, None)
        return panel_of(self.terms, self._baseline(self.path))

    def put_aside(self) -> None:
        """Make room where an earlier life fetched what is refused now, such as by another key."""
        if self.path is None or not self.path.exists():
            return
        try:
            self.check(self.path)
        except ConfigError as error:
            _log.error("put aside, to be fetched again: %s", error)
            atomic.put_aside(self.path)

    def check(self, path: Path) -> None:
        """Raise ConfigError unless the file at `path` could be the baseline."""
        self._baseline(path)

    def _baseline(self, path: Path) -> Baseline:
        try:
            key = Public.read(self._key_path) if self._key_path else None
        except StoreError as error:
            raise ConfigError(f"{PREFIX}BASELINE_KEY_FILE: {error}") from error
        try:
            return read_baseline(path, key)
        except StoreError as error:
            raise ConfigError(f"{PREFIX}BASELINE_FILE: {error}") from error
