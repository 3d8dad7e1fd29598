"""Everything that one thread folds for drift: the windows, and the channels that judge them.

Guarantees: not thread-safe and never waiting for anything but its channels; a channel that fails
takes no other with it (`seat.Seat`); a view is a value that later items leave alone. Canary
requests reach the canary channel alone, all others the windows alone.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sidecar.errors import StateError
from sidecar.fold.drift.observation import observation_of
from sidecar.fold.drift.verdict import Verdict
from sidecar.fold.signatures import Signed
from sidecar.publish.book import Book, Closed, Counts
from sidecar.publish.seat import ChannelView, Seat, absent
from sidecar.wire.frame import Identity, Manifest, Serving, Signatures, Source, Status

MAX_SOURCES: Final = 256
MAX_DEPLOYMENTS: Final = 32
Told = Signatures | Status | Manifest | Serving


class Heard(NamedTuple):
    """What a source told, and when that was read."""

    source: Source
    body: Told
    now_ns: int


class Deployment(NamedTuple):
    """A change that the operator announced."""

    t_ns: int
    note: str


class Executed(NamedTuple):
    """What one engine executes, as far as it said so."""

    identity: Identity | None = None
    manifest: Manifest | None = None
