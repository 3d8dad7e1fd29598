"""Verify a baseline: that nobody changed it, who signed it, and whether it is of what runs.

Exit status 3 when what runs is not what the baseline was made of; 2 when the file is refused, or
numbers cannot be compared.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sidecar.commands import asking
from sidecar.commands.baseline import options
from sidecar.commands.command import needs
from sidecar.errors import BaselineError, ConfigError

if TYPE_CHECKING:
    from sidecar.fold.drift.header import Header
    from sidecar.jobs.exporter import Engine

HELP: Final = "check a baseline's checksum and signature, and what runs against it"
FOUND: Final = 3


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=Path, metavar="FILE")
    options.add_trust(parser)
    options.add_url(parser, is_required=False)


def run(parsed: argparse.Namespace) -> int:
    """Say what is found."""
    held = options.file_of(parsed.file, parsed)
    signer = held.signed_by[:16] or "nobody"
    proof = "" if parsed.key or not held.signed_by else ", not checked: give --key"
    print(f"{parsed.file}: whole; baseline {held.baseline.digest[:12]}, signed by {signer}{proof}")
    if parsed.url is None:
        return 0
    with needs("exporter", "--url"):
        from sidecar.jobs.exporter import Exporter
    with Exporter(parsed.url, asking.headers(parsed)) as exporter:
        engines = exporter.engines()
    if not engines:
        raise ConfigError(f"{parsed.url}: no tap is heard there; serve a model with SIDECAR_TAP=1")
    num_found = sum(_compare(held.baseline.header, each) for each in engines)
    return FOUND if num_found else 0


def _compare(header: "Header", engine: "Engine") -> int:
    """Print how an engine differs; the number of findings."""
    from sidecar.fold.drift.header import Header, compare

    served = Header(engine.identity, engine.layout or header.layout)
    found = compare(header, served)
    if found.refusals:
        told = "; ".join(map(str, found.refusals))
        raise BaselineError(f"{engine.source} cannot be compared: {told}; fit a baseline of it")
    for each in found.findings:
        print(f"{engine.source}: {each}")
    if found.unknown:
        print(f"{engine.source}: known on one side only: {', '.join(found.unknown)}")
    if engine.layout is None:
        print(f"{engine.source}: no request finished yet, so its layout is not known")
    if not found.findings:
        print(f"{engine.source}: executes what the baseline was made of, as far as both say")
    return len(found.findings)
