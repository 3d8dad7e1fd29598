"""`sidecar serve`: collect from taps, and serve what they say."""

import argparse
import os
from collections.abc import Mapping
from typing import Final

from sidecar.commands.command import declare, given, needs
from sidecar.config import ExporterConfig

HELP: Final = "collect from taps; serve /metrics, health, the API"


def add(parser: argparse.ArgumentParser) -> None:
    """Each key of the exporter is an option."""
    declare(parser, ExporterConfig)


def run(parsed: argparse.Namespace) -> int:
    """Serve until told to stop."""
    config = exporter_config(parsed, os.environ)
    with needs("exporter", "serving"):
        from sidecar.publish.server import serve
    return serve(config)


def exporter_config(parsed: argparse.Namespace, environ: Mapping[str, str]) -> ExporterConfig:
    """Settings of the exporter: options win over `environ`."""
    return ExporterConfig.read(given(parsed, ExporterConfig, environ))
