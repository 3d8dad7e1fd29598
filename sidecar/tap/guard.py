"""The guest never hurts the host: what of ours raises is swallowed, counted and disarmed.

After `max_errors` exceptions at one site that site is not called again. The first exception of a
site is logged once with its traceback; the rest are only counted. Every call of ours in the engine
goes through here, so here is where its time is taken.
"""

import logging
import time
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Stopwatch(Protocol):
    """Times calls where the host's clock does not see what they cost."""

    def start(self) -> None:
        """A call begins."""

    def stop(self) -> None:
        """It is over."""


class Guard:
    """Runs our code; returns None where it raised or is disarmed.

    errors: exceptions so far, by site.
    host_ns: time that our calls have kept the engine's thread.
    """

    def __init__(self, max_errors: int, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self.errors: dict[str, int] = {}
        self.host_ns = 0
        self._clock_ns = clock_ns
        self._max_errors = max_errors
        self._stopwatch: Stopwatch | None = None

    def watch(self, stopwatch: Stopwatch) -> None:
        """Have `stopwatch` time the engine's calls from now on."""
        self._stopwatch = stopwatch

    def run(
        self, site: str, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R | None:
        """Result of `call` on the engine's thread, or None when it raised or is disarmed."""
        before, began = self.host_ns, self._clock_ns()
        try:
            return self.run_aside(site, self._timed, call, *args, **kwargs)
        finally:
            # Not an addition: a call within this one has added its part already.
            self.host_ns = before + self._clock_ns() - began

    def run_aside(
        self, site: str, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R | None:
        """The same on a thread of our own, whose time is not the engine's."""
        if self.is_disarmed(site):
            return None
        try:
            return call(*args, **kwargs)
        except Exception as error:  # the one place where everything is caught
            self.count(site, error)
            return None

    def count(self, site: str, error: BaseException) -> None:
        """Count an exception of ours that was caught elsewhere."""
        self.errors[site] = self.errors.get(site, 0) + 1
        if self.errors[site] == 1:
            _LOG.warning("sidecar: error at %s; serving goes on", site, exc_info=error)

    def is_disarmed(self, site: str) -> bool:
        """Whether `site` has used up its exceptions."""
        return self.errors.get(site, 0) >= self._max_errors

    @property
    def disarmed(self) -> list[str]:
        """Sites that are not called any more."""
        # A copy: another thread may add a site meanwhile.
        return [site for site in list(self.errors) if self.is_disarmed(site)]

    def _timed(self, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        stopwatch = self._stopwatch
        if stopwatch is None:
            return call(*args, **kwargs)
        stopwatch.start()
        try:
            return call(*args, **kwargs)
        finally:
            stopwatch.stop()


_LOG = logging.getLogger("sidecar.tap")
