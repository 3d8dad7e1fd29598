"""Tables and files of results: one section, one table, one JSON."""

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.machine import describe

RESULTS: Final = Path(__file__).parents[1] / "results"
PACKAGES: Final = ("numpy", "scipy", "river", "torch", "transformers")


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


def write(path: Path, name: str, section: Section, command: str, seconds: float) -> None:
    """Write the figures of a section, and what they were measured on."""
    result = {
        "benchmark": f"detection/{name}",
        "command": command,
        "seconds": round(seconds, 1),
        "machine": describe(*PACKAGES),
        "title": section.title,
        "figures": section.figures,
        "table": list(table(section)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def progress(text: str) -> None:
    """Say how far it is, on one line of stderr."""
    print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)


class Delay(NamedTuple):
    """How long it took over several runs: median and p90, and in how many it never came.

    A quantile that falls among the runs that never ended is infinite.
    """

    median: float
    p90: float
    missed: int
    runs: int

    @classmethod
    def of(cls, found: "Iterable[float] | NDArray[np.float64]") -> "Delay":
        """From delays of single runs, infinite where nothing was found."""
        delays = np.sort(np.array(list(found), np.float64))
        missed = int(np.isinf(delays).sum())
        # Of the two runs about a quantile the later one: no mean of something and never.
        median, p90 = (float(np.quantile(delays, q, method="higher")) for q in (0.5, 0.9))
        return cls(median, p90, missed, len(delays))

    def __str__(self) -> str:
        told = " / ".join("never" if math.isinf(q) else f"{q:.0f}" for q in self[:2])
        return f"{told}, missed {self.missed} of {self.runs}" if self.missed else told

    def plain(self) -> dict[str, float | int | None]:
        """JSON has no infinity: null is never."""
        return {
            "median": None if math.isinf(self.median) else self.median,
            "p90": None if math.isinf(self.p90) else self.p90,
            "missed": self.missed,
            "runs": self.runs,
        }
