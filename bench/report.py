"""What every bench prints and keeps: one table, one file of figures, and how far it is.

Guarantee: a file names the command, the seed, the revision and the machine that made it, and how
busy that machine was, so that another can repeat it and judge it.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.machine import describe

RESULTS: Final = Path(__file__).parent / "results"


class Section(NamedTuple):
    """What a section found.

    title: what the table is of. columns, rows: the table, as text. figures: the same, in full.
    notes: what the figures do not say.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    figures: Mapping[str, Any]
    notes: Sequence[str] = ()


class Target(NamedTuple):
    """What was to be reached, and what was found; `is_met` compares nothing anew."""

    what: str
    limit: float
    found: float
    is_met: bool
    unit: str = ""

    @classmethod
    def at_least(cls, what: str, limit: float, found: float, unit: str = "") -> "Target":
        """Met from `limit` upwards."""
        return cls(what, limit, found, found >= limit, unit)

    @classmethod
    def at_most(cls, what: str, limit: float, found: float, unit: str = "") -> "Target":
        """Met up to `limit`."""
        return cls(what, limit, found, found <= limit, unit)

    def __str__(self) -> str:
        verdict = "met" if self.is_met else "MISSED"
        unit = f" {self.unit}" if self.unit else ""
        return (
            f"Target: {self.what}: {figure(self.found)}{unit} of {figure(self.limit)}: {verdict}."
        )


def figure(number: float) -> str:
    """Four digits, and no exponent where there are more before the point."""
    return f"{number:,.0f}" if abs(number) >= 10_000 else f"{number:,.4g}"


def table(section: Section) -> Iterator[str]:
    """The section in lines of Markdown."""
    yield f"### {section.title}"
    yield ""
    yield f"| {' | '.join(section.columns)} |"
    yield "|---" * len(section.columns) + "|"
    yield from (f"| {' | '.join(row)} |" for row in section.rows)
    if section.notes:
        yield ""
        yield from (f"{note}" for note in section.notes)


class Run(NamedTuple):
    """How a section was made: its name, the command, the seconds it took, the seed of its draws."""

    benchmark: str
    command: str
    seconds: float
    seed: int = 0


def write(path: Path, run: Run, section: Section, packages: Sequence[str]) -> None:
    """Write the figures of a section, and what they were measured on."""
    result = {
        "benchmark": run.benchmark,
        "command": run.command,
        "seconds": round(run.seconds, 1),
        "seed": run.seed,
        "machine": describe(*packages),
        "load_average": round(os.getloadavg()[1], 1),
        "title": section.title,
        "figures": section.figures,
        "table": list(table(section)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def progress(text: str) -> None:
    """Say how far it is, on one line of stderr."""
    print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)
