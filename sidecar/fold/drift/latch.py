"""The latch: what was reached stays reached until somebody has seen it.

Guarantees: the state never falls by itself; a page replaces a ticket, and nothing replaces a page;
the causes are those of the moment it was reached, since later ones are mixed with what the change
brought about.
"""

from typing import Final, NamedTuple

import msgspec

from sidecar.errors import StateError
from sidecar.fold.drift import exported
from sidecar.fold.drift.exported import Plain
from sidecar.fold.drift.verdict import Cause, ChannelState, Verdict

_KIND: Final = "latch"
_VERSION: Final = 1


class Raised(NamedTuple):
    """A ticket or a page, as it was when it was reached.

    reason: one sentence. since_ns: Unix time of the change, where it is known.
    raised_ns: Unix time of the material that raised it.
    """

    state: ChannelState
    reason: str
    since_ns: int | None
    causes: tuple[Cause, ...]
    raised_ns: int


class Latch:
    """Holds the worst that was raised since the last acknowledgement."""

    def __init__(self) -> None:
        self._raised: Raised | None = None
        self._acknowledged_ns: int | None = None

    @property
    def raised(self) -> Raised | None:
        """What is latched; None when there is nothing that nobody has seen."""
        return self._raised

    def update(self, raised: Raised) -> None:
        """Take a ticket or a page; one that is no worse than what is latched changes nothing."""
        if self._raised is None or raised.state.rank > self._raised.state.rank:
            self._raised = raised

    def get(self, calm: Verdict) -> Verdict:
        """`calm`, or the latched state and its causes with the level and time of `calm`."""
        if self._raised is None:
            return calm._replace(is_acknowledged=self._acknowledged_ns is not None)
        state, reason, since_ns, causes, _ = self._raised
        return calm._replace(state=state, reason=reason, since_ns=since_ns, causes=causes)

    def acknowledge(self, now_ns: int) -> None:
        """Somebody has seen it; without anything to see nothing changes."""
        if self._raised is not None:
            self._raised = None
            self._acknowledged_ns = now_ns

    def export(self) -> Plain:
        """What `restore` goes on from."""
        fields = {
            "raised": msgspec.to_builtins(self._raised),
            "acknowledged_ns": self._acknowledged_ns,
        }
        return exported.tagged(_KIND, _VERSION, fields)

    def restore(self, plain: object) -> None:
        """Go on from `export()`; StateError when it is of something else."""
        held = exported.checked(plain, _KIND, _VERSION)
        try:
            raised = msgspec.convert(held["raised"], Raised | None)
            acknowledged_ns = msgspec.convert(held["acknowledged_ns"], int | None)
        except (KeyError, msgspec.ValidationError) as error:
            raise StateError(f"no latch: {error}; delete the snapshot to start at 0") from error
        self._raised, self._acknowledged_ns = raised, acknowledged_ns
