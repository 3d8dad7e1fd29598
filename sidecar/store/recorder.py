"""The recorder: recordings of everything served, in one folder, within a limit of bytes.

A file is finished after `file_ns` or `file_bytes`; when the finished ones take more than
`total_bytes` the oldest goes. One recorder per folder.

Guarantees: it never raises; a request that could not be recorded is counted, with the last reason;
after a failure the disk is tried again once a minute; a crash loses the open files, at most ten
minutes by default, and never a finished one; canaries are not recorded.
"""

import itertools
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from sidecar.errors import StoreError
from sidecar.fold.drift.header import Header
from sidecar.fold.drift.observation import Observation
from sidecar.store.recording import OPEN_SUFFIX, SUFFIX, RecordingWriter
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout

RETRY_NS: Final = 60 * 10**9
MAX_OPEN: Final = 8  # layouts and identities at once; the oldest file is finished first


_Key = tuple[bytes, Identity]  # layout as msgpack


class Limits(NamedTuple):
    """How long and large files become. 8 GiB hold 10 requests a second for a week (1 KiB each)."""

    file_ns: int = 600 * 10**9
    file_bytes: int = 64 << 20
    total_bytes: int = 8 << 30


class Recorder:
    """Observations in, files out.

    release: of this package, told in each file.
    num_recorded, num_lost: requests; num_removed: files that made room for others.
    reason: why the last loss happened, with the path; "" when there was none.
    """

    def __init__(self, folder: Path, release: str = "", limits: Limits = Limits()) -> None:  # noqa: B008 - immutable
        self.num_recorded = self.num_lost = self.num_removed = 0
        self.reason = ""
        self._folder = folder
        self._release = release
        self._limits = limits
        self._open: dict[_Key, tuple[int, RecordingWriter]] = {}
        self._retry_ns = 0
        for left in _listed(folder, SUFFIX + OPEN_SUFFIX):  # a crash left it; it cannot be read
            with suppress(OSError):
                left.unlink()

    def update(
        self, observation: Observation, layout: Layout, identity: Identity, now_ns: int
    ) -> None:
        """Take one request that finished, of what `identity` executes, at Unix time `now_ns`."""
        if observation.canary:
            return
        self.advance(now_ns)
        if now_ns < self._retry_ns:
            self.num_lost += 1
            return
        key = msgspec.msgpack.encode(layout), identity
        try:
            writer = self._writer(key, layout, now_ns)
        except StoreError as error:
            self.num_lost += 1
            self._fail(error, now_ns)
            return
        self.num_recorded += 1
        try:
            writer.update(observation)
        except StoreError as error:
            self._give_up(key)
            self._fail(error, now_ns)
            return
        if writer.num_bytes >= self._limits.file_bytes:
            self._finish(key, now_ns)

    def advance(self, now_ns: int) -> None:
        """Finish what is old enough; call it now and then, so that idle files are finished too."""
        for key, (start_ns, _) in list(self._open.items()):
            if now_ns - start_ns >= self._limits.file_ns:
                self._finish(key, now_ns)

    def close(self) -> None:
        """Finish every file."""
        for key, (start_ns, _) in list(self._open.items()):
            self._finish(key, start_ns)

    def _writer(self, key: _Key, layout: Layout, now_ns: int) -> RecordingWriter:
        if key not in self._open:
            while len(self._open) >= MAX_OPEN:
                self._finish(next(iter(self._open)), now_ns)
            header = Header(key[1], layout, release=self._release)
            path = _free_path(self._folder, now_ns, header.schema_digest[:8])
            self._open[key] = now_ns, RecordingWriter(path, header)
        return self._open[key][1]

    def _finish(self, key: _Key, now_ns: int) -> None:
        writer = self._open[key][1]
        try:
            writer.finish()
        except StoreError as error:
            self._give_up(key)
            self._fail(error, now_ns)
        else:
            del self._open[key]
            self._make_room()

    def _give_up(self, key: _Key) -> None:
        """Forget a file that cannot be written, with the requests in it."""
        _, writer = self._open.pop(key)
        writer.abandon()
        self.num_recorded -= writer.num_requests
        self.num_lost += writer.num_requests

    def _fail(self, error: StoreError, now_ns: int) -> None:
        self.reason = f"{error}; free the disk or give another SIDECAR_STATE_DIR"
        self._retry_ns = now_ns + RETRY_NS

    def _make_room(self) -> None:
        """Remove the oldest files until the rest is small enough; the newest always stays."""
        files = _listed(self._folder, SUFFIX)
        sizes = [_num_bytes(file) for file in files]
        excess = sum(sizes) - self._limits.total_bytes
        for file, num_bytes in zip(files[:-1], sizes, strict=False):
            if excess <= 0:
                return
            with suppress(OSError):
                file.unlink()
                self.num_removed += 1
                excess -= num_bytes


def _free_path(folder: Path, now_ns: int, digest: str) -> Path:
    """A name that sorts by time, and is nobody's yet."""
    start = datetime.fromtimestamp(now_ns // 10**9, UTC)
    stem = f"{start:%Y%m%dT%H%M%S}.{now_ns % 10**9:09}Z-{digest}"
    paths = (folder / f"{stem}{n or ''}{SUFFIX}" for n in itertools.count())
    return next(p for p in paths if not (p.exists() or p.with_name(p.name + OPEN_SUFFIX).exists()))


def _listed(folder: Path, suffix: str) -> list[Path]:
    with suppress(OSError):
        return sorted(folder.glob(f"*{suffix}"))
    return []


def _num_bytes(file: Path) -> int:
    with suppress(OSError):
        return file.stat().st_size
    return 0
