"""The command `sidecar`: one word per task.

Guarantees: an error of the operator's is one line on stderr and exit status 2; `metrics` and
`version` need the base dependencies only; nothing here ever loads torch.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import sidecar
from sidecar.config import PREFIX, ExporterConfig
from sidecar.errors import ConfigError, SidecarError
from sidecar.wire.frame import SCHEMA

_FAILED: Final = 2


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
    commands.add_parser("metrics", help="print the reference of all metrics, in Markdown")
    commands.add_parser("version", help="print the version")
    commands.add_parser("demo", help="run a tiny tapped model beside a sidecar", add_help=False)
    return parser


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


_COMMANDS: Final = {"serve": _serve, "metrics": _metrics, "version": _version}
