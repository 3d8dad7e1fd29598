"""`sidecar demo`: the main job, from one command.

Guarantee: nothing is started on a machine that lacks something (each lack is one line on stderr
with its remedy, exit status 2), and this process loads neither torch nor vLLM.
"""

import sys
from collections.abc import Sequence

from sidecar.demo import preflight
from sidecar.demo.options import parse
from sidecar.errors import SetupError


def main(argv: Sequence[str]) -> int:
    """Run the demo and return its exit status."""
    options = parse(argv)
    try:
        preflight.check(options, preflight.this_machine())
    except SetupError as error:
        for line in str(error).splitlines():
            print(f"sidecar demo: {line}", file=sys.stderr)
        return 2
    # Deferred, because preflight must be able to say that httpx or rich is missing.
    from sidecar.demo.session import run  # noqa: PLC0415

    try:
        return run(options)
    except KeyboardInterrupt:
        return 130
