"""The outbox: bounded, in its own thread, and with an account that is exact at any moment."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.publish.traces import outbox as module
from sidecar.publish.traces.outbox import BATCH, MAX_TRIES, PAUSE_SECONDS, Outbox
from tests.publish.traces.spans import FakeCarrier, eventually, is_balanced, span


def opened(carrier: FakeCarrier, capacity: int = 2048) -> Outbox:
    """One that lingers and pauses for nothing."""
    outbox = Outbox(carrier, capacity, linger_seconds=0.0, pause=lambda _: None)
    outbox.start()
    return outbox


def test_spans_are_sent_in_order_and_in_batches() -> None:
    """Each once, however many there are."""
    carrier = FakeCarrier()
    carrier.gate.clear()
    outbox = opened(carrier)
    names = [str(k) for k in range(3 * BATCH)]
    for name in names:
        outbox.put(span(name))
    carrier.gate.set()
    eventually(lambda: outbox.get().sent == len(names))
    outbox.stop()

    assert carrier.names == names
    assert carrier.num_calls <= 5
    assert is_balanced(outbox.get())


def test_a_batch_that_is_not_full_waits_for_company() -> None:
    """Twenty requests a second are one call a second, not twenty."""
    carrier = FakeCarrier()
    outbox = Outbox(carrier, linger_seconds=60.0)
    outbox.start()
    for k in range(BATCH):
        outbox.put(span(str(k)))
        assert carrier.num_calls == 0 or k >= BATCH - 1
    eventually(lambda: outbox.get().sent == BATCH)
    outbox.stop()

    assert carrier.num_calls == 1


def test_a_receiver_that_is_away_costs_the_oldest_spans_and_each_is_counted() -> None:
    """The queue never grows beyond its capacity; what is on its way counts too."""
    carrier = FakeCarrier()
    carrier.gate.clear()
    outbox = opened(carrier, capacity=10)
    outbox.put(span("first"))
    eventually(lambda: carrier.num_calls)
    for k in range(100):
        outbox.put(span(str(k)))
        assert outbox.get().waiting <= 10
    account = outbox.get()

    assert (account.finished, account.waiting, account.dropped["queue_full"]) == (101, 10, 91)
    carrier.gate.set()
    eventually(lambda: outbox.get().sent == 10)
    outbox.stop()
    assert carrier.names == ["first", *(str(k) for k in range(91, 100))]


def test_a_batch_is_tried_so_many_times_then_given_up() -> None:
    """And the next one is tried likewise, so the queue goes on."""
    carrier = FakeCarrier()
    carrier.is_away = True
    pauses: list[float] = []
    outbox = Outbox(carrier, linger_seconds=0.0, pause=pauses.append)
    outbox.start()
    outbox.put(span("lost"))
    eventually(lambda: outbox.get().dropped["not_taken"] == 1)
    carrier.is_away = False
    outbox.put(span("sent"))
    eventually(lambda: outbox.get().sent == 1)
    outbox.stop()
    account = outbox.get()

    assert pauses == [PAUSE_SECONDS] * (MAX_TRIES - 1)
    assert (account.num_taken, account.num_refused) == (1, MAX_TRIES)
    assert carrier.names == ["sent"]
    assert is_balanced(account)


def test_a_short_absence_loses_nothing() -> None:
    """The batch is tried again until the receiver is back."""
    carrier = FakeCarrier()
    carrier.is_away = True

    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        carrier.is_away = len(pauses) < 3

    outbox = Outbox(carrier, linger_seconds=0.0, pause=pause)
    outbox.start()
    outbox.put(span("patient"))
    eventually(lambda: outbox.get().sent == 1)
    outbox.stop()

    assert carrier.names == ["patient"]
    assert sum(outbox.get().dropped.values()) == 0


def test_an_exception_of_the_exporter_is_a_refusal(caplog: pytest.LogCaptureFixture) -> None:
    """It ends nothing, and is logged once."""
    carrier = FakeCarrier()
    carrier.error = ValueError("of a library of others")
    outbox = opened(carrier)
    outbox.put(span())
    eventually(lambda: outbox.get().dropped["not_taken"] == 1)
    carrier.error = None
    outbox.put(span())
    eventually(lambda: outbox.get().sent == 1)
    outbox.stop()

    assert len(caplog.records) == 1
    assert is_balanced(outbox.get())


def test_stopping_sends_what_waits() -> None:
    """A batch that lingers goes at once."""
    carrier = FakeCarrier()
    outbox = Outbox(carrier, linger_seconds=600.0)
    outbox.start()
    for k in range(3):
        outbox.put(span(str(k)))
    outbox.stop()

    assert carrier.names == ["0", "1", "2"]
    assert carrier.is_shut
    assert (outbox.get().sent, outbox.get().waiting) == (3, 0)


def test_stopping_does_not_wait_for_a_receiver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it could not send is counted; what returns later changes no account."""
    monkeypatch.setattr(module, "STOP_SECONDS", 0.2)
    carrier = FakeCarrier()
    release = threading.Event()
    carrier.gate = release  # not opened by a shutdown
    carrier.shutdown = lambda: None  # type: ignore[method-assign]
    outbox = opened(carrier)
    outbox.put(span())
    eventually(lambda: carrier.num_calls)
    for _ in range(5):
        outbox.put(span())
    started = time.monotonic()
    outbox.stop()
    seconds = time.monotonic() - started
    stopped = outbox.get()
    outbox.put(span())  # of a thread that had not heard
    release.set()
    eventually(lambda: outbox.get().num_taken == 1)

    assert seconds < 10
    assert (stopped.dropped["shutdown"], stopped.waiting) == (6, 0)
    assert outbox.get().sent == 0
    assert outbox.get().dropped["shutdown"] == 7
    assert is_balanced(outbox.get())


def test_a_receiver_that_is_away_at_the_end_costs_one_try() -> None:
    """Nothing is tried again while the sidecar ends; all of it is counted as such."""
    carrier = FakeCarrier()
    carrier.gate.clear()
    outbox = opened(carrier)
    for k in range(2 * BATCH):
        outbox.put(span(str(k)))
    eventually(lambda: carrier.num_calls)
    carrier.is_away = True
    outbox.stop()
    account = outbox.get()

    assert (account.sent, account.waiting) == (0, 0)
    assert account.dropped == {"queue_full": 0, "not_taken": 0, "shutdown": 2 * BATCH}
    assert carrier.num_calls <= 2


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["put", "away", "back", "error", "look"]), max_size=40))
def test_the_account_is_exact_at_any_moment(events: list[str]) -> None:
    """finished = sent + dropped + waiting, whatever the receiver does."""
    carrier = FakeCarrier()
    outbox = opened(carrier, capacity=4)
    for event in events:
        if event == "put":
            outbox.put(span())
        elif event != "look":
            carrier.is_away = event == "away"
            carrier.error = ValueError() if event == "error" else None
        assert is_balanced(outbox.get())
    outbox.stop()
    account = outbox.get()

    assert is_balanced(account)
    assert account.finished == events.count("put")
    assert account.sent == len(carrier.names)
    assert account.waiting == 0
