"""The control: a small JSON file by which an operator steers a running tap.

Guarantees: a file is used whole or refused with a ConfigError that names the remedy; it is written
beside its place and renamed into it, so that nobody reads half of it; what somebody else could
have laid there (a link, another user's file, one that everybody may write) is never read.
"""

import contextlib
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from sidecar.errors import ChannelError, ConfigError
from sidecar.wire.channel import check_folder
from sidecar.wire.fields import Rank
from sidecar.wire.scan import MAX_REQUESTS

VERSION: Final = 1
MAX_BYTES: Final = 1 << 16
MODE: Final = 0o640
_FOLDER_MODE: Final = 0o770
_DIGEST_LETTERS: Final = 12
_SCAN_ID_BYTES: Final = 4
_ROOT: Final = 0

Every = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class Control(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an operator wishes; None leaves it to the configuration.

    revision: a name for these wishes; made of the contents where the file has none.
    is_on: False is the kill switch: nothing is measured, rows are counted as shed.
    layers: global ids of the layers whose residual stream is added up; those of other pipeline
    stages are theirs.
    steps_every: one step in so many is measured at all.
    attention_every, confidence_every: see TapConfig; 0 for never. attention_requests: likewise.
    scan_requests: the next so many requests are scanned, row by row (docs/scan.md); 0 for no more.
    scan_id: tells one such wish from the next: each is obeyed once in the life of an engine.
    """

    version: Literal[1] = VERSION
    revision: Annotated[str, msgspec.Meta(max_length=64)] = ""
    is_on: bool = True
    layers: Annotated[list[Rank], msgspec.Meta(min_length=1, max_length=1024)] | None = None
    steps_every: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    attention_every: Every | None = None
    attention_requests: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
    confidence_every: Every | None = None
    scan_requests: Annotated[int, msgspec.Meta(ge=0, le=MAX_REQUESTS)] | None = None
    scan_id: Annotated[str, msgspec.Meta(max_length=64)] = ""


def change(before: Control | None, changes: dict[str, Any]) -> Control:
    """`before`, or nothing, with some fields replaced; it has no revision of its own any more.

    changes: values may be texts, as typed; `null` leaves a field to the configuration.
    Raises ConfigError with the field when a value is out of range.
    """
    wishes = {} if before is None else msgspec.to_builtins(before)
    try:
        return msgspec.convert({**wishes, **changes, "revision": ""}, Control, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{error}; see docs/control.md for what may be asked") from error


def ask_for_scans(path: Path, num_requests: int | str) -> Control:
    """Have the next so many requests scanned, and leave all other wishes as they are.

    Raises ConfigError when the number is out of range, or the control at `path` cannot be used.
    """
    asked = change(read(path), scan_wish(num_requests))
    write(path, asked)
    return asked


def scan_wish(num_requests: int | str) -> dict[str, Any]:
    """The changes that ask for it: a wish like no other, so that it is obeyed."""
    return {"scan_requests": num_requests, "scan_id": secrets.token_hex(_SCAN_ID_BYTES)}


def encode(control: Control) -> bytes:
    """The file that says so."""
    wishes = {"version": VERSION, **msgspec.to_builtins(control)}
    return msgspec.json.format(msgspec.json.encode(wishes), indent=2) + b"\n"


def decode(data: bytes) -> Control:
    """What a file says. Raises ConfigError when it is no control of this version."""
    try:
        control = msgspec.json.decode(data, type=Control)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{error}; begin anew with `sidecar control --clear`") from error
    if control.revision:
        return control
    digest = hashlib.sha256(data).hexdigest()[:_DIGEST_LETTERS]
    return msgspec.structs.replace(control, revision=digest)


def read(path: Path) -> Control | None:
    """The control at `path`; None when there is no file. Raises ConfigError with the reason."""
    try:
        check_folder(path.parent)
        # A pipe would keep us waiting; a link may point anywhere.
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except (OSError, ChannelError) as error:
        raise ConfigError(f"cannot read the control: {error}") from error
    try:
        return decode(_contents(file))
    except (OSError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from error
    finally:
        os.close(file)


def write(path: Path, control: Control) -> None:
    """Put `control` in force at `path`, at once. Raises ConfigError when that cannot be."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        check_folder(path.parent)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(beside, flags, MODE), "wb") as file:
                os.fchmod(file.fileno(), MODE)
                file.write(encode(control))
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except (OSError, ChannelError) as error:
        raise ConfigError(f"cannot write the control: {error}") from error


def remove(path: Path) -> None:
    """Return to the configuration. Raises ConfigError when the file cannot be removed."""
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    except OSError as error:
        raise ConfigError(f"cannot remove the control: {error}") from error


def _contents(file: int) -> bytes:
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError("not a plain file; remove it")
    if found.st_uid not in (os.getuid(), _ROOT) or found.st_mode & stat.S_IWOTH:
        raise ConfigError("another user owns it or may write it; chown and chmod 640 it")
    if found.st_size > MAX_BYTES:
        raise ConfigError(f"{found.st_size} bytes; at most {MAX_BYTES} are read")
    return os.read(file, MAX_BYTES + 1)
