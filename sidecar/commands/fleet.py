"""`sidecar fleet`: compare the replicas of one deployment with each other, beside Prometheus."""

import argparse
import os
from collections.abc import Mapping
from typing import Final

from sidecar.commands.command import declare, given, needs
from sidecar.config import FleetConfig

HELP: Final = "compare the replicas of one deployment with each other"
_OWN: Final = "fleet_"


def add(parser: argparse.ArgumentParser) -> None:
    """Each key of the job is an option, without the word fleet."""
    declare(parser, FleetConfig, _OWN)


def run(parsed: argparse.Namespace) -> int:
    """Compare until told to stop."""
    config = fleet_config(parsed, os.environ)
    with needs("exporter", "the fleet job"):
        from sidecar.publish.server import serve_fleet
    return serve_fleet(config)


def fleet_config(parsed: argparse.Namespace, environ: Mapping[str, str]) -> FleetConfig:
    """Settings of the job: options win over `environ`."""
    return FleetConfig.read(given(parsed, FleetConfig, environ))
