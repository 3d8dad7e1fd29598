"""TODO."""

import argparse

HELP = "record"


def add(parser: argparse.ArgumentParser) -> None:
    """No."""


def run(parsed: argparse.Namespace) -> int:
    """No."""
    return 0
