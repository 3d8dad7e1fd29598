"""`sidecar top`: is the model behaving as usual, on a terminal."""

import argparse
import sys
from typing import Final

from sidecar.commands import asking
from sidecar.commands.command import needs
from sidecar.errors import ConfigError

HELP: Final = "show live, on a terminal, whether the model behaves as usual"


def add(parser: argparse.ArgumentParser) -> None:
    """Whom to ask, and how often."""
    asking.add(parser)
    parser.add_argument(
        "--once",
        action="store_true",
        help="print one reading; status 0 when nobody needs to do anything, 1 when somebody does, "
        "2 without an answer. So does a run without a terminal",
    )


def run(parsed: argparse.Namespace) -> int:
    """Show; the exit status."""
    with needs("exporter", "a terminal view"):
        from rich.console import Console

        from sidecar.top import session
    url = asking.root(parsed)
    ask, console = asking.asking(asking.headers(parsed), url), Console()
    if console.is_terminal and sys.stdin.isatty() and not parsed.once:
        return session.watch(ask, url, console)
    try:
        return session.once(ask, url, console)
    except OSError as error:
        raise ConfigError(
            f"{url}: {error}; start sidecar serve, or give its API with --url"
        ) from error
