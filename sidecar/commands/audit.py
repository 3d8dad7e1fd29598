"""`sidecar audit`: check the log of what operators did."""

import argparse
from pathlib import Path
from typing import Final

from sidecar.errors import StoreError
from sidecar.store.audit import Head, verify

HELP: Final = "check the log of what operators did"


def add(parser: argparse.ArgumentParser) -> None:
    """One action: verify."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    checked = actions.add_parser("verify", help="walk the chain of hashes; exit 2 where it breaks")
    checked.add_argument("file", type=Path, help="audit.jsonl in SIDECAR_STATE_DIR")
    checked.add_argument(
        "--head",
        metavar="NUMBER:HASH",
        help="an earlier end of the chain, which must still be in it: finds a cut-off end",
    )


def run(parsed: argparse.Namespace) -> int:
    """Print where the chain ends."""
    known = None if parsed.head is None else _head(parsed.head)
    head = verify(parsed.file, known)
    print(f"{parsed.file}: {head.number} entries, unbroken; head {head.number}:{head.hash}")
    return 0


def _head(text: str) -> Head:
    number, _, digest = text.partition(":")
    if not number.isdecimal() or len(digest) != 64:
        raise StoreError(f"--head {text!r}: give it as this command printed it, NUMBER:HASH")
    return Head(int(number), digest)
