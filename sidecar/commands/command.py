"""What every command is, and what it may ask for.

Guarantee: a package that is not installed is one line that names the extra, never a traceback.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from sidecar.errors import ConfigError


class Command(Protocol):
    """A module of `sidecar.commands`."""

    HELP: str

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        ...

    def run(self, parsed: argparse.Namespace) -> int:
        """Do it; the exit status. Raises SidecarError for what the operator can mend."""
        ...


@contextmanager
def needs(extra: str, purpose: str) -> Iterator[None]:
    """Around imports of what only the extra brings, such as `needs("exporter", "serving")`.

    Raises ConfigError with the remedy when a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        remedy = f"pip install 'llm-internals-sidecar[{extra}]'"
        raise ConfigError(f"{error}: {purpose} needs more packages; {remedy}") from error
