"""The exposition: all families in the text format or OpenMetrics, as the client asks.

Guarantees: a collector that fails is timed, scored 0 and left out, and the scrape goes on; nothing
is shared with prometheus_client's global registry or its multi-process mode; at the default cap
rendering takes some 25 ms of CPU (`bench/scrape.py`), in whichever thread calls it.
"""

import logging
import platform
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from prometheus_client.core import Metric as Family
from prometheus_client.exposition import choose_encoder

import sidecar
from sidecar.fold.histogram import RENDER_SECONDS, Histogram
from sidecar.fold.reducer import Snapshot
from sidecar.publish.collectors import COLLECTORS, Collector, distribution, family
from sidecar.publish.layers import LayerWriter
from sidecar.publish.tables import TableWriter
from sidecar.publish.text import END, write
from sidecar.wire.frame import SCHEMA

_log = logging.getLogger(__name__)


class Build(NamedTuple):
    """Labels of `llm_internals_build_info`."""

    version: str = sidecar.__version__
    schema: str = str(SCHEMA)
    python: str = platform.python_version()


class Exposition:
    """Renders snapshots. Scrapes at the same time wait for each other.

    clock: seconds, to time collectors by.
    """

    def __init__(
        self,
        series_cap: int,
        *,
        build: Build | None = None,
        collectors: dict[str, Collector] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._layers = LayerWriter(series_cap)
        self._tables = TableWriter()
        self._build = build or Build()
        self._collectors = COLLECTORS if collectors is None else collectors
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: dict[str, Histogram] = {}
        self._success: dict[str, bool] = {}

    def render(self, snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
        """Body and content type for a client that sent this `Accept` header."""
        _, content_type = choose_encoder(accept)
        openmetrics = content_type.startswith("application/openmetrics-text")
        with self._lock:
            parts = [part.encode() for part in self._parts(snapshot, openmetrics=openmetrics)]
        return b"".join(parts), content_type

    def _parts(self, snapshot: Snapshot, *, openmetrics: bool) -> Iterator[str]:
        layers = partial(self._layers.write, snapshot.sources, openmetrics=openmetrics)
        yield self._guarded("layers", layers)
        tables = partial(
            self._tables.write, snapshot.sources, self._layers.num_left, openmetrics=openmetrics
        )
        yield self._guarded("tables", tables)
        for name, collect in {**self._collectors, "exporter": self._own}.items():
            written = partial(_written, collect, snapshot, openmetrics=openmetrics)
            yield self._guarded(name, written)
        yield _written(self._scores, snapshot, openmetrics=openmetrics)
        yield END if openmetrics else ""

    def _guarded(self, name: str, render: Callable[[], str]) -> str:
        started = self._clock()
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


def _written(collect: Collector, snapshot: Snapshot, *, openmetrics: bool) -> str:
    return write(collect(snapshot), openmetrics=openmetrics)
