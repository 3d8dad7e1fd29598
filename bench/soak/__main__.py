"""Soak the sidecar: `python -m bench.soak [--frames N] [--quick]`, half an hour on two busy cores.

Writes bench/results/soak.json, which docs/reliability.md is made of; `--quick` writes nothing.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from bench import reliability
from bench.ratios import MISSED
from bench.report import progress, table
from bench.soak.report import grown, section, verdict
from bench.soak.soak import Size, soak

QUICK: Final = Size(num_frames=8_000, num_samples=100)


def main() -> int:
    """Run, print, keep; 1 when a frame is unaccounted for, or memory grows beyond the limit.

    A quick run says nothing of growth: its stores are not full yet.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=Size().num_frames)
    parser.add_argument("--quick", action="store_true", help="8,000 frames, and no file")
    parsed = parser.parse_args()
    size = QUICK if parsed.quick else Size(parsed.frames)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        found = soak(size, Path(folder), progress)
    progress("")
    told = section(found)
    print("\n".join(table(told)))
    if not parsed.quick:
        given = "" if parsed.frames == Size().num_frames else f" --frames {parsed.frames}"
        command = f"python -m bench.soak{given}"
        reliability.write("soak", told, command, time.monotonic() - began)
        reliability.main()
    is_missed = not parsed.quick and verdict(grown(found)) == MISSED
    return int(is_missed or any(each.unaccounted for each in found.accounts))


if __name__ == "__main__":
    sys.exit(main())
