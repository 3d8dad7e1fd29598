"""The account of traces: what became of every finished request, and of every span made."""

from typing import NamedTuple

from sidecar.publish.traces.sampling import Decision


class Account(NamedTuple):
    """Spans so far; finished = sent + dropped + waiting, exactly.

    dropped: by cause. waiting: in the queue, or on the way just now.
    num_taken, num_refused: tries to send a batch, by what the receiver made of it.
    """

    finished: int
    sent: int
    dropped: dict[str, int]
    waiting: int
    capacity: int
    num_taken: int
    num_refused: int


class TraceView(NamedTuple):
    """What became of requests and spans.

    requests: finished ones by decision. num_left_out: parts of requests that found no room;
    num_late: that came after their request was told. num_errors: exceptions that were swallowed.
    """

    requests: dict[Decision, int]
    num_left_out: int
    num_late: int
    num_errors: int
    account: Account
