"""`sidecar health`: whether the exporter of this container lives; for the image's HEALTHCHECK.

Guarantees: asks /healthz, where the configuration in the environment says that metrics are served,
and nothing beyond; four seconds of silence are no answer; one line, and status 0 or 1; needs no
shell, no token and, where no web config file is set, the base dependencies only.
"""

import argparse
import http.client
import ipaddress
import os
import ssl
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from sidecar.commands.command import needs
from sidecar.config import ExporterConfig
from sidecar.errors import ConfigError

HELP: Final = "say whether the exporter here lives; for health checks of containers"
_SECONDS: Final = 4.0
_OK: Final = 200


class Answer(NamedTuple):
    """What became of asking: in words, and whether it lives."""

    sentence: str
    is_well: bool = False


def add(parser: argparse.ArgumentParser) -> None:
    """Where to ask, when the exporter's own options say otherwise than the environment."""
    parser.add_argument("--url", help="such as http://127.0.0.1:9478/healthz; by the environment")


def run(parsed: argparse.Namespace) -> int:
    """Ask, and say it; 1 when it does not live."""
    url = parsed.url or health_url(ExporterConfig.read(os.environ))
    answer = ask(url)
    print(f"sidecar: {url} {answer.sentence}")
    return 0 if answer.is_well else 1


def health_url(config: ExporterConfig) -> str:
    """Where an exporter of this configuration says that it lives, seen from its own machine."""
    host = config.metrics_host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"{_scheme(config)}://{host}:{config.metrics_port}/healthz"
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"
    bracketed = f"[{host}]" if ":" in host else host
    return f"{_scheme(config)}://{bracketed}:{config.metrics_port}/healthz"


def ask(url: str) -> Answer:
    """Whether `url` answers as a living exporter does. Raises ConfigError when it is no address."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"health: --url {url!r}: {error}") from error
    if parts.scheme not in {"http", "https"} or not host:
        raise ConfigError(f"health: --url {url!r}; give one such as http://127.0.0.1:9478/healthz")
    connection = _connection(parts.scheme, host, port)
    try:
        status = _status(connection, parts.path or "/")
    except (OSError, http.client.HTTPException) as error:
        return Answer(f"does not answer ({error}); is `sidecar serve` running?")
    finally:
        connection.close()
    if status is None:
        return Answer("is well, and wants a certificate", is_well=True)
    if status == _OK:
        return Answer("is well", is_well=True)
    return Answer(f"answers with status {status}; is it a sidecar's?")


def _status(connection: http.client.HTTPConnection, path: str) -> int | None:
    """What it answers with; None when it wants a certificate, which a health check has not.

    Then it hangs up, after the handshake (TLS 1.3) or in it: it has spoken with us, so it lives.
    Whether its reason still reaches us is a matter of luck, as what we sent meanwhile resets the
    connection.
    """
    try:
        connection.connect()
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            return None
        raise
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (ssl.SSLError, ConnectionError):
        if isinstance(connection, http.client.HTTPSConnection):
            return None
        raise


def _scheme(config: ExporterConfig) -> str:
    if config.web_config_file is None:
        return "http"
    with needs("exporter", "a web config file"):
        from sidecar.publish.guard.webconfig import WebConfig
    return "https" if WebConfig.read(config.web_config_file).tls_server_config else "http"


def _connection(scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=_SECONDS)
    # Of itself on its own machine: its certificate is for the names that others know it by.
    context = ssl._create_unverified_context()  # noqa: S323
    return http.client.HTTPSConnection(host, port, timeout=_SECONDS, context=context)
