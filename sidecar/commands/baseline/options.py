"""Options that several words of `sidecar baseline` and `sidecar replay` share."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.commands import asking
from sidecar.commands.command import needs
from sidecar.commands.progress import progress
from sidecar.config import API_PORT

if TYPE_CHECKING:
    from sidecar.fold.drift.baseline import Baseline
    from sidecar.fold.drift.policy import Policy
    from sidecar.jobs.pool import Pool
    from sidecar.store.baseline_file import BaselineFile
    from sidecar.store.recording import Recording
    from sidecar.store.sealed import Signer, Verifier


def add_recordings(parser: argparse.ArgumentParser, nargs: str = "+") -> None:
    """`RECORDING...`."""
    parser.add_argument(
        "recordings",
        nargs=nargs,
        type=Path,
        metavar="RECORDING",
        help="a file, or a folder of them",
    )


def add_ray(parser: argparse.ArgumentParser) -> None:
    """`--ray ADDRESS`."""
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="compute on this Ray cluster (host:port, ray://host:port, auto), or start one: local",
    )


def add_preset(parser: argparse.ArgumentParser) -> None:
    """`--preset`."""
    parser.add_argument("--preset", choices=("production", "demo"), default="production")


def add_signing(parser: argparse.ArgumentParser) -> None:
    """`--sign-with KEY`."""
    parser.add_argument(
        "--sign-with", type=Path, metavar="KEY", help="private key of `sidecar baseline keygen`"
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """`--key PUB`."""
    parser.add_argument(
        "--key", type=Path, metavar="PUB", help="public key that must have signed the baseline"
    )


@contextmanager
def pool_of(parsed: argparse.Namespace) -> "Iterator[Pool]":
    """Where long work runs."""
    if parsed.ray is None:
        from sidecar.jobs.pool import Here

        yield Here()
        return
    with needs("fleet", "--ray"):
        from sidecar.jobs.ray_pool import OnRay
    with OnRay(parsed.ray) as pool:
        yield pool


def policy_of(parsed: argparse.Namespace) -> "Policy":
    """The rates that the preset asks for."""
    from sidecar.fold.drift.policy import Policy

    return Policy.demo() if parsed.preset == "demo" else Policy()


def recordings_of(parsed: argparse.Namespace) -> "list[Recording]":
    """The recordings that were named."""
    with needs("recordings", "reading recordings"):
        from sidecar.store.recording import find_recordings
    return find_recordings(parsed.recordings)


def signer_of(parsed: argparse.Namespace) -> "Signer | None":
    """The private key that was named."""
    if parsed.sign_with is None:
        return None
    with needs("exporter", "signing"):
        from sidecar.store.signing import Private
    return Private.read(parsed.sign_with)


def verifier_of(parsed: argparse.Namespace) -> "Verifier | None":
    """The public key that was named."""
    if parsed.key is None:
        return None
    with needs("exporter", "checking a signature"):
        from sidecar.store.signing import Public
    return Public.read(parsed.key)


def baseline_of(path: Path, parsed: argparse.Namespace) -> "Baseline":
    """The baseline in `path`, signed as demanded."""
    from sidecar.store.baseline_file import read_baseline

    return read_baseline(path, verifier_of(parsed))


def file_of(path: Path, parsed: argparse.Namespace) -> "BaselineFile":
    """Everything in `path`, signed as demanded."""
    from sidecar.store.baseline_file import read_file

    return read_file(path, verifier_of(parsed) if hasattr(parsed, "key") else None)


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """`--months` and `--seed`."""
    parser.add_argument(
        "--months",
        type=int,
        default=200,
        metavar="N",
        help="months of the baseline's own days that limits are checked by; default %(default)s",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of drawing these days; default 0"
    )


def calibrated(parsed: argparse.Namespace, baseline: "Baseline", pool: "Pool") -> "Baseline":
    """The baseline with its limits checked by replay."""
    from sidecar.jobs.calibrating import calibrate_limits

    with progress("calibrate, months", parsed.months) as advance:
        calibration = calibrate_limits(
            baseline, policy_of(parsed), parsed.seed, pool, advance, parsed.months
        )
    return baseline.calibrated(calibration)


def add_url(parser: argparse.ArgumentParser, *, is_required: bool = True) -> None:
    """`--url URL`, and what opens it."""
    default = f"http://127.0.0.1:{API_PORT}" if is_required else None
    note = f"default {default}" if is_required else "compare with what runs there"
    parser.add_argument(
        "--url", default=default, metavar="URL", help=f"API of a running `sidecar serve`; {note}"
    )
    asking.add_token(parser)
