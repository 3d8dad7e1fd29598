"""The command `sidecar`: one word per task, put together from `sidecar.commands`.

Guarantees: an error of the operator's is one line on stderr and exit status 2; `metrics` and
`version` need the base dependencies only; nothing here ever loads torch.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from sidecar.commands import (
    audit,
    baseline,
    browser,
    canary,
    control,
    demo,
    doctor,
    fleet,
    health,
    keep,
    lay_tap,
    metrics,
    replay,
    scan,
    serve,
    top,
    version,
)
from sidecar.commands.command import Command
from sidecar.errors import SidecarError

_FAILED: Final = 2
COMMANDS: Final[Mapping[str, Command]] = MappingProxyType(
    {
        "serve": serve,
        "top": top,
        "baseline": baseline,
        "replay": replay,
        "fleet": fleet,
        "keep": keep,
        "lay-tap": lay_tap,
        "control": control,
        "scan": scan,
        "canary": canary,
        "audit": audit,
        "open": browser,
        "doctor": doctor,
        "health": health,
        "metrics": metrics,
        "version": version,
        "demo": demo,
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["demo"]:  # it parses what follows itself
            return demo.launch(arguments[1:])
        parsed = _parser().parse_args(arguments)
        return COMMANDS[parsed.command].run(parsed)
    except SidecarError as error:
        print(f"sidecar: {error}", file=sys.stderr)
        return _FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sidecar", description="Model-internal telemetry for LLM serving."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add(commands.add_parser(name, help=command.HELP))
    return parser
