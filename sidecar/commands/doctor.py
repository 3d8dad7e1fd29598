"""`sidecar doctor`: say what is wrong with an installation, in plain words."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sidecar.commands.asking import asking
from sidecar.commands.command import needs
from sidecar.config import API_PORT, ExporterConfig, default_socket
from sidecar.doctor.finding import Finding, Level, is_sound
from sidecar.errors import ConfigError

HELP: Final = "say what is wrong with this installation, in plain words"
_MARKS: Final = {Level.OK: "ok", Level.UNKNOWN: "?", Level.WARN: "!", Level.WRONG: "WRONG"}


def add(parser: argparse.ArgumentParser) -> None:
    """Whom to ask."""
    parser.add_argument("--url", default=f"http://127.0.0.1:{API_PORT}", help="root of the API")
    parser.add_argument("--api-token-file", type=Path, help="wins over SIDECAR_API_TOKEN_FILE")
    parser.add_argument("--prometheus", help="root of Prometheus' API; not asked otherwise")


def run(parsed: argparse.Namespace) -> int:
    """Print every finding; 1 when something is wrong."""
    findings = []
    for finding in _findings(parsed):
        findings.append(finding)
        print(f"{_MARKS[finding.level]:>5}  {finding.subject}: {finding.sentence}")
        if finding.remedy:
            print(f"{'':>5}  -> {finding.remedy}")
    num_wrong = sum(each.level is Level.WRONG for each in findings)
    print(f"{num_wrong} wrong" if num_wrong else "nothing is wrong")
    return 0 if is_sound(findings) else 1


def _findings(parsed: argparse.Namespace) -> Iterator[Finding]:
    with needs("exporter", "the doctor"):
        from sidecar.doctor import machine, running
    environ = os.environ
    yield from machine.packages(environ)
    yield from machine.settings(environ)
    try:
        config: ExporterConfig | None = ExporterConfig.read(environ)
    except ConfigError:
        config = None  # told already; the socket can be looked at all the same
    yield from machine.socket(default_socket() if config is None else config.socket)
    if config is not None:
        yield from machine.files(config)
    token_file = parsed.api_token_file
    if token_file is None and config is not None:
        token_file = config.api_token_file
    ask = asking(token_file)
    url = parsed.url.rstrip("/")
    yield from running.exporter(ask, url)
    yield from running.baseline(ask, url)
    if parsed.prometheus:
        yield from running.prometheus(asking(None), parsed.prometheus.rstrip("/"))
