"""Fit a baseline to recordings, and calibrate it; the result is ready for `sidecar serve`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sidecar.commands.baseline import options
from sidecar.commands.baseline.summary import print_summary
from sidecar.commands.progress import progress

if TYPE_CHECKING:
    from sidecar.fold.drift.baseline import Baseline
    from sidecar.fold.drift.fit import Fit
    from sidecar.jobs.pool import Pool
    from sidecar.store.recording import Recording

HELP: Final = "make a baseline out of recordings, calibrated"
_WINDOW_SECONDS: Final = 300.0


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    options.add_recordings(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--window-seconds",
        type=float,
        default=_WINDOW_SECONDS,
        metavar="S",
        help="SIDECAR_WINDOW_SECONDS of the exporter that will use it; default %(default)g",
    )
    parser.add_argument(
        "--plan-of",
        type=Path,
        metavar="FILE",
        help="strata and clips of this baseline, so that both can be merged",
    )
    parser.add_argument(
        "--final", action="store_true", help="leave out what merging needs: a smaller file"
    )
    options.add_calibration(parser)
    options.add_ray(parser)
    options.add_preset(parser)
    options.add_signing(parser)


def run(parsed: argparse.Namespace) -> int:
    """Fit, calibrate, write, and say what it is."""
    from sidecar.store.baseline_file import write_baseline

    signer = options.signer_of(parsed)
    recordings = options.recordings_of(parsed)
    with options.pool_of(parsed) as pool:
        fit, baseline = _fitted(parsed, recordings, pool)
        baseline = options.calibrated(parsed, baseline, pool)
    write_baseline(parsed.output, baseline, None if parsed.final else fit, signer)
    print_summary(parsed.output, baseline, options.policy_of(parsed))
    return 0


def _fitted(
    parsed: argparse.Namespace, recordings: "list[Recording]", pool: "Pool"
) -> "tuple[Fit, Baseline]":
    from sidecar.fold.drift.window import Assembly
    from sidecar.jobs.calibrating import calibrate_tail
    from sidecar.jobs.fitting import fit_recordings, header_of, num_requests, survey_recordings

    header = header_of(recordings, Assembly(round(parsed.window_seconds * 1e9)))
    total = num_requests(tuple(recordings))
    if parsed.plan_of is None:
        with progress("survey", total) as advance:
            plan = survey_recordings(recordings, pool, advance)
    else:
        plan = options.file_of(parsed.plan_of, parsed).baseline.plan
    with progress("fit", total) as advance:
        fit = fit_recordings(recordings, header, plan, pool, advance)
    baseline = fit.get()
    with progress("request tail", total) as advance:
        return fit, baseline.with_tail(calibrate_tail(baseline, recordings, pool, advance))
