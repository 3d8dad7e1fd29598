"""Calibrate a baseline again: its limits by replay, and the request tail by recordings."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sidecar.commands.baseline import options
from sidecar.commands.baseline.summary import print_summary
from sidecar.commands.progress import progress
from sidecar.errors import ConfigError

if TYPE_CHECKING:
    from sidecar.fold.drift.baseline import Baseline
    from sidecar.jobs.pool import Pool

HELP: Final = "check a baseline's limits by replay, and count its unusual requests"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=Path, metavar="FILE")
    options.add_recordings(parser, "*")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: in place")
    options.add_trust(parser)
    options.add_calibration(parser)
    options.add_ray(parser)
    options.add_preset(parser)
    options.add_signing(parser)


def run(parsed: argparse.Namespace) -> int:
    """Calibrate, write, and say what it is."""
    from sidecar.store.baseline_file import write_baseline

    signer = options.signer_of(parsed)
    held = options.file_of(parsed.file, parsed)
    if held.signed_by and signer is None and parsed.output is None:
        raise ConfigError(
            f"{parsed.file} is signed, and would not be any more; give --sign-with KEY or -o FILE"
        )
    with options.pool_of(parsed) as pool:
        baseline = _with_tail(parsed, held.baseline, pool)
        baseline = options.calibrated(parsed, baseline, pool)
    path = parsed.output or parsed.file
    write_baseline(path, baseline, held.fit, signer)
    print_summary(path, baseline, options.policy_of(parsed))
    return 0


def _with_tail(parsed: argparse.Namespace, baseline: "Baseline", pool: "Pool") -> "Baseline":
    if not parsed.recordings:
        return baseline
    recordings = options.recordings_of(parsed)
    from sidecar.jobs.calibrating import calibrate_tail
    from sidecar.jobs.fitting import check_comparable, num_requests

    check_comparable(recordings, baseline)
    with progress("request tail", num_requests(tuple(recordings))) as advance:
        return baseline.with_tail(calibrate_tail(baseline, recordings, pool, advance))
