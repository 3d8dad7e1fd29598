"""What a drift channel says: one state, one sentence, and what brought it there.

Guarantees: a verdict is a value (nothing in it changes later); `causes` are sorted by share, the
largest first, at most `MAX_CAUSES`; `state` is the worst that is latched until somebody
acknowledges it, so a page is never missed because nobody looked while it lasted.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final, Literal, NamedTuple

MAX_CAUSES: Final = 20  # as many as are published as series of their own

Side = Literal["high", "low"]


class ChannelState(StrEnum):
    """How a channel stands, from the least to the worst."""

    COLLECTING = "collecting"  # not armed: the reason says what is missing
    ARMED = "armed"  # judging, nothing found
    TICKET = "ticket"  # worth a look in working hours
    PAGE = "page"  # somebody has to look now

    @property
    def rank(self) -> int:
        """0 for collecting to 3 for a page: `max` by this is the worst of several."""
        return list(ChannelState).index(self)


class Cause(NamedTuple):
    """One stream that moved.

    stream: its name, such as `residual/decode/l3/log_rms`; or the rule's, such as `header/dtype`.
    layer: global id, None where the stream belongs to no layer.
    signal, phase: its parts, "" where it has none.
    side: whether it is above or below what it was.
    share: how far its statistic is to its limit; 1 and more alarms.
    since_ns: Unix time from which it has been moving (a change-point estimate); None when unknown.
    """

    stream: str
    layer: int | None
    signal: str
    phase: str
    side: Side
    share: float
    since_ns: int | None


class Verdict(NamedTuple):
    """What a channel concludes.

    channel: its name, the label of its metrics.
    state: see `ChannelState`.
    reason: one sentence; when the channel is not armed it names the remedy.
    level: the largest share of its limit *now*, also while an older page is latched.
    since_ns: Unix time of the estimated change behind `state`; None when nothing was found.
    causes: what brought it there; while latched, as they were when the state was reached.
    judged_ns: end of the latest material judged, in Unix ns; 0 before any.
    is_acknowledged: somebody has seen the latest page or ticket.
    """

    channel: str
    state: ChannelState
    reason: str
    level: float = 0.0
    since_ns: int | None = None
    causes: tuple[Cause, ...] = ()
    judged_ns: int = 0
    is_acknowledged: bool = False


def worst_causes(causes: Iterable[Cause]) -> tuple[Cause, ...]:
    """The `MAX_CAUSES` with the largest share, largest first; equals in order of their name."""
    return tuple(sorted(causes, key=lambda cause: (-cause.share, cause.stream))[:MAX_CAUSES])
