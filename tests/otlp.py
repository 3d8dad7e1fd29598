"""A real OTLP receiver over gRPC, on loopback: keeps the spans and metrics that it is sent."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# Tests fork servers, which exec at once: gRPC need not come along, and must not get in the way.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class OtlpReceiver:
    """Listens from the start; `traces` and `metrics` hold every request as it came."""

    def __init__(self) -> None:
        self.traces: list[Any] = []
        self.metrics: list[Any] = []
        self._server = grpc.server(ThreadPoolExecutor(4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(
            _Service(self.traces, trace_service_pb2.ExportTraceServiceResponse), self._server
        )
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(
            _Service(self.metrics, metrics_service_pb2.ExportMetricsServiceResponse), self._server
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    @property
    def endpoint(self) -> str:
        """What an exporter is told."""
        return f"http://127.0.0.1:{self.port}"

    def spans(self) -> list[Any]:
        """Every span received, as protobuf (opentelemetry.proto.trace.v1.Span)."""
        return [
            span
            for request in list(self.traces)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def stop(self) -> None:
        """End it."""
        self._server.stop(None).wait()


class _Service:
    """Either of the two services: both have the one method."""

    def __init__(self, received: list[Any], answer: Any) -> None:
        self._received = received
        self._answer = answer

    def Export(self, request: Any, _context: Any) -> Any:  # noqa: N802 - the name in the protocol
        self._received.append(request)
        return self._answer()
