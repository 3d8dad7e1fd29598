"""Add up baselines that were fitted apart with one plan, such as those of several replicas.

The sum is what one fit of all their recordings would have been. What is calibrated by requests
(the tail) has to be calibrated again, by `sidecar baseline calibrate`.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sidecar.commands.baseline import options
from sidecar.commands.baseline.summary import print_summary
from sidecar.errors import BaselineError, StoreError

if TYPE_CHECKING:
    from sidecar.fold.drift.fit import Fit

HELP: Final = "add up baselines of several replicas"


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    options.add_trust(parser)
    options.add_calibration(parser)
    options.add_ray(parser)
    options.add_preset(parser)
    options.add_signing(parser)


def run(parsed: argparse.Namespace) -> int:
    """Merge in order of time, calibrate, write, and say what it is."""
    from sidecar.store.baseline_file import write_baseline

    signer = options.signer_of(parsed)
    fits = [(path, _fit(path, parsed)) for path in parsed.files]
    fits.sort(key=lambda each: (each[1].header.start_ns, each[0]))
    (_, total), *rest = fits
    for path, fit in rest:
        try:
            total.merge(fit)
        except BaselineError as error:
            raise BaselineError(f"{path}: {error}") from error
    with options.pool_of(parsed) as pool:
        baseline = options.calibrated(parsed, total.get(), pool)
    write_baseline(parsed.output, baseline, total, signer)
    print_summary(parsed.output, baseline, options.policy_of(parsed))
    return 0


def _fit(path: Path, parsed: argparse.Namespace) -> "Fit":
    fit = options.file_of(path, parsed).fit
    if fit is None:
        raise StoreError(f"{path}: written with --final, so it cannot be merged; fit it again")
    return fit
