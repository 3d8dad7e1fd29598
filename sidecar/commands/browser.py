"""`sidecar open`: an address that lets a browser into the live page."""

import argparse
from typing import Final

from sidecar.commands import asking
from sidecar.commands.command import needs
from sidecar.errors import ConfigError

HELP: Final = "print an address that lets a browser in, once"
_CREATED: Final = 201


def add(parser: argparse.ArgumentParser) -> None:
    """Where the API is, and what opens it."""
    asking.add(parser)


def run(parsed: argparse.Namespace) -> int:
    """Ask for the address, and print it."""
    url, opening = asking.root(parsed), asking.headers(parsed)
    print(url + _path(url, opening) if opening else f"{url}/ui")
    return 0


def _path(url: str, opening: dict[str, str]) -> str:
    with needs("exporter", "asking the API"):
        import httpx
    try:
        answer = httpx.post(f"{url}/login", headers=opening, trust_env=False)
        if answer.status_code != _CREATED:
            raise ConfigError(
                f"{url}: answered with status {answer.status_code}; is the token its?"
            )
        return str(answer.json()["path"])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
        raise ConfigError(f"{url}: {error}; give the API of a sidecar with --url") from error
