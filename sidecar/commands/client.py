"""The API of a running sidecar, as a command asks it.

Guarantee: whatever goes wrong is a ConfigError of one line, with the remedy that the API names.
"""

import argparse
import os
from collections.abc import Mapping
from typing import Any, Final

from sidecar.commands.command import needs
from sidecar.config import API_PORT, PREFIX, ExporterConfig
from sidecar.errors import ConfigError

_OK: Final = 200
_SECONDS: Final = 30.0


def add(parser: argparse.ArgumentParser) -> None:
    """Declare where the API is, and what opens it."""
    parser.add_argument("--url", default=f"http://127.0.0.1:{API_PORT}", help="root of the API")
    parser.add_argument(
        "--api-token-file", help=f"wins over {PREFIX}API_TOKEN_FILE; none: the API is open anyway"
    )


def get(parsed: argparse.Namespace, path: str, params: Mapping[str, str] | None = None) -> Any:
    """What the API of `parsed` answers to a GET of `path`, read from JSON."""
    url = parsed.url.rstrip("/")
    with needs("exporter", "asking the API"):
        import httpx
    try:
        answer = httpx.get(
            f"{url}{path}",
            params=dict(params or {}),
            headers=_headers(parsed),
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


def _headers(parsed: argparse.Namespace) -> dict[bytes, bytes]:
    environ = dict(os.environ)
    if parsed.api_token_file is not None:
        environ[f"{PREFIX}API_TOKEN_FILE"] = parsed.api_token_file
    token = ExporterConfig.read(environ).api_token()
    return {} if token is None else {b"Authorization": b"Bearer " + token}
