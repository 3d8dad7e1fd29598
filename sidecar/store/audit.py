"""The audit log: one line for each thing that an operator did, chained by hash, only ever appended.

Guarantees: an entry is on the disk before `append` returns, or StoreError says that it is not; of
two writers each entry stands whole, and in one chain; a line that was changed, removed, added or
moved is found by `verify`, the end of the file alone excepted: compare `head` with what
`llm_internals_audit_entries_total` or an earlier look said. A line that a crash cut off is told of
by the next entry, which carries its SHA-256, and so is never mistaken for tampering.

A line is a JSON object with sorted keys. `hash` is the SHA-256 in hex of the line without `hash`;
`previous` is the hash of the entry before, `GENESIS` for the first. This is a linear form of the
hash chain of Haber and Stornetta, "How to time-stamp a digital document", J. Cryptology 3 (1991).
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from sidecar.errors import StoreError

NAME: Final = "audit.jsonl"  # in SIDECAR_STATE_DIR
GENESIS: Final = "0" * 64
MAX_LINE: Final = 16 << 10
TORN: Final = "audit.torn"  # the action of an entry that follows a line which a crash cut off
_MODE: Final = 0o640
_CHUNK: Final = 1 << 16


class Entry(NamedTuple):
    """One thing that was done.

    number: from 1, without gaps. t_ns: Unix time. who: by which right it was done.
    action: what, such as `drift.acknowledge`. detail: small facts about it; never a secret.
    """

    number: int
    t_ns: int
    who: str
    action: str
    detail: Mapping[str, Any]
    previous: str
    hash: str


class Head(NamedTuple):
    """Where the chain ends: how many entries, and the hash of the last."""

    number: int = 0
    hash: str = GENESIS


class AuditLog:
    """Appends to one file, which other processes may append to as well."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, t_ns: int, who: str, action: str, detail: Mapping[str, Any]) -> Entry:
        """Write one entry. Raises StoreError when it cannot be; nothing was written then."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self.path, flags, _MODE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                _give_to_owner(descriptor, self.path.parent)
                head, torn = _end(descriptor, self.path)
                before = os.fstat(descriptor).st_size
                if torn:
                    told = {"sha256": hashlib.sha256(torn).hexdigest(), "num_bytes": len(torn)}
                    mended = _entry(head, t_ns, "sidecar", TORN, told)
                    _write(descriptor, b"\n" + _line(mended), before)
                    head, before = Head(*_place(mended)), os.fstat(descriptor).st_size
                entry = _entry(head, t_ns, who, action, detail)
                _write(descriptor, _line(entry), before)
                return entry
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StoreError(
                f"cannot write the audit log {self.path}: {error}; make room or mend its rights"
            ) from error

    def head(self) -> Head:
        """Where the chain ends, by the last whole line. Raises StoreError."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return Head()
        except OSError as error:
            raise StoreError(f"cannot read the audit log {self.path}: {error}") from error
        try:
            return _end(descriptor, self.path)[0]
        finally:
            os.close(descriptor)


def verify(path: Path, known: Head | None = None) -> Head:
    """Walk the whole chain; where it ends.

    known: an earlier end, which must still be part of it.
    Raises StoreError with the number of the first line that does not fit.
    """
    head, torn = Head(), b""
    is_found = known in (None, head)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                entry = _parse(line)
                if entry is None and not torn:
                    torn = line.rstrip(b"\n")  # excused by the next entry, or by nobody
                    continue
                if entry is None or _wrong(entry, head) or not _excuses(entry, torn):
                    raise StoreError(_broken(path, number, entry, head))
                head, torn = Head(*_place(entry)), b""
                is_found = is_found or head == known
    except OSError as error:
        raise StoreError(f"cannot read the audit log {path}: {error}") from error
    if torn:
        raise StoreError(
            f"{path}: what follows entry {head.number} is no entry: a crash cut it off, or "
            "somebody wrote it; the next start of the sidecar says which bytes it found"
        )
    if known is not None and not is_found:
        raise StoreError(
            f"{path}: {known.number}:{known.hash} is not in it, though each entry follows the one "
            "before: its end was cut off, or it was written anew. Compare with a copy of the log"
        )
    return head


def _broken(path: Path, number: int, entry: Entry | None, head: Head) -> str:
    reason = "it is no entry" if entry is None else _wrong(entry, head) or "it excuses no torn line"
    return (
        f"{path} line {number}: {reason}; the chain holds up to entry {head.number}. "
        "Compare with a copy of the log, and find out who can write it"
    )


def _wrong(entry: Entry, head: Head) -> str:
    if entry.hash != _digest(entry):
        return f"entry {entry.number} was changed"
    if (entry.number, entry.previous) != (head.number + 1, head.hash):
        return f"entry {entry.number} does not follow entry {head.number}"
    return ""


def _excuses(entry: Entry, torn: bytes) -> bool:
    """Whether the entry after a torn line tells of exactly that line, and only then."""
    if entry.action != TORN:
        return not torn
    return bool(torn) and entry.detail.get("sha256") == hashlib.sha256(torn).hexdigest()


def _entry(head: Head, t_ns: int, who: str, action: str, detail: Mapping[str, Any]) -> Entry:
    entry = Entry(head.number + 1, t_ns, who, action, detail, head.hash, "")
    if len(_line(entry)) > MAX_LINE:
        entry = entry._replace(detail={"left_out": "the detail was too long"})
    return entry._replace(hash=_digest(entry))


def _place(entry: Entry) -> tuple[int, str]:
    return entry.number, entry.hash


def _digest(entry: Entry) -> str:
    told = {key: value for key, value in entry._asdict().items() if key != "hash"}
    return hashlib.sha256(_json(told)).hexdigest()


def _line(entry: Entry) -> bytes:
    return _json(entry._asdict()) + b"\n"


def _json(told: Mapping[str, Any]) -> bytes:
    return json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _parse(line: bytes) -> Entry | None:
    if not line.endswith(b"\n"):
        return None
    try:
        told = json.loads(line)
        entry = Entry(**told)
    except (ValueError, TypeError, RecursionError):
        return None
    kinds = (int, int, str, str, dict, str, str)
    if not all(type(value) is kind for value, kind in zip(entry, kinds, strict=True)):
        return None
    # One spelling only: else a line could be changed without changing what it says.
    return entry if _line(entry) == line else None


def _give_to_owner(descriptor: int, folder: Path) -> None:
    """What root made is its folder's owner's: the sidecar could not append to it otherwise."""
    made = os.fstat(descriptor)
    if made.st_size == 0 and os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _end(descriptor: int, path: Path) -> tuple[Head, bytes]:
    """The last whole entry, and the bytes after it that a crash left. Raises StoreError."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, min(size, _CHUNK), max(0, size - _CHUNK))
    whole, _, torn = tail.rpartition(b"\n")
    if not whole:
        if size > len(torn):
            raise StoreError(f"{path} holds a line of more than {MAX_LINE} bytes: none of ours")
        return Head(), torn
    entry = _parse(whole.rpartition(b"\n")[2] + b"\n")
    if entry is None or entry.hash != _digest(entry):
        raise StoreError(
            f"{path} does not end with an entry of ours: run sidecar audit verify {path}, "
            "then move the file aside to begin a new log"
        )
    return Head(*_place(entry)), torn


def _write(descriptor: int, data: bytes, size: int) -> None:
    """Append and sync; on failure the file is as long as it was, where that can be had."""
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise
