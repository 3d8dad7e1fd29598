"""`sidecar scan`: which requests were scanned, and one of them as a table: a line per token row."""

import argparse
import csv
import sys
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

from sidecar.commands import asking
from sidecar.wire.scan import CONFIDENCE
from sidecar.wire.signals import LAYER_SIGNALS

HELP: Final = "list scanned requests, or print one: a line per token row, a column per layer"
_SIGNALS: Final = tuple(signal.id for signal in LAYER_SIGNALS)
_TOKEN_SIGNALS: Final = tuple(signal.id for signal in CONFIDENCE)
_MAX_LAYERS: Final = 10  # of a table; CSV has all
_BESIDE: Final = ("entropy", "surprisal")  # of a table, likewise


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("id", nargs="?", help="engine id or client id; none lists what there is")
    parser.add_argument("--signal", choices=_SIGNALS, default=_SIGNALS[0])
    parser.add_argument("--source", help="of several sources that tell of it, this one")
    parser.add_argument("--csv", action="store_true", help="every layer and every column, as CSV")
    asking.add(parser)


def run(parsed: argparse.Namespace) -> int:
    """Ask the API, and print."""
    if parsed.id is None:
        _list(asking.get(parsed, "/v1/scans"))
        return 0
    params = {"source": parsed.source} if parsed.source else {}
    scan = asking.get(parsed, f"/v1/requests/{quote(parsed.id)}/scan", params)
    if parsed.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows(_rows(scan, parsed.signal, range(len(scan["layers"])), _TOKEN_SIGNALS))
    else:
        _print(scan, parsed.signal)
    return 0


def _list(told: dict[str, Any]) -> None:
    for scan in told["scans"]:
        state = "complete" if scan["is_complete"] else "runs"
        left_out = f", {scan['num_rows_left_out']} left out" if scan["num_rows_left_out"] else ""
        print(f"{scan['id']}  {scan['source']}  {scan['num_columns']} rows{left_out}  {state}")
    if told["wish_problem"]:
        print(f"what was asked for is not obeyed: {told['wish_problem']}")
    elif not told["scans"]:
        print("no request was scanned; ask for one with `sidecar control --scan 1`, then send it")


def _print(scan: dict[str, Any], signal: str) -> None:
    places = _evenly(len(scan["layers"]))
    for row in _rows(scan, signal, places, _BESIDE):
        print("  ".join(f"{_short(cell):>9}" for cell in row))
    notes = [f"{signal} of {len(places)} of {len(scan['layers'])} layers"]
    if scan["num_rows_left_out"]:
        notes.append(f"{scan['num_rows_left_out']} of {scan['num_rows']} rows left out")
    if not scan["is_complete"]:
        notes.append("the request runs")
    notes += [f"--source {other['source']} tells of it too" for other in scan["others"]]
    print("; ".join(notes))


def _rows(
    scan: dict[str, Any], signal: str, places: range | list[int], beside: tuple[str, ...]
) -> Iterator[list[Any]]:
    """The heading, then a line for each column of the picture."""
    confidence = scan["confidence"] or {}
    beside = tuple(name for name in beside if name in confidence)
    yield ["position", "phase", *(f"l{scan['layers'][at]}" for at in places), *beside]
    values = scan["signals"][signal]["values"]
    for k, (position, phase) in enumerate(zip(scan["positions"], scan["phases"], strict=True)):
        of_token = [confidence[name]["values"][k] for name in beside]
        yield [position, phase, *(values[k][at] for at in places), *of_token]


def _evenly(num_layers: int) -> list[int]:
    if num_layers <= _MAX_LAYERS:
        return list(range(num_layers))
    return [round(k * (num_layers - 1) / (_MAX_LAYERS - 1)) for k in range(_MAX_LAYERS)]


def _short(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
