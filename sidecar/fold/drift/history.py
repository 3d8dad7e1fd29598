"""How verdicts changed: which channel went from which state to which, when, and why.

Guarantees: at most `MAX_CHANGES` are held, the oldest go first; numbers grow by one with each
change, also over a restart; a channel that is where it was makes none.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from sidecar.errors import UNREADABLE, StateError
from sidecar.fold.drift.verdict import MAX_CAUSES, Cause, ChannelState, Verdict

MAX_CHANGES: Final = 512


class Change(NamedTuple):
    """One channel that changed its state.

    number: 1 for the first one ever. t_ns: when it was seen, Unix time.
    since_ns: estimated time of the change behind it; None when nothing was found.
    """

    number: int
    t_ns: int
    channel: str
    before: ChannelState
    after: ChannelState
    reason: str
    since_ns: int | None
    causes: tuple[Cause, ...]


class History:
    """Verdicts in, changes out."""

    def __init__(self, max_changes: int = MAX_CHANGES) -> None:
        self._held: deque[Change] = deque(maxlen=max_changes)
        self._states: dict[str, ChannelState] = {}
        self._num = 0
        self._since_ns: int | None = None

    @property
    def since_ns(self) -> int | None:
        """From when on every change is held; None before the first update."""
        return self._since_ns

    def update(self, verdicts: Iterable[Verdict], now_ns: int) -> bool:
        """Take how channels stand now; whether any has changed. Each begins by collecting."""
        before = self._num
        self._since_ns = now_ns if self._since_ns is None else self._since_ns
        for verdict in verdicts:
            state = self._states.get(verdict.channel, ChannelState.COLLECTING)
            if verdict.state is not state:
                self._states[verdict.channel] = verdict.state
                self._num += 1
                if len(self._held) == self._held.maxlen:
                    self._since_ns = self._held[0].t_ns + 1
                self._held.append(_change(self._num, now_ns, state, verdict))
        return self._num > before

    def get(self) -> tuple[Change, ...]:
        """The changes held, the oldest first."""
        return tuple(self._held)

    def export(self) -> dict[str, Any]:
        """Everything that goes on after a restart, msgpack-able."""
        return {
            "num": self._num,
            "since_ns": self._since_ns,
            "states": {name: str(state) for name, state in self._states.items()},
            "held": [
                {**each._asdict(), "causes": [list(cause) for cause in each.causes]}
                for each in self._held
            ],
        }

    def restore(self, exported: Any) -> None:
        """Go on from `export()`. Raises StateError, with nothing changed, when it is foreign."""
        try:
            states = {str(k): ChannelState(v) for k, v in exported["states"].items()}
            held = [_read(each) for each in exported["held"]]
            num = int(exported["num"])
            since_ns = exported.get("since_ns")  # a release before kept none
            since_ns = None if since_ns is None else int(since_ns)
        except UNREADABLE as error:
            raise StateError(f"no history of verdicts: {error!r}") from error
        self._states, self._num = states, num
        self._since_ns = since_ns if since_ns is not None or not held else held[0].t_ns
        self._held.extend(held)


def _change(number: int, now_ns: int, before: ChannelState, verdict: Verdict) -> Change:
    return Change(
        number,
        now_ns,
        verdict.channel,
        before,
        verdict.state,
        verdict.reason,
        verdict.since_ns,
        verdict.causes,
    )


def _read(plain: Mapping[str, Any]) -> Change:
    return Change(
        number=int(plain["number"]),
        t_ns=int(plain["t_ns"]),
        channel=str(plain["channel"]),
        before=ChannelState(plain["before"]),
        after=ChannelState(plain["after"]),
        reason=str(plain["reason"]),
        since_ns=None if plain["since_ns"] is None else int(plain["since_ns"]),
        causes=tuple(Cause(*cause) for cause in plain["causes"][:MAX_CAUSES]),
    )
