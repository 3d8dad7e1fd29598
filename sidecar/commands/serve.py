"""`sidecar serve`: collect from taps, and serve what they say."""

import argparse
import os
from collections.abc import Mapping
from typing import Final

from sidecar.commands.command import needs
from sidecar.config import PREFIX, ExporterConfig

HELP: Final = "collect from taps; serve /metrics, health, the API"


def add(parser: argparse.ArgumentParser) -> None:
    """Each key of the exporter is an option."""
    for key, field in ExporterConfig.model_fields.items():
        default = str(field.get_default(call_default_factory=True)).replace("%", "%%")
        parser.add_argument(
            f"--{key.replace('_', '-')}",
            metavar="VALUE",
            help=f"wins over {PREFIX}{key.upper()}; default {default}",
        )


def run(parsed: argparse.Namespace) -> int:
    """Serve until told to stop."""
    config = exporter_config(parsed, os.environ)
    with needs("exporter", "serving"):
        from sidecar.publish.server import serve
    return serve(config)


def exporter_config(parsed: argparse.Namespace, environ: Mapping[str, str]) -> ExporterConfig:
    """Settings of the exporter: options win over `environ`."""
    given = {key: getattr(parsed, key, None) for key in ExporterConfig.model_fields}
    options = {f"{PREFIX}{key.upper()}": value for key, value in given.items() if value is not None}
    return ExporterConfig.read({**environ, **options})
