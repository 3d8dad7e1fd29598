"""Requests and spans for the tests of traces, and a carrier that does as it is told."""

import threading
import time
from collections.abc import Callable, Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, TraceFlags

from sidecar.fold.gathering import Gathered
from sidecar.fold.requests import Measured
from sidecar.fold.signatures import Signed
from sidecar.publish.traces.account import Account
from tests import fakes
from tests.fakes import ENGINE, NOW

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED_CALLER = CALLER[:-1] + "0"


def request(
    internal_id: str = "chatcmpl-1-0badcafe", traceparent: str = CALLER, canary: str = ""
) -> Gathered:
    """A request that was measured, signed and served."""
    signatures = fakes.signatures(internal_id)
    signature = signatures.signatures[0]
    signature.canary, signature.route = canary, "chat"
    done = fakes.finished(internal_id[: -len("-0badcafe")], traceparent=traceparent)
    return Gathered(
        internal_id,
        "tiny",
        (Measured(ENGINE.name, (0, 1, 2), fakes.request(internal_id)),),
        (Signed(ENGINE.name, signatures.layout, signature),),
        done,
        None,
    )


def span(name: str = "s") -> ReadableSpan:
    """A span that says nothing."""
    context = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))
    return ReadableSpan(name, context, start_time=NOW, end_time=NOW)


class FakeCarrier:
    """Takes batches; refuses while `is_away`, raises `error`, waits for `gate` before either."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.num_calls = 0
        self.is_away = False
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.is_shut = False

    def export(self, spans: Sequence[ReadableSpan]) -> bool:
        self.num_calls += 1
        self.gate.wait(60)
        if self.error is not None:
            raise self.error
        if self.is_away:
            return False
        self.names += [each.name for each in spans]
        return True

    def shutdown(self) -> None:
        self.is_shut = True
        self.gate.set()


def is_balanced(account: Account) -> bool:
    """The law of every account."""
    held = account.sent + sum(account.dropped.values()) + account.waiting
    return account.finished == held


def eventually(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until it is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)
