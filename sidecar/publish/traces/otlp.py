"""OTLP exporters out of the configuration: gRPC or HTTP, with TLS and headers as configured.

Guarantees: a file that cannot be read is a ConfigError with the key, before anything starts; a
batch takes at most `EXPORT_SECONDS` on its way; what the exporters log of a receiver that is away
is one line a minute.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
import requests
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (
    OTLPMetricExporter as GrpcMetricExporter,
)
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
    OTLPSpanExporter as GrpcSpanExporter,
)
from opentelemetry.exporter.otlp.proto.http.metric_exporter import (
    OTLPMetricExporter as HttpMetricExporter,
)
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter as HttpSpanExporter,
)
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from sidecar.config import PREFIX, ExporterConfig
from sidecar.errors import ConfigError

EXPORT_SECONDS: Final = 5.0
_LOG_SECONDS: Final = 60.0
_LOGGERS: Final = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
)


class _Exporter(Protocol):
    """What all four exporters share."""

    def export(self, told: Any) -> Any: ...

    def shutdown(self) -> None: ...


class SpanCarrier:
    """An `outbox.Carrier` over the exporter that the configuration names."""

    def __init__(self, config: ExporterConfig) -> None:
        self._exporter = _made(config, GrpcSpanExporter, HttpSpanExporter, "v1/traces")

    def export(self, spans: Sequence[ReadableSpan]) -> bool:
        """Whether the receiver took them."""
        return bool(self._exporter.export(spans) is SpanExportResult.SUCCESS)

    def shutdown(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()


class MetricCarrier:
    """The same for metrics."""

    def __init__(self, config: ExporterConfig) -> None:
        self._exporter = _made(config, GrpcMetricExporter, HttpMetricExporter, "v1/metrics")

    def export(self, told: MetricsData) -> bool:
        """Whether the receiver took them."""
        return bool(self._exporter.export(told) is MetricExportResult.SUCCESS)

    def shutdown(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()


def read_headers(path: Path | None) -> dict[str, str]:
    """Headers of a file with one `name: value` a line; empty lines and `#` comments pass.

    Raises ConfigError.
    """
    key = f"{PREFIX}OTLP_HEADERS_FILE"
    if path is None:
        return {}
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: {error}; give a text file this user can read") from error
    headers = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not line.startswith("#"):
            name, colon, value = line.partition(":")
            if not (name.strip() and colon):
                raise ConfigError(f"{key}: line {number} is not `name: value`")
            headers[name.strip().lower()] = value.strip()  # gRPC takes no others
    return headers


def _made(
    config: ExporterConfig, of_grpc: Callable[..., Any], of_http: Callable[..., Any], path: str
) -> _Exporter:
    endpoint = (config.otlp_endpoint or "").rstrip("/")
    headers = read_headers(config.otlp_headers_file)
    authority = _authority(config.otlp_ca_file)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(each, _Sparing) for each in logger.filters):
            logger.addFilter(_Sparing())
    made: _Exporter
    if config.otlp_protocol == "grpc":
        is_plain = endpoint.startswith("http://")
        credentials = None if is_plain else grpc.ssl_channel_credentials(authority)
        made = of_grpc(
            endpoint=endpoint,
            insecure=is_plain,
            credentials=credentials,
            headers=headers,
            timeout=EXPORT_SECONDS,
        )
    else:
        made = of_http(
            endpoint=f"{endpoint}/{path}",
            certificate_file=str(config.otlp_ca_file) if config.otlp_ca_file else None,
            headers=headers,
            timeout=EXPORT_SECONDS,
            session=_Session() if config.otlp_ca_file else None,
        )
    return made


def _authority(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{PREFIX}OTLP_CA_FILE: {error}; give a PEM file this user can read"
        ) from error


class _Session(requests.Session):
    """A session whose own authority wins over REQUESTS_CA_BUNDLE of the environment.

    Without it the environment's wins (https://github.com/psf/requests/issues/3829).
    """

    def merge_environment_settings(
        self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any
    ) -> Any:
        known = self.verify if verify is None else verify
        return super().merge_environment_settings(url, proxies, stream, known, cert)


class _Sparing(logging.Filter):
    """One line a minute: the metrics say how often, the line says why."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 - the base class's
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _LOG_SECONDS
        return True
