"""TODO."""

import argparse

HELP = "verify"


def add(parser: argparse.ArgumentParser) -> None:
    """No."""


def run(parsed: argparse.Namespace) -> int:
    """No."""
    return 0
