"""The baseline, fetched: for those whose pods cannot mount the file it is in.

A small JSON file, `{"url": ..., "sha256": ...}`, says where it is and what it must be. It is read
again every minute, so another baseline needs no restart: change the file (a mounted ConfigMap).

Guarantees: nobody waits for it, it has a thread of its own; the baseline in force is replaced only
by a whole file with that checksum, and one that could be read, signature included; what is wrong is
logged once and tried again, a minute apart; at most 256 MiB are taken, within ten minutes.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Final

import httpx
import msgspec
from prometheus_client.core import Metric as Family

from sidecar.config import PREFIX
from sidecar.errors import SidecarError, StoreError
from sidecar.fold.reducer import Snapshot
from sidecar.publish.metrics.collectors import family
from sidecar.store import atomic

LOOK_SECONDS: Final = 60.0
MAX_BYTES: Final = 256 << 20
_MAX_SECONDS: Final = 600.0
_SILENCE_SECONDS: Final = 10.0
STOP_SECONDS: Final = 0.75
_log = logging.getLogger(__name__)


class Wanted(msgspec.Struct, frozen=True):
    """Which baseline: where it is, and the SHA-256 of the whole file in hex."""

    url: Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s/]", max_length=8192)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


class Fetcher:
    """Keeps `target` what `source` asks for.

    check: raises SidecarError when a file is no baseline that may be used.
    note: writes down, before `target` is changed, which checksum it is to have.
    use: has the sidecar read `target` again. Both raise SidecarError when they cannot.
    """

    def __init__(
        self,
        source: Path,
        target: Path,
        check: Callable[[Path], None],
        note: Callable[[str], None],
        use: Callable[[], None],
    ) -> None:
        self._source = source
        self._target = target
        self._check = check
        self._note = note
        self._use = use
        self._has = ""
        self._is_unused = False  # what `target` has came after it was read
        self._reason = ""
        self._has_looked = False
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="baseline-fetch", daemon=True)

    @property
    def reason(self) -> str:
        """Why the baseline in force is not the one asked for; "" when it is."""
        return self._reason

    def collect(self, _: Snapshot) -> Iterator[Family]:
        """Its part of /metrics."""
        told = [((), float(not self._reason))] if self._has_looked else []
        yield family("baseline_fetch_success", told)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End; a download under way is left behind, with nothing of it used."""
        self._is_ending.set()
        self._thread.join(timeout=STOP_SECONDS)

    def look(self) -> None:
        """Fetch what is asked for, unless it is there; a failure becomes the reason."""
        try:
            wanted = self._wanted()
            if wanted.sha256 != (self._has or self._digest()):
                self._take(wanted)
                self._is_unused = True
            self._has = wanted.sha256
            if self._is_unused:
                self._use()
                self._is_unused = False
            self._tell("")
        except (SidecarError, OSError) as error:
            self._tell(str(error))

    def _run(self) -> None:
        while not self._is_ending.is_set():
            self.look()
            self._is_ending.wait(LOOK_SECONDS)

    def _wanted(self) -> Wanted:
        try:
            return msgspec.json.decode(atomic.read(self._source, 1 << 16), type=Wanted)
        except FileNotFoundError as error:
            raise StoreError(f"{self._source} is not there; it says which baseline") from error
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise StoreError(
                f'{self._source}: {error}; write {{"url": "https://...", "sha256": "..."}}'
            ) from error

    def _digest(self) -> str:
        """Of what an earlier life fetched; "" when there is nothing."""
        try:
            return hashlib.sha256(atomic.read(self._target)).hexdigest()
        except FileNotFoundError:
            return ""

    def _take(self, wanted: Wanted) -> None:
        data = download(wanted.url, self._is_ending.is_set)
        found = hashlib.sha256(data).hexdigest()
        if found != wanted.sha256:
            raise StoreError(
                f"the file fetched has checksum {found}, and {wanted.sha256} was asked for; "
                f"correct one of them in {self._source}"
            )
        candidate = self._target.with_name(f"{self._target.name}.candidate")
        atomic.replace(candidate, data)
        try:
            self._check(candidate)
            self._note(found)
            candidate.replace(self._target)
        finally:
            candidate.unlink(missing_ok=True)

    def _tell(self, reason: str) -> None:
        if reason and reason != self._reason and not self._is_ending.is_set():
            _log.error("%sBASELINE_SOURCE_FILE: %s", PREFIX, reason)
        self._reason = reason
        self._has_looked = True


def download(
    url: str, is_ending: Callable[[], bool] = lambda: False, max_bytes: int = MAX_BYTES
) -> bytes:
    """What is at `url`. Raises StoreError, which never holds the address: it may be a secret."""
    data = bytearray()
    until = time.monotonic() + _MAX_SECONDS
    try:
        with httpx.stream("GET", url, timeout=_SILENCE_SECONDS, follow_redirects=True) as answer:
            if answer.status_code != httpx.codes.OK:
                raise StoreError(f"the baseline's server answers {answer.status_code}; see its URL")
            for part in answer.iter_bytes():
                data += part
                if len(data) > max_bytes:
                    raise StoreError(f"the file has more than {max_bytes} bytes: no baseline")
                if is_ending() or time.monotonic() > until:
                    raise StoreError(f"not fetched within {_MAX_SECONDS:.0f} s; bring it nearer")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise StoreError(
            f"the baseline cannot be fetched ({type(error).__name__}); see that its server can "
            "be reached from here"
        ) from error
    return bytes(data)
