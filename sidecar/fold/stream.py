"""Accounting of the frames of one life (boot) of one source: none is lost without a name.

Guarantee, for every frame number `n` that has been heard of:

    n == before + received + stale + dropped + missing

- before: frames that the source handed over before the first one heard here;
- dropped: frames that the source could not hand over, as it says itself, since its boot: a
  restarted receiver tells what was lost while it was away;
- missing: handed over, but never arrived;
- stale: arrived, but too old to be used.

Every part only ever grows. Holds for dishonest headers too: what a source claims to have dropped
is never believed beyond the gap that is seen.
"""

from typing import NamedTuple

from sidecar.wire.frame import Header


class Tally(NamedTuple):
    """Frames by what became of them; `sent` is the sum of all others."""

    sent: int = 0
    before: int = 0
    received: int = 0
    stale: int = 0
    dropped: int = 0
    missing: int = 0


class Stream:
    """The numbers of one life of a source, in the order of arrival."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._dropped_total = 0

    def update(self, header: Header, *, stale: bool) -> bool:
        """Count a frame; False, and nothing is counted, when its number came before.

        A frame overtaken by a later one is refused like a repeated one: it was counted as missing
        already, and its totals are older than those known.
        """
        tally = self._tally
        gap = header.seq - tally.sent - 1
        if gap < 0:
            return False
        dropped = min(max(header.dropped_total - self._dropped_total, 0), gap)
        unheard = gap - dropped
        first = tally.sent == 0
        self._dropped_total = header.dropped_total
        self._tally = Tally(
            sent=header.seq,
            before=unheard if first else tally.before,
            received=tally.received + (not stale),
            stale=tally.stale + stale,
            dropped=tally.dropped + dropped,
            missing=0 if first else tally.missing + unheard,
        )
        return True

    def get(self) -> Tally:
        """The account so far."""
        return self._tally
