"""Record what a running exporter serves, by asking it every two seconds.

An exporter that is started with SIDECAR_RECORD=1 records by itself and misses nothing; this is for
one that runs already.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sidecar
from sidecar.commands import asking
from sidecar.commands.baseline import options
from sidecar.commands.command import needs
from sidecar.commands.progress import progress
from sidecar.errors import StoreError

if TYPE_CHECKING:
    from sidecar.jobs.exporter import Exporter
    from sidecar.store.recorder import Recorder

HELP: Final = "record what a running exporter serves"
_EVERY_SECONDS: Final = 2.0


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="recordings are written there")
    options.add_url(parser)
    parser.add_argument(
        "--seconds", type=float, default=604_800.0, metavar="S", help="default: 7 days"
    )


def run(parsed: argparse.Namespace) -> int:
    """Ask until the time is over, or Ctrl-C; what was recorded is kept either way."""
    with needs("exporter", "asking an exporter"):
        from sidecar.jobs.exporter import Exporter
    with needs("recordings", "recording"):
        from sidecar.store.recorder import Recorder
    recorder = Recorder(parsed.folder, sidecar.__version__)
    with Exporter(parsed.url, asking.headers(parsed)) as exporter:
        listener = Listener(exporter, recorder)
        try:
            _listen(listener, parsed.seconds)
        except KeyboardInterrupt:
            pass
        finally:
            recorder.close()
    if recorder.num_lost:
        raise StoreError(f"{recorder.num_lost} requests were not recorded: {recorder.reason}")
    print(f"{parsed.folder}: {recorder.num_recorded} requests")
    if listener.num_gaps:
        print(
            f"{listener.num_gaps} times there were more than an exporter holds, so some are "
            "missing; start it with SIDECAR_RECORD=1 instead"
        )
    return 0


class Listener:
    """Hands each request on once.

    num_gaps: answers that were full of requests none of which was known.
    """

    def __init__(self, exporter: "Exporter", recorder: "Recorder") -> None:
        self.num_gaps = 0
        self._exporter = exporter
        self._recorder = recorder
        self._known: set[tuple[str, str, int]] = set()

    def listen(self, now_ns: int) -> None:
        """Ask once."""
        told = self._exporter.observations()
        for each in told:
            if each.key not in self._known:
                self._recorder.update(each.observation, each.layout, each.identity, now_ns)
        keys = {each.key for each in told}
        is_first = not self._known
        self.num_gaps += self._exporter.is_full and not is_first and not keys & self._known
        self._known = keys
        self._recorder.advance(now_ns)


def _listen(
    listener: Listener,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    start = clock()
    with progress("record, seconds", round(seconds)) as advance:
        told = 0
        while (passed := clock() - start) < seconds:
            listener.listen(time.time_ns())
            advance(int(passed) - told)
            told = int(passed)
            sleep(min(_EVERY_SECONDS, max(0.0, seconds - passed)))
        listener.listen(time.time_ns())
        advance(round(seconds) - told)
