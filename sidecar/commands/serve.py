"""`sidecar serve`: collect from taps, and serve what they say.

Guarantee: a sidecar that was told to end, and has kept everything, is gone at once.
"""

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from typing import Final, NoReturn

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
    _leave(serve(config))


def exporter_config(parsed: argparse.Namespace, environ: Mapping[str, str]) -> ExporterConfig:
    """Settings of the exporter: options win over `environ`."""
    return ExporterConfig.read(given(parsed, ExporterConfig, environ))


def _leave(status: int) -> NoReturn:
    """End the process, for everything is kept: nobody is left to tidy up for.

    The interpreter would take its modules and threads apart first, which was measured to take four
    of the five seconds that an end may take on a busy machine.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
