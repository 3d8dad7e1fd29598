"""Fuzz every door: `python -m bench.fuzz [--seconds 600] [--seed N] [--door NAME]`.

The time is shared out evenly. Writes bench/results/fuzz.json, of which docs/reliability.md is made,
unless one door alone is tried. What breaks a door is kept in tests/bench/crashers, where the tests
try it again; then it ends with 1.
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench import reliability
from bench.fuzz import api
from bench.fuzz.campaign import Tally, campaign
from bench.fuzz.doors import Door, doors, slug
from bench.report import Section, progress, table

CRASHERS: Final = Path(__file__).parents[2] / "tests" / "bench" / "crashers"
SECONDS: Final = 600.0
_REFUSALS_TOLD: Final = 4


def main() -> int:
    """Try, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--door", default="")
    parsed = parser.parse_args()
    began = time.monotonic()
    tallies = _all(parsed.seconds, parsed.seed, parsed.door)
    progress("")
    found = section(tallies)
    print("\n".join(table(found)))
    if not parsed.door:
        seeded = f" --seed {parsed.seed}" if parsed.seed else ""
        command = f"python -m bench.fuzz --seconds {parsed.seconds:g}{seeded}"
        reliability.write("fuzz", found, command, time.monotonic() - began)
        reliability.main()
    return int(any(each.broken for each in tallies))


def _all(seconds: float, seed: int, name: str) -> list[Tally]:
    chosen = [door for door in doors() if name in ("", door.name)]
    with_api = name in ("", api.NAME)
    share = seconds / max(1, len(chosen) + with_api)
    tallies = []
    for door in chosen:
        progress(f"{door.name} for {share:.0f} s")
        tallies.append(campaign(door, share, first_seed=seed))
        _keep(door, tallies[-1])
    if with_api:
        progress(f"{api.NAME} for {share:.0f} s")
        tallies.append(api.campaign(share, seed))
        _keep(None, tallies[-1])
    return tallies


def _keep(door: Door | None, tally: Tally) -> None:
    if tally.broken is None:
        return
    print(f"\n{tally.door} broke: {tally.broken.error}", file=sys.stderr)
    if door is not None:
        name = hashlib.sha256(tally.broken.data).hexdigest()[:12]
        path = CRASHERS / slug(door) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tally.broken.data)
        print(f"kept as {path}", file=sys.stderr)


def section(tallies: Sequence[Tally]) -> Section:
    """One row for each door."""
    rows = [
        (
            each.door,
            f"{each.num_inputs:,}",
            _words(each),
            "no" if each.broken is None else "yes",
        )
        for each in tallies
    ]
    total = sum(each.num_inputs for each in tallies)
    return Section(
        f"Fuzzing: {total:,} inputs",
        ("door", "inputs", "what became of them", "broke"),
        rows,
        {"doors": [_figures(each) for each in tallies]},
        _notes(),
    )


def _words(tally: Tally) -> str:
    most = sorted(tally.outcomes.items(), key=lambda each: -each[1])
    told = [f"{what} {num:,}" for what, num in most[:_REFUSALS_TOLD]]
    rest = sum(num for _, num in most[_REFUSALS_TOLD:])
    return ", ".join([*told, *([f"others {rest:,}"] if rest else [])])


def _figures(tally: Tally) -> dict[str, object]:
    broken = None if tally.broken is None else tally.broken.error
    return {**tally._asdict(), "broken": broken}


def _notes() -> Sequence[str]:
    drawn = (
        "Inputs are drawn by hypothesis, those of the API by schemathesis: any bytes, right ones "
        "with some changed, right ones with a part replaced by nonsense under a true checksum, and "
        "nesting deeper than any stack. An input is refused in words or taken; what is taken is "
        "used: a frame is folded, a baseline judges a window, a snapshot is restored and kept "
        "again, a log goes on. Anything else breaks the door."
    )
    kept = (
        "What ever broke one is kept in tests/bench/crashers and tried again by each test run, "
        "beside new inputs of every kind."
    )
    return drawn, kept


if __name__ == "__main__":
    sys.exit(main())
