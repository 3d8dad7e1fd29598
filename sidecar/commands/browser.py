"""`sidecar open`: an address that lets a browser into the live page."""

import argparse
import os
from typing import Final

from sidecar.commands.command import needs
from sidecar.config import API_PORT, PREFIX, ExporterConfig
from sidecar.errors import ConfigError

HELP: Final = "print an address that lets a browser in, once"
_CREATED: Final = 201


def add(parser: argparse.ArgumentParser) -> None:
    """Where the API is, and what opens it."""
    parser.add_argument("--url", default=f"http://127.0.0.1:{API_PORT}", help="root of the API")
    parser.add_argument(
        "--api-token-file", help=f"wins over {PREFIX}API_TOKEN_FILE; none: the page is open anyway"
    )


def run(parsed: argparse.Namespace) -> int:
    """Ask for the address, and print it."""
    environ = dict(os.environ)
    if parsed.api_token_file is not None:
        environ[f"{PREFIX}API_TOKEN_FILE"] = parsed.api_token_file
    token = ExporterConfig.read(environ).api_token()
    url = parsed.url.rstrip("/")
    print(f"{url}/ui" if token is None else url + _path(url, token))
    return 0


def _path(url: str, token: bytes) -> str:
    with needs("exporter", "asking the API"):
        import httpx
    try:
        headers = {b"Authorization": b"Bearer " + token}
        answer = httpx.post(f"{url}/login", headers=headers, trust_env=False)
        if answer.status_code != _CREATED:
            raise ConfigError(
                f"{url}: answered with status {answer.status_code}; is the token its?"
            )
        return str(answer.json()["path"])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
        raise ConfigError(f"{url}: {error}; give the API of a sidecar with --url") from error
