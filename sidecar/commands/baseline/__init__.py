"""`sidecar baseline`: make the reference that traffic is judged by, look at it, and trust it.

Each word after it is a module here, of the same form as any command.
"""

import argparse
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from sidecar.commands.baseline import calibrate, fit, keygen, merge, record, show, sign, verify
from sidecar.commands.command import Command

HELP: Final = "record, fit, calibrate and verify the reference of drift"
COMMANDS: Final[Mapping[str, Command]] = MappingProxyType(
    {
        "record": record,
        "fit": fit,
        "merge": merge,
        "show": show,
        "verify": verify,
        "calibrate": calibrate,
        "keygen": keygen,
        "sign": sign,
    }
)


def add(parser: argparse.ArgumentParser) -> None:
    """One word more."""
    commands = parser.add_subparsers(dest="baseline_command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add(commands.add_parser(name, help=command.HELP, description=command.__doc__))


def run(parsed: argparse.Namespace) -> int:
    """Run the word."""
    return COMMANDS[parsed.baseline_command].run(parsed)
