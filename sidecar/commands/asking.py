"""How a command asks the API of a running sidecar: where it is, what opens it, what went wrong.

Guarantees: no proxy is asked; whatever goes wrong is one line, with the remedy that the API names.
"""

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from sidecar.commands.command import needs
from sidecar.config import API_PORT, PREFIX, ExporterConfig
from sidecar.errors import ConfigError

_OK: Final = 200
_SECONDS: Final = 30.0  # that an answer may take
_SOON_SECONDS: Final = 5.0  # the same for who asks again and again


def add(parser: argparse.ArgumentParser) -> None:
    """Declare where the API is, and what opens it."""
    parser.add_argument("--url", default=f"http://127.0.0.1:{API_PORT}", help="root of the API")
    add_token(parser)


def add_token(parser: argparse.ArgumentParser) -> None:
    """Declare what opens it alone."""
    parser.add_argument(
        "--api-token-file",
        type=Path,
        help=f"wins over {PREFIX}API_TOKEN_FILE; none: the API is open anyway",
    )


def root(parsed: argparse.Namespace) -> str:
    """Where the API is, without a slash at its end."""
    return str(parsed.url).rstrip("/")


def headers(parsed: argparse.Namespace) -> dict[str, str]:
    """What opens the API; empty without a token. Raises ConfigError when it cannot be read."""
    environ = dict(os.environ)
    if parsed.api_token_file is not None:
        environ[f"{PREFIX}API_TOKEN_FILE"] = str(parsed.api_token_file)
    token = ExporterConfig.read(environ).api_token()
    return {} if token is None else {"Authorization": f"Bearer {token.decode('latin-1')}"}


def get(parsed: argparse.Namespace, path: str, params: Mapping[str, str] | None = None) -> Any:
    """What the API answers to a GET of `path`, read from JSON. Raises ConfigError."""
    url = root(parsed)
    with needs("exporter", "asking the API"):
        import httpx
    try:
        answer = httpx.get(
            f"{url}{path}",
            params=dict(params or {}),
            headers=headers(parsed),
            timeout=_SECONDS,
            trust_env=False,
        )
        body = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ConfigError(f"{url}: {error}; give the API of a sidecar with --url") from error
    if answer.status_code != _OK:
        told = body if isinstance(body, dict) else {}
        detail = told.get("detail", f"answered with status {answer.status_code}")
        raise ConfigError(f"{detail}; {told.get('remedy', 'is it the API of a sidecar?')}")
    return body


def asking(opening: Mapping[str, str], root: str = "") -> Callable[[str], Any]:
    """From an address, or a path under `root`, to its JSON; raises OSError where there is none.

    opening: headers that go along, see `headers`.
    """
    with needs("exporter", "asking a sidecar"):
        import httpx

    def ask(url: str) -> Any:
        try:
            answer = httpx.get(
                root + url, headers=dict(opening), timeout=_SOON_SECONDS, trust_env=False
            )
            answer.raise_for_status()
            return answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            told = str(error) or type(error).__name__
            raise OSError(told.splitlines()[0]) from error

    return ask
