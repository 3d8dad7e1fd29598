"""Replay recordings against a baseline: what would have paged, when, where and why.

All channels that judge served requests are run as the exporter runs them: traffic, mix, tail and
integrity. A page is acknowledged the moment it is raised, so that a later one shows too; a ticket
is not, since what it counts may yet become a page.

Guarantee: the same recordings and baseline give the same events; nothing here reads a clock.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.drift.channel import Channel
from sidecar.fold.drift.integrity import IntegrityChannel
from sidecar.fold.drift.mix import MixChannel
from sidecar.fold.drift.policy import Policy
from sidecar.fold.drift.tail import TailChannel, TailRule
from sidecar.fold.drift.traffic import TrafficChannel
from sidecar.fold.drift.verdict import ChannelState, Verdict
from sidecar.fold.drift.window import Window, Windows
from sidecar.jobs.fitting import check_comparable
from sidecar.jobs.order import in_order
from sidecar.jobs.pool import Advance
from sidecar.store.recording import Recording

_EVERY = 1024  # requests between two words about progress


class Event(NamedTuple):
    """A channel raised a ticket or a page; `t_ns` is the end of the window that did it."""

    t_ns: int
    verdict: Verdict


class Replayed(NamedTuple):
    """What a replay found.

    start_ns, end_ns: span of the recordings.
    events: in order of time. verdicts: how each channel stands at the end.
    """

    start_ns: int
    end_ns: int
    num_requests: int
    num_windows: int
    num_insufficient: int
    num_late: int
    events: tuple[Event, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def num_pages(self) -> int:
        """How many events are pages."""
        return sum(event.verdict.state is ChannelState.PAGE for event in self.events)


class Judge:
    """The channels, and what they raised so far."""

    def __init__(self, baseline: Baseline, policy: Policy = Policy()) -> None:  # noqa: B008
        self.events: list[Event] = []
        self._integrity = IntegrityChannel(baseline)
        self._by_window = (
            TrafficChannel(baseline, policy),
            MixChannel(baseline, policy),
            TailChannel(baseline, policy),
            self._integrity,
        )
        self._states: dict[str, ChannelState] = {}

    def identify(self, recording: Recording) -> None:
        """What was executed from the start of this recording on."""
        now_ns = recording.header.start_ns
        self._note(self._integrity, self._integrity.identify(recording.header, now_ns), now_ns)

    def update(self, window: Window) -> None:
        """Let every channel judge a closed window."""
        for channel in self._by_window:
            self._note(channel, channel.update(window), window.end_ns)

    def get(self, now_ns: int) -> tuple[Verdict, ...]:
        """How each channel stands."""
        return tuple(channel.get(now_ns) for channel in self._by_window)

    def _note(self, channel: Channel, verdict: Verdict, now_ns: int) -> None:
        before = self._states.get(channel.name, ChannelState.COLLECTING)
        raised = ChannelState.TICKET.rank
        if verdict.state.rank >= raised and verdict.state.rank > before.rank:
            self.events.append(Event(now_ns, verdict))
        if verdict.state is ChannelState.PAGE:
            channel.acknowledge(now_ns)
        self._states[channel.name] = channel.get(now_ns).state


def replay(
    recordings: Sequence[Recording],
    baseline: Baseline,
    advance: Advance,
    policy: Policy = Policy(),  # noqa: B008
) -> Replayed:
    """Judge all requests in order of time; `advance` is told of requests.

    Raises BaselineError when a recording cannot be compared with the baseline.
    """
    check_comparable(recordings, baseline)
    windows = Windows(baseline.schema, baseline.header.assembly, baseline.plan, TailRule(baseline))
    judge = Judge(baseline, policy)
    for window in _windows(recordings, windows, judge, advance):
        judge.update(window)
    end_ns = max(each.header.end_ns for each in recordings)
    return Replayed(
        min(each.header.start_ns for each in recordings),
        end_ns,
        sum(each.num_requests for each in recordings),
        windows.num_closed,
        windows.num_insufficient,
        windows.num_late,
        tuple(judge.events),
        judge.get(end_ns),
    )


def _windows(
    recordings: Sequence[Recording], windows: Windows, judge: Judge, advance: Advance
) -> Iterator[Window]:
    known = set()
    num = 0
    for recording, observation in in_order(recordings):
        if recording.path not in known:
            known.add(recording.path)
            judge.identify(recording)
        yield from windows.update(observation)
        num += 1
        if num % _EVERY == 0:
            advance(_EVERY)
    advance(num % _EVERY)
    yield from windows.flush()
