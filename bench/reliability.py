"""docs/reliability.md: what holds while things break, from the files of the programs that measured.

    python -m bench.reliability            # write the page anew from bench/results

`bench.chaos` and other programs `write` one section each; whatever stands in `bench/results` and is
a section of reliability is on the page, in the order of `PLANNED`, others after them by name. The
page holds no figure that is not in one of the files, and says of what is missing how to measure it.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from bench import report
from bench.report import RESULTS, Section

PAGE: Final = Path(__file__).parents[1] / "docs" / "reliability.md"
# By name: the title where nothing was measured yet, and the command that would.
PLANNED: Final[Mapping[str, tuple[str, str]]] = {
    "chaos": ("Things break", "python -m bench.chaos"),
    "soak": ("Soak", "python -m bench.soak"),
    "fuzz": ("Fuzzing", "python -m bench.fuzz --seconds 600"),
    "ending": ("Told to end under load", "python -m bench.ending"),
}
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
    path = folder / f"{name}.json"
    report.write(path, report.Run(f"{_KIND}{name}", command, seconds), section, _PACKAGES)
    return path


def page(folder: Path = RESULTS) -> str:
    """The page of all sections in `folder`."""
    results = _results(folder)
    names = [*PLANNED, *sorted(results.keys() - PLANNED.keys())]
    lines = [line for name in names for line in _section(name, results.get(name))]
    return "\n".join([_HEAD, *lines])


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def _results(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Sections of reliability by name."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    kinds = [(str(each.get("benchmark", "")), each) for each in found]
    return {kind.removeprefix(_KIND): each for kind, each in kinds if kind.startswith(_KIND)}


def _section(name: str, result: Mapping[str, Any] | None) -> Iterator[str]:
    if result is None:
        title, command = PLANNED[name]
        yield from (f"## {title}", "", f"Not measured yet: `{command}` would.", "")
        return
    machine = result["machine"]
    heading, *lines = result["table"]
    # One level up from where the table stands alone.
    yield from (heading.removeprefix("#"), *lines, "")
    yield (
        f"`{result['command']}`, {result['seconds']:.0f} s on {machine['num_cores']} cores of an "
        f"{machine['cpu']}, Python {machine['python']}."
    )
    yield ""


if __name__ == "__main__":
    main()
