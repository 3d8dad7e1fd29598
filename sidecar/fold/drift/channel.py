"""The seam of drift: a channel judges what it is fed, and says at any time what it concluded.

What a channel is fed with is its own (`update(window)`, `update(round)`); what it says is not.

Law, tested for every channel: export, restore into a new channel and go on, anywhere, equals never
having stopped. A foreign or older state is refused with StateError, and the channel is unchanged.
"""

from typing import Any, Protocol

from sidecar.fold.drift.verdict import Verdict


class Channel(Protocol):
    """One of the independent judges of drift."""

    @property
    def name(self) -> str:
        """Label of its metrics: traffic, canary, replica, integrity, tail or mix."""

    def get(self, now_ns: int) -> Verdict:
        """What it concludes at `now_ns`, from what it was fed so far."""

    def acknowledge(self, now_ns: int) -> None:
        """Somebody has seen it: the latch opens and the statistics start again at 0."""

    def export(self) -> dict[str, Any]:
        """Everything needed to go on; plain values and bytes, so msgspec can pack it."""

    def restore(self, exported: dict[str, Any]) -> None:
        """Go on from `export()`. Raises StateError when it is of something else."""
