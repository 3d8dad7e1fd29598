"""The exposition: families in the text format or OpenMetrics, as the client asks.

Guarantees: a collector that fails, or for which a client's time does not last, is scored 0 and left
out, and the scrape goes on; small families stand before large ones; nothing is shared with
prometheus_client's global registry or its multi-process mode; 50,000 series take some 50 ms of CPU
(`bench/scrape.py`), in whichever thread calls it.
"""

import logging
import math
import platform
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple

from prometheus_client.core import Metric as Family
from prometheus_client.exposition import choose_encoder

import sidecar
from sidecar.fold.histogram import RENDER_SECONDS, Histogram
from sidecar.fold.reducer import Snapshot
from sidecar.fold.source import SourceView
from sidecar.publish.metrics.collectors import COLLECTORS, Collector, distribution, family
from sidecar.publish.metrics.layers import LayerWriter
from sidecar.publish.metrics.selection import Selection
from sidecar.publish.metrics.tables import TableWriter
from sidecar.publish.metrics.text import END, write
from sidecar.wire.frame import SCHEMA
from sidecar.wire.signals import BY_ID

_SUFFIXES: Final = ("_total", "_info", "_sum", "_count", "_bucket")
_log = logging.getLogger(__name__)


class Build(NamedTuple):
    """Labels of `llm_internals_build_info`."""

    version: str = sidecar.__version__
    schema: str = str(SCHEMA)
    python: str = platform.python_version()


class Scrape(NamedTuple):
    """What a client asks for.

    accept: its `Accept` header.
    names: families or series; none means all.
    seconds: how long it will wait.
    """

    accept: str = ""
    names: tuple[str, ...] = ()
    seconds: float = math.inf

    @property
    def is_openmetrics(self) -> bool:
        """Whether it reads OpenMetrics."""
        return self.content_type.startswith("application/openmetrics-text")

    @property
    def content_type(self) -> str:
        """The format that it likes best."""
        _, content_type = choose_encoder(self.accept)
        return content_type

    def asks_for(self, family: str) -> bool:
        """Whether a family, or one of its series, is asked for."""
        return not self.names or not self._series(family).isdisjoint(self.names)

    @staticmethod
    def _series(family: str) -> set[str]:
        return {family, *(family + suffix for suffix in _SUFFIXES)}


class Exposition:
    """Renders snapshots. Scrapes at the same time wait for each other.

    selection: which series there are. clock: seconds, to time collectors by.
    """

    def __init__(
        self,
        series_cap: int,
        selection: Selection | None = None,
        *,
        build: Build | None = None,
        collectors: dict[str, Collector] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._selection = selection or Selection()
        self._layers = LayerWriter(series_cap, self._selection)
        self._tables = TableWriter(self._selection)
        self._left_out = {BY_ID[each].name for each in self._selection.left_out}
        self._build = build or Build()
        self._collectors = COLLECTORS if collectors is None else collectors
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: dict[str, Histogram] = {}
        self._success: dict[str, bool] = {}

    def render(self, snapshot: Snapshot, scrape: Scrape | None = None) -> bytes:
        """Body for a client that asks so.

        Raises TimeoutError when earlier scrapes take all of its time.
        """
        asked = scrape or Scrape()
        if not self._lock.acquire(timeout=min(asked.seconds, threading.TIMEOUT_MAX)):
            raise TimeoutError(f"other scrapes took all of the {asked.seconds:g} s")
        try:
            return b"".join(part.encode() for part in self._parts(snapshot, asked))
        finally:
            self._lock.release()

    def _parts(self, snapshot: Snapshot, asked: Scrape) -> Iterator[str]:
        until = self._clock() + asked.seconds
        sources: list[SourceView] = []
        openmetrics = asked.is_openmetrics

        def select() -> str:
            sources.extend(self._selection.apply(snapshot.sources))
            return ""

        def layers() -> str:
            return self._layers.write(sources, asked.asks_for, openmetrics=openmetrics)

        def tables() -> str:
            num_left = self._layers.num_left
            return self._tables.write(sources, num_left, asked.asks_for, openmetrics=openmetrics)

        for name, collect in self._collectors.items():
            yield self._guarded(name, partial(self._written, collect, snapshot, asked), until)
        yield self._guarded("selection", select, until)
        yield self._guarded("layers", layers, until)
        yield self._guarded("tables", tables, until)
        yield self._guarded("exporter", partial(self._written, self._own, snapshot, asked))
        yield self._written(self._scores, snapshot, asked)
        yield END if openmetrics else ""

    def _guarded(self, name: str, render: Callable[[], str], until: float = math.inf) -> str:
        started = self._clock()
        if started > until:
            self._success[name] = False
            return ""
        try:
            text = render()
        except Exception:  # one failing collector never fails the scrape
            if self._success.get(name, True):
                _log.exception("collector %s failed; the others are still served", name)
            self._success[name] = False
            return ""
        else:
            self._success[name] = True
            return text
        finally:
            seconds = self._clock() - started
            self._seconds.setdefault(name, Histogram(RENDER_SECONDS)).update([seconds])

    def _own(self, _: Snapshot) -> Iterator[Family]:
        yield family("series", [((), self._layers.num_series + self._tables.num_series)])
        yield family("series_cap", [((), self._layers.series_cap)])
        num_dropped = self._layers.num_dropped + self._tables.num_dropped
        yield family("series_dropped", [((), num_dropped)])
        yield family("build", [(tuple(self._build), 1)])

    def _scores(self, _: Snapshot) -> Iterator[Family]:
        seconds = [((name,), timed.get()) for name, timed in self._seconds.items()]
        yield distribution("scrape_duration_seconds", seconds)
        success = [((name,), float(done)) for name, done in self._success.items()]
        yield family("scrape_collector_success", success)

    def _written(self, collect: Collector, snapshot: Snapshot, asked: Scrape) -> str:
        wanted = (
            each
            for each in collect(snapshot)
            if asked.asks_for(each.name) and each.name not in self._left_out
        )
        return write(wanted, openmetrics=asked.is_openmetrics)
