"""`sidecar canary`: look at the known-safe tasks, and replay them once."""

import argparse
import os
from pathlib import Path
from typing import Final

from sidecar.commands.command import needs
from sidecar.config import PREFIX, ExporterConfig
from sidecar.publish.canary.suite import Suite, read_suite

HELP: Final = "known-safe tasks: check a suite, or replay it once against the served model"
_FAILED: Final = 1


def add(parser: argparse.ArgumentParser) -> None:
    """Declare `suite` and `once`."""
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    suite = tasks.add_parser("suite", help="check a suite of prompts, and show it")
    once = tasks.add_parser(
        "once", help=f"replay the suite once against {PREFIX}CANARY_URL, and say what came of it"
    )
    for each in (suite, once):
        each.add_argument(
            "file",
            nargs="?",
            type=Path,
            help=f"JSONL file; {PREFIX}CANARY_SUITE by default, else the bundled suite",
        )


def run(parsed: argparse.Namespace) -> int:
    """Do one of both; 1 when a replayed round was not complete."""
    config = ExporterConfig.read(os.environ)
    suite = read_suite(parsed.file or config.canary_suite)
    return _show(suite) if parsed.task == "suite" else _once(config, suite)


def _show(suite: Suite) -> int:
    print(f"{'id':24} {'route':10} {'length':7} {'chars':>6}  tags")
    for prompt in suite.prompts:
        tags = ", ".join(prompt.tags)
        size = len(prompt.prompt)
        print(f"{prompt.id:24} {prompt.route:10} {prompt.length:7} {size:6}  {tags}")
    routes = sorted({prompt.route for prompt in suite.prompts})
    print(
        f"{len(suite.prompts)} prompts of {len(routes)} routes ({', '.join(routes)}); "
        f"digest {suite.digest[:16]}"
    )
    return 0


def _once(config: ExporterConfig, suite: Suite) -> int:
    with needs("exporter", "sending canaries"):
        from sidecar.publish.canary.runner import create_runner
    outcome = create_runner(config, suite).run_round()
    print(
        f"{outcome.name}: {outcome.num_answered} of {outcome.num_asked} prompts answered"
        + (f"; {outcome.detail}" if outcome.detail else "")
    )
    return 0 if outcome.name == "complete" else _FAILED
