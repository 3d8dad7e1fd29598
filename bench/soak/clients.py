"""Who looks at a sidecar meanwhile: scrapers, readers of the API, listeners, an OTLP receiver."""

import gzip
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

import httpx
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ROUTES: Final = (
    "/v1/status",
    "/v1/layers",
    "/v1/signals",
    "/v1/requests?limit=20",
    "/v1/signatures?limit=20",
    "/v1/scans",
    "/v1/drift",
    "/v1/drift/history",
    "/v1/windows?limit=20",
    "/v1/timeline",
    "/v1/timeline/lines",
    "/v1/baselines",
)
ACCEPTED: Final = ("text/plain", "application/openmetrics-text; version=1.0.0")
NUM_LISTENERS: Final = 4
_SCRAPE_SECONDS: Final = 2.0
_READ_SECONDS: Final = 0.5
_TIMEOUT_SECONDS: Final = 120.0


class Clients:
    """Threads that ask for as long as the context lasts; `seen` counts answers and failures."""

    def __init__(self, metrics_url: str, api_url: str) -> None:
        self.seen: Counter[str] = Counter()
        self._over = threading.Event()
        asked = itertools.cycle(ACCEPTED)
        routes = itertools.cycle(ROUTES)
        jobs: list[Callable[[httpx.Client], None]] = [
            lambda c: self._ask(c, "scrapes", _SCRAPE_SECONDS, f"{metrics_url}/metrics", asked),
            lambda c: self._read(c, api_url, routes),
            *(lambda c: self._listen(c, f"{api_url}/v1/events") for _ in range(NUM_LISTENERS)),
        ]
        self._threads = [threading.Thread(target=self._keep_on, args=(job,)) for job in jobs]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _keep_on(self, job: Callable[[httpx.Client], None]) -> None:
        with httpx.Client(trust_env=False, timeout=_TIMEOUT_SECONDS) as client:
            while not self._over.is_set():
                try:
                    job(client)
                except httpx.HTTPError as error:
                    self.seen[f"failed: {type(error).__name__}"] += 1

    def _ask(
        self, client: httpx.Client, what: str, seconds: float, url: str, accepted: Iterator[str]
    ) -> None:
        client.get(url, headers={"Accept": next(accepted)}).raise_for_status()
        self.seen[what] += 1
        self._over.wait(seconds)

    def _read(self, client: httpx.Client, url: str, routes: Iterator[str]) -> None:
        client.get(f"{url}{next(routes)}").raise_for_status()
        self.seen["answers"] += 1
        self._over.wait(_READ_SECONDS)

    def _listen(self, client: httpx.Client, url: str) -> None:
        with client.stream("GET", url) as reply:
            for line in reply.raise_for_status().iter_lines():
                self.seen["events"] += line.startswith("event:")
                if self._over.is_set():
                    return


class OtlpReceiver:
    """Takes everything over HTTP and keeps only how much it was."""

    def __init__(self) -> None:
        self.num_spans = self.num_pushes = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver._take(self.path, body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,))

    def __enter__(self) -> "OtlpReceiver":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _take(self, path: str, body: bytes) -> None:
        if path == "/v1/metrics":
            ExportMetricsServiceRequest.FromString(body)
            self.num_pushes += 1
            return
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.num_spans += sum(len(scope.spans) for scope in resource.scope_spans)
