"""Scrape targets without an engine: the real exposition of pretended frames, and fixed text."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec

from sidecar.fold.reducer import Limits, Reducer
from sidecar.publish.metrics.exposition import Exposition, Scrape
from sidecar.publish.metrics.selection import Selection
from sidecar.wire.frame import Body
from sidecar.wire.synthetic import SyntheticEngine
from tests import fakes
from tests.fakes import ENGINE, FRONTEND, SECOND, FakeSource
from tests.publish import drifting

MODEL = "synthetic"
TEXT = "text/plain; version=0.0.4"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
EVERY_SECONDS = 0.25


class Pretended:
    """An exporter that hears an engine of six layers, with a router, in every quarter second."""

    def __init__(self) -> None:
        self._engine = SyntheticEngine(num_layers=6, model_name=MODEL)
        self._reducer = Reducer(Limits(stale_ns=60 * SECOND, max_age_ns=60 * SECOND))
        self._exposition = Exposition(
            50_000, Selection(left_out=()), collectors=drifting.collectors()
        )
        self._sources = {"engine": FakeSource(ENGINE), "frontend": FakeSource(FRONTEND, "boot-two")}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Hear no more; what was heard is published on."""
        self._over.set()
        self._thread.join()

    def text(self, accept: str = "") -> tuple[str, bytes]:
        """Content type and body of a scrape."""
        scrape = Scrape(accept)
        with self._lock:
            snapshot = self._reducer.get(time.time_ns())
        kind = OPENMETRICS if scrape.is_openmetrics else TEXT
        return kind, self._exposition.render(snapshot, scrape)

    def _run(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            with self._lock:
                self._turn(time.time_ns())

    def _turn(self, t_ns: int) -> None:
        engine = self._engine
        said: list[tuple[str, Body]] = [
            ("engine", msgspec.structs.replace(fakes.live(MODEL), num_layers=6)),
            ("engine", engine.step()),
            ("engine", engine.tables()),
            ("engine", engine.requests(2, t_ns)),
            ("frontend", engine.serving(t_ns)),
        ]
        for name, body in said:
            self._reducer.update(self._sources[name].frame(body, t_ns), t_ns)


@contextlib.contextmanager
def published(text: Callable[[str], tuple[str, bytes]]) -> Iterator[str]:
    """The host:port at which `text`, of the Accept header, is to be scraped."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = text(self.headers.get("Accept", ""))
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
