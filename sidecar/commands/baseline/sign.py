"""Sign a baseline that somebody has looked at; an exporter can then refuse any other."""

import argparse
from pathlib import Path
from typing import Final

from sidecar.commands.baseline import options
from sidecar.commands.command import needs

HELP: Final = "sign a baseline"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--sign-with", type=Path, required=True, metavar="KEY")


def run(parsed: argparse.Namespace) -> int:
    """Write the same file, signed."""
    with needs("exporter", "signing"):
        from sidecar.store.signing import Private
    from sidecar.store.baseline_file import write_baseline

    signer = Private.read(parsed.sign_with)
    held = options.file_of(parsed.file, parsed)
    write_baseline(parsed.file, held.baseline, held.fit, signer)
    print(f"{parsed.file}: baseline {held.baseline.digest[:12]} signed by {signer.name[:16]}")
    return 0
