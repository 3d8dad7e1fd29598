"""Atomic files: a reader sees the whole new file or the whole old one, also after a crash.

Guarantees: `replace` returns when the bytes are on the disk, and a failure leaves the old file as
it was; one leftover at most per file, however often a writer dies; of two writers one is refused.
"""

import fcntl
import os
from pathlib import Path
from typing import Final

from sidecar.errors import StoreError

MAX_BYTES: Final = 1 << 30
_MODE: Final = 0o644


def replace(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, then put it in its place. Raises StoreError."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(beside, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, _MODE)
        try:
            _own(descriptor, beside)
            os.ftruncate(descriptor, 0)
            _write(descriptor, data)
            os.fsync(descriptor)
            # The lock is still ours, so nobody else has touched what is renamed here.
            beside.replace(path)
        finally:
            os.close(descriptor)
        _sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}; the old file is as it was") from error


def read(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of `path`. Raises FileNotFoundError, and StoreError when it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error}") from error
    if len(data) > max_bytes:
        raise StoreError(f"{path} is larger than {max_bytes} bytes, so it is none of ours")
    return data


def put_aside(path: Path) -> Path:
    """Rename a file that was refused, so that the next one does not destroy it; its new name."""
    aside = path.with_name(f"{path.name}.refused")
    try:
        path.replace(aside)
    except OSError as error:
        raise StoreError(f"cannot put {path} aside: {error}") from error
    return aside


def _own(descriptor: int, beside: Path) -> None:
    """Raises BlockingIOError unless the file `beside` is open here, and here only."""
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # Whoever held the lock before may have renamed the file into place since we opened it.
    if not beside.exists() or os.fstat(descriptor).st_ino != beside.stat().st_ino:
        raise BlockingIOError("another process writes the same file")


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
