"""Show what a baseline is of, and which channels it would arm."""

import argparse
from pathlib import Path
from typing import Final

import msgspec

from sidecar.commands.baseline import options
from sidecar.commands.baseline.summary import plain, print_summary

HELP: Final = "print what a baseline is of, and what it would arm"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    options.add_trust(parser)
    options.add_preset(parser)


def run(parsed: argparse.Namespace) -> int:
    """Print it."""
    held = options.file_of(parsed.file, parsed)
    policy = options.policy_of(parsed)
    if parsed.json:
        told = plain(held.baseline, policy, held.signed_by)
        print(msgspec.json.format(msgspec.json.encode(told)).decode())
        return 0
    print_summary(parsed.file, held.baseline, policy)
    identity = held.baseline.header.identity
    known = {name: getattr(identity, name) for name in identity.__struct_fields__}
    for name, value in known.items():
        print(f"  {name}: {value or 'not known'}")
    print(f"  signed by: {held.signed_by or 'nobody'}")
    print(f"  can be merged: {'no' if held.fit is None else 'yes'}")
    for stratum, share in plain(held.baseline, policy, "")["strata"].items():
        print(f"  {share:7.2%}  {stratum}")
    return 0
