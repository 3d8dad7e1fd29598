"""A seat for one channel: what shields the others from it, and what it is published as.

Guarantees: no exception of a channel leaves its seat; each is counted, and until what failed has
succeeded again, the verdict says so: a page stays a page, but nothing is called armed that does
not judge. A page is counted when it begins, once.
"""

import logging
from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, TypeVar

from sidecar.errors import StateError
from sidecar.fold.drift.channel import Channel
from sidecar.fold.drift.verdict import ChannelState, Verdict

_log = logging.getLogger(__name__)
_Channel = TypeVar("_Channel", bound=Channel)
_BUG: Final = "this is a bug: report it with the sidecar's log"


class ChannelView(NamedTuple):
    """A channel at one moment.

    is_configured: whether it is there at all; if not, the verdict's reason says how to get it.
    num_pages: pages that began in this life of the sidecar.
    num_errors: exceptions of the channel that were swallowed.
    """

    verdict: Verdict
    is_configured: bool = True
    num_pages: int = 0
    num_errors: int = 0

    def doubted(self, reason: str) -> "ChannelView":
        """The same for a reason not to rely on it: it is not armed, but a page stays a page."""
        if not self.is_configured:
            return self
        verdict, state = self.verdict, self.verdict.state
        if state is ChannelState.ARMED:
            state = ChannelState.COLLECTING
        told = verdict._replace(state=state, reason=f"{reason}; {verdict.reason}")
        return self._replace(verdict=told)


def absent(name: str, remedy: str) -> ChannelView:
    """A channel that nobody asked for."""
    verdict = Verdict(name, ChannelState.COLLECTING, f"not configured: {remedy}")
    return ChannelView(verdict, is_configured=False)


class Seat(Generic[_Channel]):
    """One channel, run by one thread.

    note: a sentence put before every reason, such as that a demonstration's windows are judged.
    """

    def __init__(self, channel: _Channel, note: str = "") -> None:
        self.channel = channel
        self._note = note
        self._remark = ""
        self._failures: dict[str, str] = {}  # by what failed
        self._num_errors = 0
        self._num_pages = 0
        self._state: ChannelState | None = None  # as last published
        self._verdict = Verdict(channel.name, ChannelState.COLLECTING, "nothing was judged yet")

    def remark(self, sentence: str) -> None:
        """Put a sentence after every reason, from now on; "" for none."""
        self._remark = sentence

    def run(self, task: str, action: Callable[[_Channel], object]) -> bool:
        """Let the channel do something; whether it could. `task` names it in the verdict."""
        try:
            action(self.channel)
        except Exception as error:  # a bug of one channel must not stop the others
            self._fail(task, error)
            return False
        self._failures.pop(task, None)
        return True

    def export(self) -> dict[str, Any] | None:
        """Its state; None when it cannot even tell that."""
        told: list[dict[str, Any]] = []
        self.run("export", lambda channel: told.append(channel.export()))
        return told[0] if told else None

    def restore(self, read: Callable[[], dict[str, Any] | None]) -> None:
        """Go on from what `read` tells, if anything; what is refused becomes a remark."""
        try:
            exported = read()
            if exported is not None:
                self.channel.restore(exported)
        except StateError as error:
            self._remark = f"its kept state was refused ({error}), so it started again"
        except Exception as error:  # likewise
            self._fail("restore", error)

    def get(self, now_ns: int) -> ChannelView:
        """The channel now."""
        self.run("get", lambda channel: setattr(self, "_verdict", channel.get(now_ns)))
        verdict = self._told()
        is_new = verdict.state is ChannelState.PAGE and self._state is not ChannelState.PAGE
        # The first look is at what an earlier life left: a page of that life was counted there.
        if is_new and self._state is not None:
            self._num_pages += 1
        self._state = verdict.state
        return ChannelView(verdict, True, self._num_pages, self._num_errors)  # noqa: FBT003

    def _told(self) -> Verdict:
        verdict, state = self._verdict, self._verdict.state
        if self._failures and state is ChannelState.ARMED:
            state = ChannelState.COLLECTING
        note = "" if self._note in verdict.reason else self._note  # some say it themselves
        parts = (note, *self._failures.values(), verdict.reason, self._remark)
        return verdict._replace(state=state, reason="; ".join(filter(None, parts)))

    def _fail(self, task: str, error: Exception) -> None:
        self._num_errors += 1
        if task not in self._failures:
            name = self.channel.name
            _log.error("channel %s cannot %s; the others go on", name, task, exc_info=error)
        self._failures[task] = f"it cannot {task} ({type(error).__name__}): {_BUG}"
