"""How a command asks a server for JSON: with a token, without proxies, every failure an OSError."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sidecar.commands.command import needs
from sidecar.errors import ConfigError

_SECONDS: Final = 5.0  # that an answer may take


def asking(token_file: Path | None, root: str = "") -> Callable[[str], Any]:
    """From an address, or a path under `root`, to its JSON; raises OSError where there is none.

    Raises ConfigError when `token_file` cannot be read.
    """
    with needs("exporter", "asking a sidecar"):
        import httpx
    headers = {}
    if token_file is not None:
        try:
            headers = {"Authorization": f"Bearer {token_file.read_text().strip()}"}
        except OSError as error:
            raise ConfigError(f"--api-token-file: {error}") from error

    def ask(url: str) -> Any:
        try:
            answer = httpx.get(root + url, headers=headers, timeout=_SECONDS, trust_env=False)
            answer.raise_for_status()
            return answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            told = str(error) or type(error).__name__
            raise OSError(told.splitlines()[0]) from error

    return ask
