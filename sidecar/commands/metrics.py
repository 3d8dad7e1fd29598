"""`sidecar metrics`: the reference of all metrics."""

import argparse
from typing import Final

HELP: Final = "print the reference of all metrics, in Markdown"


def add(_: argparse.ArgumentParser) -> None:
    """No options."""


def run(_: argparse.Namespace) -> int:
    """Print it."""
    from sidecar.publish.metrics.reference import reference

    print(reference(), end="")
    return 0
