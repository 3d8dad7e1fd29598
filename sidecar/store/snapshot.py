"""Snapshots: what the channels knew, so that a restart does not forget half an alarm.

Guarantees: written whole or not at all; a torn, foreign or older file is refused, and put aside
instead of overwritten; a state is given back only to the channel and baseline that it is of.
"""

from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from sidecar.errors import StateError, StoreError
from sidecar.store import atomic
from sidecar.store.sealed import decode, seal, unseal

KIND: Final = "snapshot"
VERSION: Final = 1
MAX_BYTES: Final = 256 << 20


class Saved(NamedTuple):
    """The state that one channel exported.

    bound_to: digest of the baseline it was judged by; "" when it needs none.
    """

    bound_to: str
    state: dict[str, Any]


class Snapshot(NamedTuple):
    """The states of all channels at one moment; Unix time in nanoseconds."""

    saved_ns: int
    channels: dict[str, Saved]

    def state(self, channel: str, bound_to: str) -> dict[str, Any] | None:
        """What to restore `channel` from; None when it was not saved.

        Raises StateError when it was judged by another baseline.
        """
        saved = self.channels.get(channel)
        if saved is not None and saved.bound_to != bound_to:
            raise StateError(
                f"{channel} was judged by baseline {saved.bound_to[:12] or 'none'}, now it is "
                f"{bound_to[:12] or 'none'}: it starts again at 0, which only delays alarms"
            )
        return saved and saved.state


class SnapshotFile:
    """One file, read once at the start and written again and again by one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_ours = False  # whether what lies there may be overwritten

    def read(self) -> Snapshot | None:
        """The snapshot; None when there is none yet. Raises StoreError, and keeps the file."""
        try:
            data = atomic.read(self.path, MAX_BYTES)
        except FileNotFoundError:
            self._is_ours = True
            return None
        snapshot = _opened(data, self.path)
        self._is_ours = True
        return snapshot

    def write(self, snapshot: Snapshot) -> None:
        """Replace the file. Raises StoreError; then the old one is as it was."""
        about = {"saved_ns": snapshot.saved_ns, "channels": sorted(snapshot.channels)}
        payload = msgspec.msgpack.encode(
            {"saved_ns": snapshot.saved_ns, "channels": snapshot.channels}
        )
        sealed = seal(KIND, VERSION, about, payload)
        self._make_way()
        atomic.replace(self.path, sealed)

    def _make_way(self) -> None:
        if self._is_ours:
            return
        try:
            self.read()
        except StoreError:
            atomic.put_aside(self.path)
            self._is_ours = True


class _Payload(msgspec.Struct, forbid_unknown_fields=True):
    saved_ns: int
    channels: dict[str, Saved]


def _opened(data: bytes, path: Path) -> Snapshot:
    try:
        sealed = unseal(data, KIND, VERSION)
        payload = decode(sealed.payload, _Payload)
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from error
    return Snapshot(payload.saved_ns, payload.channels)
