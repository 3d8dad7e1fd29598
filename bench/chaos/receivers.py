"""OTLP receivers that are slow, dead, or there every other second, under spans of every request."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench.chaos.alarms import Alarms, options
from bench.chaos.row import Row, Size
from bench.chaos.stand import Stand
from tests.otlp import OtlpReceiver

PER_SECOND: Final = 60.0  # frames of each rank; 4 of 23 tell of a request of their own
_SLOW_SECONDS: Final = 3.0
_FLAP_SECONDS: Final = 0.7
_PART_SECONDS: Final = 2.5  # more than a part of a request is waited for
_NAME: Final = "llm_internals_span"


def receiver_fails(folder: Path, size: Size) -> Row:
    """Each way to fail for a while, and then a receiver that is well."""
    receiver = _Receiver()
    told = [*options(folder), "--otlp-endpoint", receiver.endpoint]
    try:
        with Stand(folder, size.num_ranks, told, PER_SECOND) as stand:
            alarms = Alarms(stand)
            alarms.canary()
            alarms.overflow()
            recoveries = []
            for fail in (receiver.be_slow, receiver.be_away, receiver.flap):
                fail(size.seconds)
                recoveries.append(_recovered(stand, receiver))
                alarms.check()
            alarms.close()
            account = stand.account()
            spans = _settled(stand)
            num_received = receiver.num_spans()
    finally:
        receiver.stop()
    lost = spans["finished"] - spans["sent"] - spans["dropped"]
    return Row(
        f"OTLP receiver slow ({_SLOW_SECONDS:g} s an answer), dead, flapping every "
        f"{_FLAP_SECONDS:g} s, {size.seconds:g} s each, under {spans['finished']:,} spans",
        account,
        abs(lost) + max(0, spans["sent"] - num_received),
        alarms.num_raised,
        alarms.num_lost,
        tuple(recoveries),
        "from the moment at which the receiver was well to a batch that it took, over gRPC; failed "
        "would be a span neither sent nor dropped and counted, or sent and not received",
        {"spans": {**spans, "received": num_received}},
    )


def _recovered(stand: Stand, receiver: "_Receiver") -> float:
    """Let it be well; seconds until a batch was taken."""
    receiver.be_well()
    num = receiver.num_batches
    return stand.wait("a batch is taken", lambda: receiver.num_batches > num)


def _settled(stand: Stand) -> dict[str, int]:
    """Once no span waits, and none was made since the look before: halves are told of late."""
    looks = [_spans(stand)]

    def is_settled() -> bool:
        time.sleep(_PART_SECONDS)
        looks.append(_spans(stand))
        return looks[-1] == looks[-2] and not looks[-1]["waiting"]

    stand.wait("every span is sent, or given up", is_settled)
    return looks[-1]


def _spans(stand: Stand) -> dict[str, int]:
    found = stand.scrape()
    dropped = [v for name, v in found.items() if name.startswith(f"{_NAME}s_dropped_total")]
    return {
        "finished": int(found[f"{_NAME}s_finished_total"]),
        "sent": int(found[f"{_NAME}s_sent_total"]),
        "dropped": int(sum(dropped)),
        "waiting": int(found[f"{_NAME}_queue_size"]),
    }


class _Receiver:
    """One address, and whoever listens there at the moment."""

    def __init__(self) -> None:
        self._now: OtlpReceiver | None = OtlpReceiver()
        self._all = [self._now]
        self._port = self._now.port
        self.endpoint = self._now.endpoint

    @property
    def num_batches(self) -> int:
        """Taken so far, by all that ever listened."""
        return sum(len(each.traces) for each in self._all)

    def num_spans(self) -> int:
        """Different ones received; one may come twice, when the first answer was lost."""
        return len({span.span_id for each in self._all for span in each.spans()})

    def be_slow(self, seconds: float) -> None:
        """Answer only every so often."""
        self.be_well()
        assert self._now is not None
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._now.is_open.clear()
            time.sleep(_SLOW_SECONDS)
            self._now.is_open.set()
            time.sleep(0.05)

    def be_away(self, seconds: float) -> None:
        """Listen nowhere."""
        self.stop()
        time.sleep(seconds)

    def flap(self, seconds: float) -> None:
        """Come and go."""
        until = time.monotonic() + seconds
        turns: tuple[Callable[[], None], ...] = (self.be_well, self.stop)
        while time.monotonic() < until:
            for turn in turns:
                turn()
                time.sleep(_FLAP_SECONDS)

    def be_well(self) -> None:
        """Listen, and answer at once."""
        if self._now is None:
            self._now = OtlpReceiver(self._port)
            self._all.append(self._now)
        self._now.is_open.set()

    def stop(self) -> None:
        """Listen no more."""
        if self._now is not None:
            self._now.stop()
            self._now = None
