"""`sidecar doctor`: say what is wrong with an installation, in plain words."""

import argparse
import os
from collections.abc import Iterator
from typing import Final

from sidecar.commands import asking
from sidecar.commands.command import needs
from sidecar.config import ExporterConfig, default_socket
from sidecar.doctor.finding import Finding, Level, is_sound
from sidecar.errors import ConfigError

HELP: Final = "say what is wrong with this installation, in plain words"
_MARKS: Final = {Level.OK: "ok", Level.UNKNOWN: "?", Level.WARN: "!", Level.WRONG: "WRONG"}


def add(parser: argparse.ArgumentParser) -> None:
    """Whom to ask."""
    asking.add(parser)
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
    # Without settings that can be used there is no token to show; the answer then says so.
    ask = asking.asking(asking.headers(parsed) if config is not None else {})
    url = asking.root(parsed)
    yield from running.exporter(ask, url)
    yield from running.baseline(ask, url)
    if parsed.prometheus:
        yield from running.prometheus(asking.asking({}), parsed.prometheus.rstrip("/"))
