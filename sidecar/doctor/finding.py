"""One thing that was looked at, and what was found."""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple


class Level(StrEnum):
    """How bad it is. UNKNOWN: it could not be looked at, such as when nothing runs."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARN = "warn"
    WRONG = "wrong"


class Finding(NamedTuple):
    """What was looked at, what is so, and what to do where it should be otherwise."""

    level: Level
    subject: str
    sentence: str
    remedy: str = ""


def is_sound(findings: Iterable[Finding]) -> bool:
    """Whether nothing is wrong."""
    return all(each.level is not Level.WRONG for each in findings)
