"""`sidecar health`: one question to the exporter of the same container."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI, Response

from sidecar import cli
from sidecar.commands import health
from sidecar.config import ExporterConfig
from sidecar.errors import ConfigError
from tests.publish.guard.certificates import Authority
from tests.publish.listening import listening


def app(status: int) -> FastAPI:
    made = FastAPI()
    made.get("/healthz")(lambda: Response(status_code=status))
    return made


@contextlib.contextmanager
def in_tls(folder: Path, *, wants_certificate: bool) -> Iterator[str]:
    """A server that answers one question in TLS; its address."""
    authority = Authority(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.vouch("sidecar"))
    if wants_certificate:
        context.load_verify_locations(authority.file)
        context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            taken, _ = listener.accept()
            with (
                contextlib.suppress(OSError),
                taken,
                context.wrap_socket(taken, server_side=True) as connection,
            ):
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}/healthz"
        thread.join(60)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:9478/healthz"),
        ("::", "http://[::1]:9478/healthz"),
        ("10.1.2.3", "http://10.1.2.3:9478/healthz"),
        ("localhost", "http://localhost:9478/healthz"),
    ],
)
def test_it_asks_where_the_configuration_says(host: str, url: str) -> None:
    """Of an address that means all, the loopback one."""
    assert health.health_url(ExporterConfig(metrics_host=host)) == url


def test_it_asks_in_tls_where_the_web_config_says_so(tmp_path: Path) -> None:
    """A web config without TLS changes nothing."""
    file = tmp_path / "web.yml"
    file.write_text("http_server_config: {}")
    config = ExporterConfig(web_config_file=file)
    assert health.health_url(config).startswith("http://")

    file.write_text("tls_server_config: {cert_file: a, key_file: b}")
    assert health.health_url(config).startswith("https://")


@pytest.mark.parametrize(("status", "exit_status"), [(200, 0), (503, 1), (404, 1)])
def test_only_a_good_answer_is_well(
    status: int, exit_status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anything else is another program's, or an exporter that is not well."""
    with listening(app(status)) as url:
        assert cli.main(["health", "--url", f"{url}/healthz"]) == exit_status

    assert ("is well" if exit_status == 0 else f"status {status}") in capsys.readouterr().out


def test_the_environment_says_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it does to the exporter, whose container this runs in."""
    with listening(app(200)) as url:
        monkeypatch.setenv("SIDECAR_METRICS_PORT", url.rsplit(":", 1)[1])
        assert cli.main(["health"]) == 0

    assert capsys.readouterr().out == f"sidecar: {url}/healthz is well\n"


def test_nobody_there_is_not_well(capsys: pytest.CaptureFixture[str]) -> None:
    """In words that name the remedy."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    assert cli.main(["health", "--url", f"http://127.0.0.1:{port}/healthz"]) == 1
    assert "is `sidecar serve` running?" in capsys.readouterr().out


@pytest.mark.parametrize("wants_certificate", [False, True])
def test_an_exporter_behind_tls_is_well(tmp_path: Path, *, wants_certificate: bool) -> None:
    """Whoever signed it, and although it lets nobody in without a certificate of theirs."""
    with in_tls(tmp_path, wants_certificate=wants_certificate) as url:
        answer = health.ask(url)

    assert answer.is_well
    assert ("wants a certificate" in answer.sentence) is wants_certificate


def test_what_is_no_address_is_told() -> None:
    """With one that is."""
    with pytest.raises(ConfigError, match="give one such as"):
        health.ask("ftp://127.0.0.1")
