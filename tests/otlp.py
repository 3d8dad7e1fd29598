"""Real OTLP receivers over gRPC and HTTP, on loopback: they keep what they are sent."""

import gzip
import os
import socket
import ssl
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Tests fork servers, which exec at once: gRPC need not come along, and must not get in the way.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Kept:
    """`traces` and `metrics` hold every request as it came, `headers` those sent along.

    is_open: while it is not set, nobody gets an answer.
    """

    def __init__(self) -> None:
        self.traces: list[Any] = []
        self.metrics: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.is_open = threading.Event()
        self.is_open.set()

    def spans(self) -> list[Any]:
        """Every span received, as protobuf (opentelemetry.proto.trace.v1.Span)."""
        return [
            span
            for request in list(self.traces)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class OtlpReceiver(Kept):
    """Listens over gRPC from the start.

    port: 0 for any free one. certificate: key and certificate in PEM, for TLS.
    """

    def __init__(self, port: int = 0, certificate: tuple[bytes, bytes] | None = None) -> None:
        super().__init__()
        self._scheme = "https" if certificate else "http"
        self._server = grpc.server(ThreadPoolExecutor(4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(
            _Service(self, self.traces, trace_service_pb2.ExportTraceServiceResponse), self._server
        )
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(
            _Service(self, self.metrics, metrics_service_pb2.ExportMetricsServiceResponse),
            self._server,
        )
        address = f"127.0.0.1:{port}"
        if certificate is None:
            self.port = self._server.add_insecure_port(address)
        else:
            credentials = grpc.ssl_server_credentials([certificate])
            self.port = self._server.add_secure_port(address, credentials)
        self._server.start()

    @property
    def endpoint(self) -> str:
        """What an exporter is told."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End it."""
        self.is_open.set()
        self._server.stop(None).wait()


class _Service:
    """Either of the two services: both have the one method."""

    def __init__(self, kept: Kept, received: list[Any], answer: Any) -> None:
        self._kept = kept
        self._received = received
        self._answer = answer

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name in the protocol
        self._kept.is_open.wait(300)
        self._kept.headers.append(dict(context.invocation_metadata()))
        self._received.append(request)
        return self._answer()


class HttpOtlpReceiver(Kept):
    """Listens over HTTP from the start; arguments as of `OtlpReceiver`.

    status: what is answered; whatever is not 200 keeps nothing.
    """

    def __init__(self, port: int = 0, certificate: tuple[bytes, bytes] | None = None) -> None:
        super().__init__()
        self.status = 200
        self._scheme = "https" if certificate else "http"
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        if certificate is not None:
            self._server.socket = _wrapped(self._server.socket, certificate)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """What an exporter is told."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End it."""
        self.is_open.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _wrapped(listener: socket.socket, certificate: tuple[bytes, bytes]) -> socket.socket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(certificate))
        file.flush()
        context.load_cert_chain(file.name)
    return context.wrap_socket(listener, server_side=True)


def _handler(kept: HttpOtlpReceiver) -> type[BaseHTTPRequestHandler]:
    kinds = {
        "/v1/traces": (kept.traces, trace_service_pb2.ExportTraceServiceRequest),
        "/v1/metrics": (kept.metrics, metrics_service_pb2.ExportMetricsServiceRequest),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            kept.is_open.wait(300)
            received, kind = kinds[self.path]
            if kept.status == 200:
                kept.headers.append({k.lower(): v for k, v in self.headers.items()})
                received.append(kind.FromString(body))
            self.send_response(kept.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    return Handler
