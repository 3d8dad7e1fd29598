"""Runs the sections asked for; see the package."""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench import report

SECTIONS: Final = ("ingest", "sender", "memory", "growth")
PACKAGES: Final = ("numpy", "msgspec", "pyzmq", "uvicorn")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.capacity", description="What one sidecar takes and costs."
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: under three minutes")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    parser.add_argument(
        "--results", type=Path, help="folder for JSON; bench/results for a full run"
    )
    options = parser.parse_args(arguments)
    if options.results is None and not options.quick:
        options.results = report.RESULTS
    for name in options.only.split(","):
        if name not in SECTIONS:
            parser.error(f"no section {name!r}: use some of {', '.join(SECTIONS)}")
        _run(name, options)


def _run(name: str, options: argparse.Namespace) -> None:
    module = importlib.import_module(f"bench.capacity.{name}")
    started = time.monotonic()
    section: report.Section = module.run(module.settings(is_quick=options.quick))
    seconds = time.monotonic() - started
    report.progress("")
    print("\n".join(report.table(section)))
    print(f"\n{seconds:.0f} s\n", flush=True)
    if options.results:
        command = f"python -m bench.capacity --only {name}" + " --quick" * options.quick
        run = report.Run(f"capacity/{name}", command, seconds)
        report.write(options.results / f"capacity_{name}.json", run, section, PACKAGES)


if __name__ == "__main__":
    sys.exit(main())
