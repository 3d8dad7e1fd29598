"""`sidecar fleet`: compare the replicas of one deployment with each other, beside Prometheus."""

import argparse
import os
from collections.abc import Mapping
from typing import Final

from sidecar.commands.command import needs
from sidecar.config import PREFIX, FleetConfig

HELP: Final = "compare the replicas of one deployment with each other"
_OWN: Final = "fleet_"


def add(parser: argparse.ArgumentParser) -> None:
    """Each key of the job is an option, without the word fleet."""
    for key, field in FleetConfig.model_fields.items():
        default = str(field.get_default(call_default_factory=True)).replace("%", "%%")
        parser.add_argument(
            f"--{key.removeprefix(_OWN).replace('_', '-')}",
            dest=key,
            metavar="VALUE",
            help=f"wins over {PREFIX}{key.upper()}; default {default or 'none'}",
        )


def run(parsed: argparse.Namespace) -> int:
    """Compare until told to stop."""
    config = fleet_config(parsed, os.environ)
    with needs("exporter", "the fleet job"):
        from sidecar.publish.server import serve_fleet
    return serve_fleet(config)


def fleet_config(parsed: argparse.Namespace, environ: Mapping[str, str]) -> FleetConfig:
    """Settings of the job: options win over `environ`."""
    given = {key: getattr(parsed, key, None) for key in FleetConfig.model_fields}
    options = {f"{PREFIX}{key.upper()}": value for key, value in given.items() if value is not None}
    return FleetConfig.read({**environ, **options})
