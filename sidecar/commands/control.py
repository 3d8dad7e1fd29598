"""`sidecar control`: steer the tap of a running engine.

Guarantee: with `SIDECAR_STATE_DIR` set, nothing is changed that is not in the audit log there.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from sidecar.config import PREFIX, TapConfig
from sidecar.store import audit
from sidecar.store.audit import AuditLog
from sidecar.wire import control

HELP: Final = "steer the tap of a running engine"
_COUNTS: Final = {
    "steps_every": "measure one step in N at all",
    "attention_every": "sample each attention layer once in N steps; 0 for never",
    "attention_requests": "sample N requests in a step at most",
    "confidence_every": "measure generated tokens every N steps; 0 for never",
}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the wishes."""
    switch = parser.add_mutually_exclusive_group()
    switch.add_argument("--off", dest="is_on", action="store_false", help="measure nothing")
    switch.add_argument("--on", dest="is_on", action="store_true", help="measure again")
    parser.set_defaults(is_on=None)
    parser.add_argument("--layers", metavar="0,5,11|all", help="add up these layers alone")
    for key, text in _COUNTS.items():
        note = f"{text}; null: as configured"
        parser.add_argument(f"--{key.replace('_', '-')}", metavar="N", help=note)
    parser.add_argument(
        "--scan", metavar="N", help="scan the next N requests, row by row; 0 for no more"
    )
    parser.add_argument("--clear", action="store_true", help="forget all earlier wishes")
    parser.add_argument("--show", action="store_true", help="print what is asked; the default")
    parser.add_argument("--file", type=Path, help=f"wins over {PREFIX}CONTROL_FILE")
    parser.add_argument(
        "--state-dir", type=Path, help=f"wins over {PREFIX}STATE_DIR; where the audit log is"
    )


def run(parsed: argparse.Namespace) -> int:
    """Write the wishes that were given, and print all that are in force."""
    path = parsed.file or TapConfig.read(os.environ).control_path
    changes = _changes(parsed)
    if changes:
        before = None if parsed.clear else control.read(path)
        asked = control.change(before, changes)
        _note(parsed, "control.write", path, {"wishes": msgspec.to_builtins(asked)})
        control.write(path, asked)
    elif parsed.clear:
        _note(parsed, "control.clear", path, {})
        control.remove(path)
    in_force = control.read(path)
    if in_force is None:
        print(f"{path}: no control; the configuration is in force")
    else:
        print(f"{path}: revision {in_force.revision}\n{control.encode(in_force).decode()}", end="")
    return 0


def _note(parsed: argparse.Namespace, action: str, path: Path, detail: dict[str, Any]) -> None:
    """Write down what is about to be done. Raises StoreError, and then it must not be done."""
    given = os.environ.get(f"{PREFIX}STATE_DIR")
    folder = parsed.state_dir or (Path(given) if given else None)
    if folder is not None:
        told = {"file": str(path), **detail}
        AuditLog(folder / audit.NAME).append(time.time_ns(), f"uid {os.getuid()}", action, told)


def _changes(parsed: argparse.Namespace) -> dict[str, Any]:
    """Fields of the control that were given, as typed."""
    given = {key: getattr(parsed, key) for key in ("is_on", *_COUNTS)}
    changes = {key: value for key, value in given.items() if value is not None}
    if parsed.layers is not None:
        changes["layers"] = None if parsed.layers == "all" else parsed.layers.split(",")
    if parsed.scan is not None:
        changes |= control.scan_wish(parsed.scan)
    return changes
