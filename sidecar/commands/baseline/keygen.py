"""Make a pair of ed25519 keys, to sign baselines and to check who signed them."""

import argparse
from pathlib import Path
from typing import Final

from sidecar.commands.command import needs

HELP: Final = "make a pair of keys to sign baselines with"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "private", type=Path, metavar="KEY", help="keep it where baselines are made"
    )


def run(parsed: argparse.Namespace) -> int:
    """Write KEY and KEY.pub; neither may exist."""
    with needs("exporter", "signing"):
        from sidecar.store.signing import make_keys
    public = parsed.private.with_name(f"{parsed.private.name}.pub")
    make_keys(parsed.private, public)
    print(f"{parsed.private}: private; sign with it, and give it to nobody")
    print(f"{public}: public; give it to every exporter as SIDECAR_BASELINE_KEY_FILE")
    return 0
