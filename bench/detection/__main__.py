"""Runs the sections asked for; see the package.

python -m bench.detection [--quick] [--only SECTION,...] [--results FOLDER]
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

from bench import report

# The name on the command line, and the module that holds `settings` and `run`.
SECTIONS: Final[Mapping[str, str]] = {
    "false-pages": "false_pages",
    "delay": "delay",
    "rivals": "compared",
    "canary": "canary",
    "traffic": "traffic",
    "trigger": "trigger",
    "contrast": "contrast",
    "merge": "merge",
}
PACKAGES: Final = ("numpy", "scipy", "river", "torch", "transformers")
MODEL: Final = ("canary", "traffic", "trigger")  # what `--only model` stands for


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write; 1 when a comparison is void."""
    options = _options(arguments)
    # Before torch is loaded: matrices are small, and threads that wait for each other cost more
    # than they bring where others are at work too.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    is_void = False
    for name in options.only:
        module = importlib.import_module(f"bench.detection.{SECTIONS[name]}")
        section = _run(name, module, options)
        is_void |= bool(section.figures.get("void"))
    return int(is_void)


def _run(name: str, module: ModuleType, options: argparse.Namespace) -> report.Section:
    started = time.monotonic()
    section: report.Section = module.run(module.settings(is_quick=options.quick))
    seconds = time.monotonic() - started
    report.progress("")
    print("\n".join(report.table(section)))
    print(f"\n{seconds:.0f} s\n", flush=True)
    command = f"python -m bench.detection --only {name}" + " --quick" * options.quick
    if options.results:
        run = report.Run(f"detection/{name}", command, seconds)
        report.write(options.results / f"detection_{name}.json", run, section, PACKAGES)
    return section


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.detection", description="Evidence for drift detection."
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: minutes, not an hour")
    parser.add_argument(
        "--only", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}; model for three"
    )
    parser.add_argument(
        "--results", type=Path, help="folder for JSON; bench/results for a full run"
    )
    options = parser.parse_args(arguments)
    options.only = _sections(parser, options.only)
    if options.results is None and not options.quick:
        options.results = report.RESULTS
    return options


def _sections(parser: argparse.ArgumentParser, text: str) -> list[str]:
    asked = [part for name in text.split(",") for part in (MODEL if name == "model" else (name,))]
    for name in asked:
        if name not in SECTIONS:
            parser.error(f"no section {name!r}: use some of {', '.join(SECTIONS)}")
    return asked


if __name__ == "__main__":
    sys.exit(main())
