"""Every frame by what became of it: the senders' journals against what the sidecar says.

For one life of a source, with `known` what the sidecar says of it (see `fold.stream`):

    sent, by its journal == known.sent + unheard
    known.sent           == before + received + stale + dropped + missing
    before               == read by sidecars that were killed + in the hands of those

unheard is 0 and both books agree on what was dropped, unless the source was killed: then its last
frames are dropped ones that nobody told of, and those in its hands. before is 0 unless a sidecar
was killed. Whatever breaks one of these is unaccounted.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from bench.chaos.journal import Entries

CAUSES: Final = ("dropped", "stale", "missing")


class Known(NamedTuple):
    """What a sidecar says of one life of one source: `/v1/status`."""

    sent: int = 0
    received: int = 0
    lost: Mapping[str, int] = dict.fromkeys(CAUSES, 0)

    @property
    def before(self) -> int:
        """Frames handed over before this sidecar heard the first."""
        return self.sent - self.received - sum(self.lost.values())


class Found(NamedTuple):
    """Frames by what became of them.

    received: read by a sidecar that told of it. lost: counted, by cause. in_hands: in the hands of
    a process when it was killed: of a sidecar that had no time to tell, or of an engine.
    unaccounted: what no book explains; 0, or a bug. raised: calls of the sender that raised.
    """

    sent: int = 0
    received: int = 0
    dropped: int = 0
    stale: int = 0
    missing: int = 0
    in_hands: int = 0
    unaccounted: int = 0
    raised: int = 0

    def add(self, other: "Found") -> "Found":
        """Both together."""
        return Found(*(a + b for a, b in zip(self, other, strict=True)))


def compare(
    written: Entries, known: Known, earlier: Known | None = None, *, is_killed: bool = False
) -> Found:
    """Compare the books about one life of a source.

    earlier: what sidecars that were killed had said of it, added up; None where none was.
    is_killed: whether the source was.
    """
    is_first, earlier = earlier is None, earlier or Known()
    unheard = written.sent - known.sent
    untold = written.dropped - known.lost["dropped"]
    read = earlier.received + earlier.lost["stale"] + earlier.lost["missing"]
    in_sidecars = 0 if is_first else known.before - read
    strange = abs(known.before) if is_first else abs(min(0, in_sidecars))
    if is_killed:
        strange += abs(min(0, unheard)) + abs(min(0, untold)) + max(0, untold - max(0, unheard))
    else:
        strange += abs(unheard) + abs(untold)
    return Found(
        written.sent,
        known.received + earlier.received,
        written.dropped,
        known.lost["stale"] + earlier.lost["stale"],
        known.lost["missing"] + earlier.lost["missing"],
        max(0, in_sidecars) + (max(0, unheard - untold) if is_killed else 0),
        strange,
        written.raised,
    )
