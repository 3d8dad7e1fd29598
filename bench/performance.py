"""docs/performance.md and docs/scale.md, from the files of the benches: no figure is typed by hand.

    python -m bench.performance            # write both pages anew from bench/results

What was not measured yet is said, with the command that would.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench import scale, targets
from bench.overhead_table import table
from bench.ratios import MISSED
from bench.report import RESULTS

DOCS: Final = Path(__file__).parents[1] / "docs"
Result = Mapping[str, Any]
_HEAD: Final = """\
# What it costs, and what it takes

Measured, not promised. Each table below is of a file in [bench/results](../bench/results), names
the command that made it and the machine it ran on, and is put here by `make performance`; run the
command on yours.

- Ratios are of arms that took turns in one run: a noisy machine hits all alike. Intervals are 95 %
  bootstraps over the turns. One that is wider than a target's margin is *unresolved*, never met;
  one that lies wholly beyond the limit is a miss.
- The first table has every target: of ratios the worst workload and batch. What was not measured
  is not met.
- The reference is what anybody would run: compiled, no eager mode. Observing a model is often
  compared with an eager baseline; the arms `eager-off` and `hooks` show what that hides.
- A run in which the tap shed, lost or left out anything is void, and prints no figure.
- CPU seconds are a process's own. `load` is the machine's, of five minutes: above its number of
  cores others were at work, and wall times and rates are worse than they need be.
"""


class _Place(NamedTuple):
    """One file of results: its name, what it is about, and the command that makes it."""

    name: str
    title: str
    command: str


def _overhead(name: str, title: str, shape: str, arms: str) -> _Place:
    command = f"python -m bench.overhead --shape {shape} --arms {arms}"
    return _Place(name, title, f"{command} --json bench/results/{name}.json")


_ALL: Final = "off,again,on,everything,eager-off,eager-on,hooks"
_FIVE: Final = "off,on,everything,eager-off,hooks"  # fit into 24 GiB
_AGAIN: Final = "off,again,on"
PLACES: Final = (
    _overhead("overhead_cpu", "Tokens, on a CPU: the shape of a 0.5B model", "0.5b", _AGAIN),
    _Place(
        "profiled_cpu",
        "Where a step's time goes, on a CPU",
        "python -m bench.profiled --json bench/results/profiled_cpu.json",
    ),
    _Place(
        "parts_cpu",
        "What each part costs, on a CPU",
        "python -m bench.parts --json bench/results/parts_cpu.json",
    ),
    _overhead("overhead_arms_cpu", "Everything measured, eager mode and hooks", "0.5b", _FIVE),
    _overhead("overhead_quick_cpu", "Tokens, on a CPU: a tiny shape", "quick", _FIVE),
    _overhead("overhead_gpu_0.6b", "Tokens, on a GPU: 0.6B", "0.6b", _ALL),
    _overhead("overhead_gpu_8b", "Tokens, on a GPU: 8B", "8b", _AGAIN),
    _overhead("overhead_gpu_70b", "Tokens, on a GPU: 80 layers", "70b-layers", _AGAIN),
    *(
        _Place(f"capacity_{name}", title, f"python -m bench.capacity --only {name}")
        for name, title in (
            ("ingest", "Frames"),
            ("sender", "Sends"),
            ("memory", "Memory"),
            ("growth", "Growth"),
        )
    ),
    _Place("scrape_cpu", "Scrapes", "python -m bench.scrape --json bench/results/scrape_cpu.json"),
    _Place("ratios", "Watched in CI", "python -m bench.watched --json bench/results/ratios.json"),
)


def main() -> None:
    """Write the pages anew."""
    results = stored(RESULTS)
    (DOCS / "performance.md").write_text(page(results), encoding="utf-8")
    (DOCS / "scale.md").write_text(scale.page(results), encoding="utf-8")


def stored(folder: Path) -> dict[str, Result]:
    """Results by the name of their file."""
    paths = sorted(folder.glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def page(results: Mapping[str, Result]) -> str:
    """docs/performance.md."""
    lines = [_HEAD, *_targets(results)]
    for place in PLACES:
        lines += ["", f"## {place.title}", ""]
        lines += _section(place, results.get(place.name))
    return "\n".join(lines) + "\n"


def _targets(results: Mapping[str, Result]) -> Iterator[str]:
    yield "| target | limit | found | |"
    yield "|---|---:|---:|---|"
    for each in targets.told(results):
        verdict = "**missed**" if each.verdict == MISSED else each.verdict
        yield f"| {each.what} | {each.limit} | {each.found} | {verdict} |"


def _section(place: _Place, result: Result | None) -> Iterator[str]:
    if result is None:
        yield f"Not measured yet: `{place.command}` would."
        return
    yield f"{_made(place, result)}."
    yield ""
    if place.name.startswith("overhead"):
        yield from _spaced(list(table(result)))
    elif place.name == "scrape_cpu":
        yield from _scrapes(result)
    else:
        yield from _spaced([line for line in result["table"] if not line.startswith("### ")])


def _made(place: _Place, result: Result) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    told = [f"{machine['num_cores']} cores of an {machine['cpu']}", versions]
    told += [f"load {result['load_average']}"] if "load_average" in result else []
    told += [f"{result['seconds']:.0f} s"] if "seconds" in result else []
    told += [f"seed {result['seed']}"] if "seed" in result else []
    return f"`{result.get('command', place.command)}`: {'; '.join([*told, machine['revision']])}"


def _scrapes(result: Result) -> Iterator[str]:
    yield "| model | series | CPU, ms | compressing, ms | the stock client, ms |"
    yield "|---|---:|---:|---:|---:|"
    for each in result["rows"]:
        costs = f"{each['ours_ms']:.1f} | {each['gzip_ms']:.1f} | {each['stock_ms']:.1f}"
        yield f"| {each['model']} | {each['series']:,} | {costs} |"
    health = result["health"]
    yield ""
    yield (
        f"- /healthz of a real sidecar that is scraped without a pause, {health['num_series']:,} "
        f"series: p50 {health['p50_ms']:.1f} ms, p99 {health['p99_ms']:.1f} ms; a scrape took "
        f"{health['scrape_cpu_ms']:.0f} ms of its CPU."
    )


def _spaced(lines: list[str]) -> list[str]:
    """Notes as items of a list, or Markdown would run them together."""
    found = [f"- {line}" if line and not line.startswith("|") else line for line in lines]
    return found[1:] if found and not found[0] else found


if __name__ == "__main__":
    main()
