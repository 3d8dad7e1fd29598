"""docs/reliability.md: what holds while things break, from the files of the programs that measured.

    python -m bench.reliability            # write the page anew from bench/results

`bench.chaos` and other programs `write` one section each; whatever stands in `bench/results` and is
a section of reliability is on the page, in the order of `ORDER`, others after them by name. The
page holds no figure that is not in one of the files.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from bench.machine import describe
from bench.report import Section, table

RESULTS: Final = Path(__file__).parent / "results"
PAGE: Final = Path(__file__).parents[1] / "docs" / "reliability.md"
ORDER: Final = ("chaos", "soak", "fuzz", "ending")
_KIND: Final = "reliability/"
_PACKAGES: Final = ("pyzmq", "msgspec", "numpy", "uvicorn", "fastapi")
_HEAD: Final = """\
# Reliability

What the sidecar does while something breaks, measured on real processes: `sidecar serve` as it is
deployed, and senders that are the tap's own. The figures were taken by the programs named with
them; this page is generated from their files in [bench/results](../bench/results) by
`python -m bench.reliability`. CI runs the same code at a smaller size.
"""


def write(
    name: str, section: Section, command: str, seconds: float, folder: Path = RESULTS
) -> Path:
    """Keep a section as `folder/<name>.json`, with what it was measured on; the file.

    name: one word, such as `soak`. section.figures: everything that a reader may want beside the
    table, JSON-able. command: what measured it. seconds: for how long it ran.
    """
    result = {
        "benchmark": f"{_KIND}{name}",
        "command": command,
        "seconds": round(seconds, 1),
        "machine": describe(*_PACKAGES),
        "title": section.title,
        "columns": list(section.columns),
        "rows": [list(row) for row in section.rows],
        "notes": list(section.notes),
        "figures": section.figures,
    }
    path = folder / f"{name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def page(folder: Path = RESULTS) -> str:
    """The page of all sections in `folder`."""
    return "\n".join([_HEAD, *(line for each in _results(folder) for line in _section(each))])


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def _results(folder: Path) -> list[Mapping[str, Any]]:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    return sorted((each for each in found if _is_ours(each)), key=_place)


def _is_ours(result: Mapping[str, Any]) -> bool:
    return str(result.get("benchmark", "")).startswith(_KIND)


def _place(result: Mapping[str, Any]) -> tuple[int, str]:
    name = result["benchmark"].removeprefix(_KIND)
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def _section(result: Mapping[str, Any]) -> Iterator[str]:
    machine = result["machine"]
    yield from _heading(table(Section(*(result[each] for each in Section._fields))))
    yield ""
    yield (
        f"`{result['command']}`, {result['seconds']:.0f} s on {machine['num_cores']} cores of an "
        f"{machine['cpu']}, Python {machine['python']}."
    )
    yield ""


def _heading(lines: Iterator[str]) -> Iterator[str]:
    """The first line is a heading of the page, one level up from where a table stands alone."""
    yield next(lines).removeprefix("#")
    yield from lines


if __name__ == "__main__":
    main()
