"""The notary: attests which files a model was loaded from, by their SHA-256, once per boot.

Guarantees: the engine's thread only lists the files and starts a thread; that thread runs at the
lowest priority, reads `CHUNK_BYTES` at a time and rests so that it works at most `SHARE` of the
time, whatever the size of the files. A digest stands only for a file that is, by its size, times
and place, the one that was there when the model had been loaded; it is looked at every minute.

    digest = SHA-256 of one line "<sha256>  <name>" for each of its files, sorted by name

which is what `sha256sum FILES | sha256sum` prints in the model's folder, so anybody can check it.
"""

import contextlib
import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Self

from sidecar.errors import WeightsUnread
from sidecar.tap.cores import unbind
from sidecar.wire.fields import MAX_LONG_TEXT, MAX_TEXT
from sidecar.wire.frame import MAX_FILES, File, Manifest

SHARE: Final = 0.25  # of one core
CHUNK_BYTES: Final = 4 << 20
TELL_NS: Final = 60 * 10**9
CHECK_SECONDS: Final = 60.0
_NICE: Final = 19

_TOKENIZER_NAMES: Final = frozenset(
    {"vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "special_tokens_map.json"}
    | {"tekken.json", "chat_template.json"}
)
_TOKENIZER_ENDS: Final = (".model", ".tiktoken", ".jinja")
# What else decides what is computed: weights, their index, configuration, and code of the model's.
_MODEL_ENDS: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".json", ".py")
_WEIGHTS_ENDS: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


class Stamp(NamedTuple):
    """By what a file is known again without reading it."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class Found(NamedTuple):
    """One file that the model was loaded from, as it was then."""

    name: str
    path: Path
    is_tokenizer: bool
    stamp: Stamp


class Notary:
    """One boot's manifest. `get` and `due` may be called from another thread than it works on."""

    def __init__(
        self,
        files: Iterable[Found],
        *,
        share: float = SHARE,
        check_seconds: float = CHECK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = sorted(files, key=lambda found: found.name)
        self._share = share
        self._check_seconds = check_seconds
        self._clock = clock
        self._manifest = Manifest("hashing")
        self._told: Manifest | None = None
        self._tell_ns = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sidecar-notary", daemon=True)

    @classmethod
    def absent(cls, reason: str) -> Self:
        """A notary who has nothing to attest, and says why."""
        made = cls(())
        made._manifest = _absent(reason)
        return made

    def start(self) -> None:
        """Begin to hash, where there is something to hash."""
        if self._files:
            self._thread.start()

    def stop(self) -> None:
        """End soon; nobody waits for it."""
        self._stopping.set()

    def get(self) -> Manifest:
        """What is attested by now."""
        return self._manifest

    def due(self, now_ns: int) -> Manifest | None:
        """The manifest when it is news, or was last told a minute ago; `now_ns` in Unix time."""
        manifest = self._manifest
        if manifest is self._told and 0 <= now_ns - self._tell_ns < TELL_NS:
            return None
        self._told, self._tell_ns = manifest, now_ns
        return manifest

    def _run(self) -> None:
        with contextlib.suppress(_Stopped):
            unbind()
            _step_back()
            self._manifest = self._attested()
            while not self._stopping.wait(self._check_seconds):
                self._manifest = _checked(self._manifest, self._files)

    def _attested(self) -> Manifest:
        try:
            hashed = [(found, self._hash(found)) for found in self._files]
        except _Stopped:
            raise
        except Exception as error:  # whatever it is, it is told: nobody else sees this thread
            return _absent(str(error) or repr(error))
        return _manifest(hashed)

    def _hash(self, found: Found) -> str:
        digest = hashlib.sha256()
        with found.path.open("rb", buffering=0) as file:
            _check_stamp(found, file)
            for chunk in self._chunks(file):
                digest.update(chunk)
            _check_stamp(found, file)
        return digest.hexdigest()

    def _chunks(self, file: BinaryIO) -> Iterator[memoryview]:
        """The bytes of `file`, with a rest after each chunk is used."""
        buffer = memoryview(bytearray(CHUNK_BYTES))
        began = self._clock()
        while num_bytes := file.readinto(buffer):  # type: ignore[attr-defined]
            yield buffer[:num_bytes]
            rest = (self._clock() - began) * (1 - self._share) / self._share
            if self._stopping.wait(rest):
                raise _Stopped
            began = self._clock()


def find_files(model: Path, tokenizer: Path | None) -> list[Found]:
    """Files of the folders `model` and `tokenizer` that decide what is computed, as they are now.

    model: a folder, or the one file that holds everything. tokenizer: None when there is none.
    Raises WeightsUnread when no weights lie there.
    """
    files = [model] if model.is_file() else _listed(model)
    found = [_found(path) for path in files if _is_of_model(path.name)]
    if not any(each.name.endswith(_WEIGHTS_ENDS) for each in found):
        raise WeightsUnread(f"{model} holds no weights; nothing there can be hashed")
    if tokenizer is not None:
        found += [_found(path) for path in _listed(tokenizer) if _is_of_tokenizer(path.name)]
    return found


class _Stopped(Exception):
    """Asked to stop in the middle of a file."""


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise WeightsUnread(f"{folder}: {error.strerror}; let the engine's user read it") from error


def _is_of_tokenizer(name: str) -> bool:
    is_named = name in _TOKENIZER_NAMES or name.startswith("tokenizer")
    return is_named or name.endswith(_TOKENIZER_ENDS)


def _is_of_model(name: str) -> bool:
    return name.endswith(_MODEL_ENDS) and not _is_of_tokenizer(name)


def _found(path: Path) -> Found:
    try:
        stamp = _stamp(path.stat())
    except OSError as error:
        raise WeightsUnread(f"{path}: {error.strerror}; let the engine's user read it") from error
    # A name that is no UTF-8 could not travel.
    name = path.name.encode("utf-8", "replace").decode()[:MAX_TEXT]
    return Found(name, path, _is_of_tokenizer(path.name), stamp)


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _check_stamp(found: Found, file: BinaryIO) -> None:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or _stamp(status) != found.stamp:
        raise WeightsUnread(
            f"{found.name} changed after the model was loaded and before it was hashed: what is "
            "executed is no longer on disk; restart the engine"
        )


def _manifest(hashed: list[tuple[Found, str]]) -> Manifest:
    told = [File(found.name, found.stamp.size, digest) for found, digest in hashed]
    cut = f"{MAX_FILES} of {len(told)} files are listed; the digests cover all of them"
    return Manifest(
        "complete",
        cut if len(told) > MAX_FILES else "",
        _digest((found.name, digest) for found, digest in hashed if not found.is_tokenizer),
        _digest((found.name, digest) for found, digest in hashed if found.is_tokenizer),
        told[:MAX_FILES],
    )


def _digest(lines: Iterable[tuple[str, str]]) -> str:
    """Digest of digests; "" of no files."""
    text = "".join(f"{digest}  {name}\n" for name, digest in lines)
    return hashlib.sha256(text.encode()).hexdigest() if text else ""


def _checked(manifest: Manifest, files: Iterable[Found]) -> Manifest:
    """The manifest, with a finding when files are no longer what was loaded."""
    changed = [found.name for found in files if not _is_unchanged(found)]
    if manifest.state != "complete" or not changed:
        return manifest
    reason = (
        f"{len(changed)} files changed on disk since the model was loaded from them, which is "
        f"executed as it was: {', '.join(changed)}; restart the engine to load what is there"
    )[:MAX_LONG_TEXT]
    if reason == manifest.reason:
        return manifest
    return Manifest(
        manifest.state,
        reason,
        manifest.weights_digest,
        manifest.tokenizer_digest,
        manifest.files,
    )


def _is_unchanged(found: Found) -> bool:
    try:
        return _stamp(found.path.stat()) == found.stamp
    except OSError:
        return False


def _absent(reason: str) -> Manifest:
    return Manifest("absent", reason[:MAX_LONG_TEXT])


def _step_back() -> None:
    """Let every other thread go first: on Linux, priorities are of threads."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
