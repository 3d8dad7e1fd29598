"""A pretend engine that tells a real sidecar of ten minutes at once, and then goes on live.

The sidecar must be started with a large SIDECAR_MAX_AGE_SECONDS, or it refuses the past as stale.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.wire.channel import Sender
from sidecar.wire.frame import Body, Signatures, Source
from sidecar.wire.synthetic import SyntheticEngine

SECOND = 10**9
MAX_AGE = ("--max-age-seconds", "3600")
_BURST = 8  # seconds between two looks at what has arrived: the queue holds 64 frames


class SwellingEngine(SyntheticEngine):
    """Its residual stream grows by `swelling` in `layers`, from which moment the test says."""

    swelling = 1.0
    layers: slice = slice(0, 0)

    def _values(self, num_rows: int, first: bool) -> NDArray[np.float64]:
        values = super()._values(num_rows, first)
        values[:, self.layers, 0] *= self.swelling
        return values

    def signatures(self, num_requests: int = 1, t_ns: int = 0) -> Signatures:
        """Every fourth request is a known-safe prompt that the sidecar sent itself."""
        body = super().signatures(num_requests, t_ns)
        for number, each in enumerate(body.signatures, self.num_requests - num_requests + 1):
            each.canary = f"p1@{t_ns // 1_000_000}" if number % 4 == 0 else ""
        return body

    def poison(self, layer: int, num_values: int = 3) -> None:
        """NaN elements are seen after a layer."""
        nonfinite = self.totals.nonfinite.copy()
        nonfinite[layer] += num_values
        self.totals = dataclasses.replace(self.totals, nonfinite=nonfinite)


class Feed:
    """Tells a sidecar at `path` of an engine and its front end; `num_received` asks it back."""

    def __init__(
        self, path: Path, engine: SwellingEngine, num_received: Callable[[], int] = lambda: 0
    ) -> None:
        self.engine = engine
        self.now_ns = time.time_ns()
        self.num_received = num_received
        clock: Any = lambda: self.now_ns  # noqa: E731 - both senders read the pretended time
        self.tap = Sender(path, Source("engine"), clock_ns=clock)
        self.frontend = Sender(path, Source("frontend"), clock_ns=clock)

    def __enter__(self) -> "Feed":
        deadline = time.monotonic() + 60
        for sender, body in ((self.tap, self.engine.status()), (self.frontend, self._serving())):
            while not sender.send(body):
                assert time.monotonic() < deadline, "the sidecar takes no frame"
                time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.tap.close(linger_seconds=1)
        self.frontend.close(linger_seconds=1)

    def tell_past(self, seconds: int, on_second: Callable[[int], None] = lambda _: None) -> None:
        """Second by second up to now; `on_second(seconds before now)` before each."""
        end_ns = time.time_ns()
        for before in range(seconds, 0, -1):
            on_second(before)
            self.now_ns = end_ns - before * SECOND
            self.tell()
            if before % _BURST == 0:
                self._wait_until_read()
        self._wait_until_read()

    def tell_scan(self, num_prompt_tokens: int = 64, num_generated: int = 9) -> None:
        """Every token of the request told last."""
        self.tap.send(self.engine.scan(num_prompt_tokens, num_generated))

    def tell(self, num_requests: int = 1) -> None:
        """One flush at `now_ns`."""
        engine = self.engine
        bodies: tuple[Body, ...] = (
            engine.status(),
            engine.step(),
            engine.tables(2),
            engine.requests(num_requests, self.now_ns),
            engine.signatures(num_requests, self.now_ns),
        )
        for body in bodies:
            self.tap.send(body)
        self.frontend.send(self._serving())

    def tell_now(self) -> None:
        """One flush at the present."""
        self.now_ns = time.time_ns()
        self.tell()

    def _serving(self) -> Body:
        return self.engine.serving(self.now_ns)

    def _wait_until_read(self) -> None:
        handed_over = sum(s.num_sent - s.num_dropped for s in (self.tap, self.frontend))
        deadline = time.monotonic() + 60
        while self.num_received() < handed_over:
            assert time.monotonic() < deadline, "the sidecar has not read what was sent"
            time.sleep(0.01)
