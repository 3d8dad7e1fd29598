"""Baseline files: what is read is what was written, or is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import StoreError
from sidecar.fold.drift.baseline import Calibration
from sidecar.fold.drift.fit import fit
from sidecar.store import atomic
from sidecar.store.baseline_file import KIND, VERSION, read_baseline, read_file, write_baseline
from sidecar.store.sealed import seal
from sidecar.store.signing import Private, Public, make_keys
from tests.fold.drift.traffic import HEADER, traffic

FIT = fit(HEADER, traffic(900))
BASELINE = FIT.get().calibrated(Calibration(1.0, {"a": 2.0}, {"months": 3}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "chat.baseline"
    write_baseline(found, BASELINE, FIT)
    return found


def test_a_baseline_comes_back(path: Path) -> None:
    """With its digest, its calibration, and the fit that it can be merged by."""
    held = read_file(path)

    assert read_baseline(path).digest == held.baseline.digest == BASELINE.digest
    assert held.fit is not None
    held.fit.merge(fit(HEADER, traffic(300, seed=2), FIT.plan))
    assert held.fit.get().num_requests == 1200


def test_the_first_line_tells_what_it_is_of(path: Path) -> None:
    """A reader without this package sees model, layers, span and digest."""
    about = json.loads(path.read_bytes().split(b"\n")[0])["about"]

    assert about["identity"]["model_name"] == "m"
    assert about["layout"]["sketch_seed"] == 7
    assert about["digest"] == BASELINE.digest
    assert (about["num_requests"], about["is_calibrated"], about["is_mergeable"]) == (
        900,
        True,
        True,
    )


def test_a_small_file_cannot_be_merged(path: Path, tmp_path: Path) -> None:
    """Without the fit it is shorter, and says so by having none."""
    write_baseline(tmp_path / "small", BASELINE)

    assert read_file(tmp_path / "small").fit is None
    assert (tmp_path / "small").stat().st_size < path.stat().st_size


def test_a_signed_file_is_read_with_its_key(tmp_path: Path) -> None:
    """And refused unsigned, when a key is demanded."""
    make_keys(tmp_path / "key", tmp_path / "pub")
    public = Public.read(tmp_path / "pub")
    write_baseline(tmp_path / "signed", BASELINE, signer=Private.read(tmp_path / "key"))
    write_baseline(tmp_path / "unsigned", BASELINE)

    assert read_file(tmp_path / "signed", public).signed_by == public.name
    with pytest.raises(StoreError, match=r"unsigned.*not signed"):
        read_baseline(tmp_path / "unsigned", public)


@given(st.data())
def test_any_mutation_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """One changed byte anywhere, or a shorter file, is refused: never a crash, never a number."""
    path = tmp_path_factory.mktemp("mutated") / "baseline"
    write_baseline(path, BASELINE)
    whole = bytearray(atomic.read(path))
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        whole[place] ^= data.draw(st.integers(1, 255))
    else:
        del whole[place:]
    path.write_bytes(bytes(whole))

    with pytest.raises(StoreError, match=str(path)):
        read_baseline(path)


JUNK = st.recursive(
    st.none() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def places(plain: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every value in nested maps and lists."""
    below = (
        plain.items()
        if isinstance(plain, dict)
        else enumerate(plain)
        if isinstance(plain, list)
        else ()
    )
    return [at, *(found for key, value in below for found in places(value, (*at, key)))]


PLAIN = msgspec.msgpack.encode({"baseline": BASELINE.to_plain(), "fit": FIT.to_plain()})
PLACES = [at for at in places(msgspec.msgpack.decode(PLAIN)) if at]


@given(st.sampled_from(PLACES), JUNK)
def test_a_stranger_who_seals_nonsense_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, at: tuple[Any, ...], junk: Any
) -> None:
    """With any part replaced, under a true checksum, it is refused or reads as a baseline."""
    plain = msgspec.msgpack.decode(PLAIN)
    inner = plain
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = junk
    path = tmp_path_factory.mktemp("nonsense") / "baseline"
    path.write_bytes(seal(KIND, VERSION, {}, msgspec.msgpack.encode(plain)))
    try:
        held = read_file(path)
    except StoreError:
        return
    assert held.baseline.reservoir.shape[1] == held.baseline.schema.num_streams
    assert held.fit is None or held.fit.get().reservoir.shape[1] == len(BASELINE.schema.streams)


@given(st.binary(max_size=60))
def test_a_sealed_payload_of_bytes_is_refused(
    tmp_path_factory: pytest.TempPathFactory, payload: bytes
) -> None:
    """Whatever it is, it is no baseline."""
    path = tmp_path_factory.mktemp("bytes") / "baseline"
    path.write_bytes(seal(KIND, VERSION, {}, payload))

    with pytest.raises(StoreError):
        read_file(path)


def test_a_missing_file_names_the_command(tmp_path: Path) -> None:
    """An operator without a baseline is told how to make one."""
    with pytest.raises(StoreError, match="sidecar baseline fit"):
        read_baseline(tmp_path / "none")


def test_a_failed_write_keeps_the_old_baseline(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was there is still read."""

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.write", broken)
        with pytest.raises(StoreError, match="the old file is as it was"):
            write_baseline(path, FIT.get())

    assert read_baseline(path).digest == BASELINE.digest


def test_files_are_about_as_small_as_told(tmp_path: Path) -> None:
    """0.8 MB per 1000 windows of 96 streams, before what a fit needs."""
    small = tmp_path / "small"
    write_baseline(small, BASELINE)
    fixed = small.stat().st_size
    rng = np.random.default_rng(0)
    width = BASELINE.schema.num_streams
    longer = type(BASELINE)(
        **{
            **{name: getattr(BASELINE, name) for name in BASELINE.__dataclass_fields__},
            "reservoir": rng.standard_normal((1000, width)),
            "times_ns": np.arange(1000) * 300 * 10**9,
            "mix": rng.integers(0, 99, (1000, len(BASELINE.strata))),
        }
    )
    write_baseline(small, longer)

    assert small.stat().st_size - fixed < 0.8e6 * width / 96 + 50_000
    assert hashlib.sha256(small.read_bytes()[:-32]).digest() == small.read_bytes()[-32:]
