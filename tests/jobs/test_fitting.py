"""Fitting recordings: the same sum whatever is named first, and nothing foreign in it."""

from pathlib import Path

import msgspec
import pytest

from sidecar.errors import BaselineError, StoreError
from sidecar.fold.drift.baseline import Baseline
from sidecar.fold.drift.fit import fit
from sidecar.fold.drift.window import Assembly
from sidecar.jobs import fitting
from sidecar.jobs.fitting import (
    check_comparable,
    fit_recordings,
    header_of,
    num_requests,
    parts_of,
    survey_recordings,
)
from sidecar.jobs.pool import Here
from sidecar.store.recording import Recording
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout
from tests.jobs.traffic import IDENTITY, PER_WINDOW, record


def fitted(recordings: list[Recording]) -> Baseline:
    def ignore(_: int) -> None:
        pass

    plan = survey_recordings(recordings, Here(), ignore)
    header = header_of(recordings, Assembly())
    return fit_recordings(recordings, header, plan, Here(), ignore).get()


def test_the_order_in_which_recordings_are_named_does_not_matter(tmp_path: Path) -> None:
    """To the last bit."""
    recordings = record(tmp_path, 0.5, files_per_day=10)

    assert fitted(recordings).digest == fitted(recordings[::-1]).digest


def test_parts_add_up_to_one_fit_of_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window that files cut is whole again."""
    monkeypatch.setattr(fitting.parts_of, "__defaults__", (1000,))
    recordings = record(tmp_path, 0.5, files_per_day=7)
    assert len(parts_of(recordings)) > 3
    mine = fitted(recordings)
    rows = [row for each in recordings for row in each.observations()]
    pooled = fit(header_of(recordings, Assembly()), rows).get()

    assert mine.num_windows == pooled.num_windows == 144
    assert mine.num_requests == pooled.num_requests == 144 * PER_WINDOW
    assert mine.header == pooled.header
    assert mine.reservoir == pytest.approx(pooled.reservoir, rel=1e-12)
    assert mine.tau2 == pytest.approx(pooled.tau2, rel=1e-9)


def test_parts_are_whole_files_in_order_of_time(tmp_path: Path) -> None:
    """Each holds as many requests as were allowed, or one file."""
    recordings = record(tmp_path, 1, files_per_day=8)
    per_file = recordings[0].num_requests
    parts = parts_of(recordings[::-1], 2 * per_file + 1)

    assert [len(part) for part in parts] == [2, 2, 2, 2]
    assert [each for part in parts for each in part] == recordings
    assert [len(part) for part in parts_of(recordings, 1)] == [1] * 8
    assert sum(map(num_requests, parts)) == 288 * PER_WINDOW


def test_progress_counts_requests(tmp_path: Path) -> None:
    """Each pass tells every request once."""
    recordings = record(tmp_path, 0.2, files_per_day=20)
    told: list[int] = []
    plan = survey_recordings(recordings, Here(), told.append)
    assert sum(told) == num_requests(tuple(recordings))
    fit_recordings(recordings, header_of(recordings, Assembly()), plan, Here(), told.append)

    assert sum(told) == 2 * num_requests(tuple(recordings))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"layout": Layout([0, 1])}, "layers"),
        ({"identity": msgspec.structs.replace(IDENTITY, weights_digest="cd" * 32)}, "weights"),
        ({"identity": msgspec.structs.replace(IDENTITY, hidden_size=16)}, "hidden_size"),
    ],
)
def test_recordings_of_two_models_make_no_baseline(tmp_path: Path, changes: dict, field: str):
    """The error names the file and the field."""
    mine = record(tmp_path / "mine", 0.05)
    other = record(tmp_path / "other", 0.05, first_day=1, **changes)

    with pytest.raises(BaselineError, match=rf"{other[0].path}.*{field}"):
        header_of([*mine, *other], Assembly())


def test_a_kernel_more_is_part_of_the_baseline(tmp_path: Path) -> None:
    """A fleet of two kinds of GPU has one; its header names both."""
    other = msgspec.structs.replace(IDENTITY, kernels="H200")
    recordings = [*record(tmp_path / "a", 0.05), *record(tmp_path / "b", 0.05, identity=other)]

    assert isinstance(header_of(recordings, Assembly()).identity, Identity)
    assert "H200" in header_of(recordings, Assembly()).identity.kernels


def test_no_request_is_no_baseline(tmp_path: Path) -> None:
    """An empty recording is not an error of its own."""
    with pytest.raises(StoreError, match="no request"):
        header_of([record(tmp_path, 0.1)[0]._replace(num_requests=0)], Assembly())


def test_what_cannot_be_compared_is_refused_by_name(tmp_path: Path) -> None:
    """Another dtype is compared; other layers are not."""
    baseline = fitted(record(tmp_path / "a", 0.1))
    half = msgspec.structs.replace(IDENTITY, dtype="float16")
    check_comparable(record(tmp_path / "b", 0.05, identity=half), baseline)
    wide = record(tmp_path / "c", 0.05, layout=Layout([0, 1]))

    with pytest.raises(BaselineError, match=rf"{wide[0].path}.*layers: \[0, 2\].*\[0, 1\]"):
        check_comparable(wide, baseline)
