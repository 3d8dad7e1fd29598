"""The command `sidecar`: one word per task.

Guarantees: an error of the operator's is one line on stderr and exit status 2; `metrics` and
`version` need the base dependencies only; nothing here ever loads torch.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import sidecar
from sidecar.config import PREFIX, ExporterConfig, TapConfig
from sidecar.errors import ConfigError, SidecarError
from sidecar.wire import control
from sidecar.wire.frame import SCHEMA

_FAILED: Final = 2
_COUNTS: Final = {
    "steps_every": "measure one step in N at all",
    "attention_every": "sample each attention layer once in N steps; 0 for never",
    "attention_requests": "sample N requests in a step at most",
    "confidence_every": "measure generated tokens every N steps; 0 for never",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["demo"]:  # it parses what follows itself
            return _demo(arguments[1:])
        parsed = _parser().parse_args(arguments)
        return _COMMANDS[parsed.command](parsed)
    except SidecarError as error:
        print(f"sidecar: {error}", file=sys.stderr)
        return _FAILED


def exporter_config(parsed: argparse.Namespace, environ: Mapping[str, str]) -> ExporterConfig:
    """Settings of the exporter: options win over `environ`."""
    given = {key: getattr(parsed, key, None) for key in ExporterConfig.model_fields}
    options = {f"{PREFIX}{key.upper()}": value for key, value in given.items() if value is not None}
    return ExporterConfig.read({**environ, **options})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sidecar", description="Model-internal telemetry for LLM serving."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="collect from taps; serve /metrics, health, the API")
    for key, field in ExporterConfig.model_fields.items():
        default = str(field.get_default(call_default_factory=True)).replace("%", "%%")
        serve.add_argument(
            f"--{key.replace('_', '-')}",
            metavar="VALUE",
            help=f"wins over {PREFIX}{key.upper()}; default {default}",
        )
    _add_control(commands.add_parser("control", help="steer the tap of a running engine"))
    commands.add_parser("metrics", help="print the reference of all metrics, in Markdown")
    commands.add_parser("version", help="print the version")
    commands.add_parser("demo", help="run a tiny tapped model beside a sidecar", add_help=False)
    return parser


def _add_control(parser: argparse.ArgumentParser) -> None:
    switch = parser.add_mutually_exclusive_group()
    switch.add_argument("--off", dest="is_on", action="store_false", help="measure nothing")
    switch.add_argument("--on", dest="is_on", action="store_true", help="measure again")
    parser.set_defaults(is_on=None)
    parser.add_argument("--layers", metavar="0,5,11|all", help="add up these layers alone")
    for key, text in _COUNTS.items():
        note = f"{text}; null: as configured"
        parser.add_argument(f"--{key.replace('_', '-')}", metavar="N", help=note)
    parser.add_argument("--clear", action="store_true", help="forget all earlier wishes")
    parser.add_argument("--show", action="store_true", help="print what is asked; the default")
    parser.add_argument("--file", type=Path, help=f"wins over {PREFIX}CONTROL_FILE")


def _control(parsed: argparse.Namespace) -> int:
    path = parsed.file or TapConfig.read(os.environ).control_path
    changes = _changes(parsed)
    if changes:
        before = None if parsed.clear else control.read(path)
        control.write(path, control.change(before, changes))
    elif parsed.clear:
        control.remove(path)
    asked = control.read(path)
    if asked is None:
        print(f"{path}: no control; the configuration is in force")
    else:
        print(f"{path}: revision {asked.revision}\n{control.encode(asked).decode()}", end="")
    return 0


def _changes(parsed: argparse.Namespace) -> dict[str, Any]:
    """Fields of the control that were given, as typed."""
    given = {key: getattr(parsed, key) for key in ("is_on", *_COUNTS)}
    changes = {key: value for key, value in given.items() if value is not None}
    if parsed.layers is not None:
        changes["layers"] = None if parsed.layers == "all" else parsed.layers.split(",")
    return changes


def _serve(parsed: argparse.Namespace) -> int:
    config = exporter_config(parsed, os.environ)
    try:
        from sidecar.publish.server import serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error}: serving needs more packages; pip install 'llm-internals-sidecar[exporter]'"
        ) from error
    return serve(config)


def _metrics(_: argparse.Namespace) -> int:
    from sidecar.publish.reference import reference

    print(reference(), end="")
    return 0


def _version(_: argparse.Namespace) -> int:
    print(f"sidecar {sidecar.__version__} (wire schema {SCHEMA})")
    return 0


def _demo(argv: list[str]) -> int:
    from sidecar.demo.launcher import main as launch

    return launch(argv)


_COMMANDS: Final = {
    "serve": _serve,
    "control": _control,
    "metrics": _metrics,
    "version": _version,
}
