"""What every command is, and what it may ask for.

Guarantee: a package that is not installed is one line that names the extra, never a traceback.
"""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from pydantic import BaseModel

from sidecar.config import PREFIX
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


def declare(parser: argparse.ArgumentParser, keys: type[BaseModel], own: str = "") -> None:
    """Make each key of a configuration an option, without the word `own` that it begins with."""
    for key, field in keys.model_fields.items():
        default = str(field.get_default(call_default_factory=True)).replace("%", "%%")
        parser.add_argument(
            f"--{key.removeprefix(own).replace('_', '-')}",
            dest=key,
            metavar="VALUE",
            help=f"wins over {PREFIX}{key.upper()}; default {default or 'none'}",
        )


def given(
    parsed: argparse.Namespace, keys: type[BaseModel], environ: Mapping[str, str]
) -> dict[str, str]:
    """`environ`, where the options that were given win."""
    values = {key: getattr(parsed, key, None) for key in keys.model_fields}
    options = {f"{PREFIX}{k.upper()}": value for k, value in values.items() if value is not None}
    return {**environ, **options}


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
