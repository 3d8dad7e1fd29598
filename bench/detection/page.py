"""Puts the tables of stored results into docs/detection.md, between the marks that name them.

    python -m bench.detection.page

Every figure of a table is then one of a run, with the command that made it above it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench.report import RESULTS

PAGE: Final = Path(__file__).parents[2] / "docs" / "detection.md"
_PLACE: Final = re.compile(r"<!-- (?P<name>[a-z-]+) -->\n.*?<!-- end -->", re.DOTALL)


def main() -> None:
    """Write the page anew."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), stored(RESULTS)), encoding="utf-8")


def stored(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Results of sections, by name."""
    files = sorted(folder.glob("detection_*.json"))
    return {
        path.stem.removeprefix("detection_"): json.loads(path.read_text(encoding="utf-8"))
        for path in files
    }


def filled(page: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """`page` with the table of each section between its marks; one without a result says so."""
    return _PLACE.sub(lambda found: _section(found["name"], results.get(found["name"])), page)


def _section(name: str, result: Mapping[str, Any] | None) -> str:
    if result is None:
        missing = f"Not measured yet: `python -m bench.detection --only {name}` would."
        return f"<!-- {name} -->\n{missing}\n<!-- end -->"
    machine = result["machine"]
    made = f"`{result['command']}`, {result['seconds']:.0f} s, {machine['cpu']}"
    lines = [line for line in result["table"] if not line.startswith("### ")]
    title = str(result["table"][0])
    body = "\n".join(_spaced(lines)).strip()
    return f"<!-- {name} -->\n{title}\n\n{made}.\n\n{body}\n<!-- end -->"


def _spaced(lines: list[str]) -> list[str]:
    """Notes as items of a list, or Markdown would run them together."""
    return [f"- {line}" if line and not line.startswith("|") else line for line in lines]


if __name__ == "__main__":
    main()
