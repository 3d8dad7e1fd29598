"""Baseline files: a baseline, and the fit it came from, so that it can still be merged.

Guarantees: what is read is to the bit what was written; a torn, changed, foreign or wrongly signed
file is refused with StoreError, and so is a well-sealed one whose numbers do not fit together.

Size, measured by bench/reference.py: 14 days of 5 minutes, 80 streams and 12 strata take 2.3 MB,
and with what merging needs 14.5 MB (3 bytes per cell, stratum and stream). Bounded by 4032 windows
and the 100 strata that can hold 1 % each: 100 MB.
"""

from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from sidecar.errors import StateError, StoreError
from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.drift.fit import Fit
from sidecar.store import atomic
from sidecar.store.sealed import Sealed, Signer, Verifier, decode, seal, unseal

KIND: Final = "baseline"
VERSION: Final = 1


class BaselineFile(NamedTuple):
    """What a baseline file holds.

    fit: None when the file was written without, to keep it small; it can then not be merged.
    """

    baseline: Baseline
    fit: Fit | None
    signed_by: str


def write_baseline(
    path: Path, baseline: Baseline, fit: Fit | None = None, signer: Signer | None = None
) -> None:
    """Write a baseline file, whole or not at all. Raises StoreError."""
    plain = {"baseline": baseline.to_plain(), "fit": fit and fit.to_plain()}
    payload = msgspec.msgpack.encode(plain)
    atomic.replace(path, seal(KIND, VERSION, _about(baseline, fit), payload, signer))


def read_baseline(path: Path, verifier: Verifier | None = None) -> Baseline:
    """The baseline in `path`, without the fit. Raises StoreError."""
    return _baseline(_parts(_sealed(path, verifier), path), path)


def read_file(path: Path, verifier: Verifier | None = None) -> BaselineFile:
    """Everything in `path`. Raises StoreError."""
    sealed = _sealed(path, verifier)
    parts = _parts(sealed, path)
    try:
        plain = decode(parts.fit, object)
        fit = None if plain is None else Fit.from_plain(plain)  # type: ignore[arg-type] # it looks
    except (StateError, StoreError) as error:
        raise StoreError(f"the fit in {path} cannot be read: {error}") from error
    return BaselineFile(_baseline(parts, path), fit, sealed.signed_by)


class _Parts(msgspec.Struct, forbid_unknown_fields=True):
    baseline: msgspec.Raw
    fit: msgspec.Raw


def _sealed(path: Path, verifier: Verifier | None) -> Sealed:
    try:
        return unseal(atomic.read(path), KIND, VERSION, verifier)
    except FileNotFoundError as error:
        raise StoreError(
            f"there is no baseline at {path}; make one with `sidecar baseline fit`"
        ) from error
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from error


def _parts(sealed: Sealed, path: Path) -> _Parts:
    try:
        return decode(sealed.payload, _Parts)
    except StoreError as error:
        raise StoreError(f"{path} is no baseline: {error}") from error


def _baseline(parts: _Parts, path: Path) -> Baseline:
    try:
        return Baseline.from_plain(decode(parts.baseline, object))  # type: ignore[arg-type] # likewise
    except (StateError, StoreError) as error:
        raise StoreError(f"the baseline in {path} cannot be read: {error}") from error


def _about(baseline: Baseline, fit: Fit | None) -> dict[str, Any]:
    """What `head -n 1` shows."""
    return {
        "digest": baseline.digest,
        **baseline.header.to_plain(),
        "num_requests": baseline.num_requests,
        "num_windows": baseline.num_windows,
        "num_strata": len(baseline.strata),
        "is_calibrated": baseline.calibration is not None,
        "is_mergeable": fit is not None,
    }
