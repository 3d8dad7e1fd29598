"""`sidecar demo`: a tiny tapped model beside a sidecar."""

import argparse
from collections.abc import Sequence
from typing import Final

HELP: Final = "run a tiny tapped model beside a sidecar"


def add(_: argparse.ArgumentParser) -> None:
    """No options here: the demo parses what follows its name itself."""


def run(parsed: argparse.Namespace) -> int:
    """Run it as it is."""
    del parsed
    return launch([])


def launch(arguments: Sequence[str]) -> int:
    """Run it with the demo's own arguments."""
    from sidecar.demo.launcher import main

    return main(arguments)
