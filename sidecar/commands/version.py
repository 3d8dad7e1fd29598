"""`sidecar version`: the release, and the wire schema that both sides must agree on."""

import argparse
from typing import Final

import sidecar
from sidecar.wire.frame import SCHEMA

HELP: Final = "print the version"


def add(_: argparse.ArgumentParser) -> None:
    """No options."""


def run(_: argparse.Namespace) -> int:
    """Print both."""
    print(f"sidecar {sidecar.__version__} (wire schema {SCHEMA})")
    return 0
