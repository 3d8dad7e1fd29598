"""The recorder: files within limits, and a broken disk that hurts nobody."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.store.recorder import MAX_OPEN, RETRY_NS, Limits, Recorder
from sidecar.store.recording import GROUP_ROWS, OPEN_SUFFIX, find_recordings
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout
from tests.store.recordings import IDENTITY, LAYOUT, T0, assert_same, observations

MINUTE = 60 * 10**9


def feed(recorder: Recorder, num: int, **options: int) -> list:
    rows = list(observations(num, **options))
    for row in rows:
        recorder.update(row, LAYOUT, IDENTITY, row.t_ns)
    return rows


def test_everything_served_is_recorded(tmp_path: Path) -> None:
    """In order, with the identity and the release; and closing finishes the file."""
    recorder = Recorder(tmp_path / "recordings", "9.9")
    rows = feed(recorder, 1000, step_ns=1000)
    recorder.close()
    (recording,) = find_recordings([tmp_path / "recordings"])

    assert_same(list(recording.observations()), rows)
    assert (recording.header.identity, recording.header.release) == (IDENTITY, "9.9")
    assert (recorder.num_recorded, recorder.num_lost, recorder.reason) == (1000, 0, "")


def test_files_are_finished_by_time_and_by_size(tmp_path: Path) -> None:
    """Also while nothing is served; names sort by time."""
    by_time = Recorder(tmp_path / "time", limits=Limits(file_ns=MINUTE))
    rows = feed(by_time, 150)
    assert len(find_recordings([tmp_path / "time"])) == 2
    by_time.advance(T0 + 10 * MINUTE)
    found = find_recordings([tmp_path / "time"])
    assert_same([row for each in found for row in each.observations()], rows)
    assert [each.num_requests for each in found] == [60, 60, 30]

    row_bytes = rows[0].values.nbytes
    by_size = Recorder(tmp_path / "size", limits=Limits(file_bytes=50 * row_bytes))
    feed(by_size, 120, step_ns=1)
    by_size.close()
    found = find_recordings([tmp_path / "size"])
    assert [each.num_requests for each in found] == [50, 50, 20]


def test_the_oldest_make_room(tmp_path: Path) -> None:
    """The folder stays within its limit, the latest requests are there, and the rest is counted."""
    recorder = Recorder(tmp_path, limits=Limits(file_ns=MINUTE, total_bytes=60_000))
    rows = feed(recorder, 1200)
    recorder.close()
    found = find_recordings([tmp_path])
    kept = [row for each in found for row in each.observations()]

    assert recorder.num_removed == 20 - len(found) > 0
    assert sum(each.path.stat().st_size for each in found) > 40_000, "no more go than must"
    assert sum(each.path.stat().st_size for each in found) <= 60_000
    assert_same(kept, rows[-len(kept) :])


def test_canaries_are_not_recorded(tmp_path: Path) -> None:
    """A known-safe task is no traffic."""
    recorder = Recorder(tmp_path)
    for row in observations(4):
        recorder.update(row._replace(canary="p01@7"), LAYOUT, IDENTITY, row.t_ns)
    recorder.close()

    assert list(tmp_path.iterdir()) == []
    assert recorder.num_recorded == 0


def test_each_layout_and_identity_has_its_own_file(tmp_path: Path) -> None:
    """A deployment begins another file; files that are open at once are few."""
    recorder = Recorder(tmp_path)
    for i, row in enumerate(observations(3 * MAX_OPEN)):
        recorder.update(row, LAYOUT, Identity(model_name=f"m{i % (2 * MAX_OPEN)}"), T0)
        assert len(list(tmp_path.glob(f"*{OPEN_SUFFIX}"))) <= MAX_OPEN
    other = Layout([5])
    for row in observations(2, layout=other):
        recorder.update(row, other, IDENTITY, T0)
    recorder.close()
    found = find_recordings([tmp_path])

    assert sum(each.num_requests for each in found) == recorder.num_recorded == 3 * MAX_OPEN + 2
    assert {each.header.identity.model_name for each in found} >= {f"m{i}" for i in range(16)}
    assert [each.num_requests for each in found if each.header.layout == other] == [2]


def test_a_crash_costs_the_open_file_alone(tmp_path: Path) -> None:
    """What was finished is read; what was open is cleared away by the next life."""
    crashed = Recorder(tmp_path, limits=Limits(file_ns=MINUTE))
    feed(crashed, 90)
    assert len(list(tmp_path.glob(f"*{OPEN_SUFFIX}"))) == 1
    following = Recorder(tmp_path)
    assert list(tmp_path.glob(f"*{OPEN_SUFFIX}")) == []
    feed(following, 5, t0_ns=T0 + 2 * MINUTE)
    following.close()

    assert [each.num_requests for each in find_recordings([tmp_path])] == [60, 5]


def test_a_folder_that_cannot_be_written_is_counted(tmp_path: Path) -> None:
    """Nothing is raised, the reason has the path and the remedy, and a minute later it may work."""
    folder = tmp_path / "state"
    folder.write_text("a file where a folder should be")
    recorder = Recorder(folder / "recordings")
    feed(recorder, 30)
    assert (recorder.num_recorded, recorder.num_lost) == (0, 30)
    assert str(folder) in recorder.reason
    assert "SIDECAR_STATE_DIR" in recorder.reason
    folder.unlink()
    feed(recorder, 5, t0_ns=T0 + RETRY_NS)
    recorder.close()

    assert (recorder.num_recorded, recorder.num_lost) == (5, 30)
    assert [each.num_requests for each in find_recordings([folder / "recordings"])] == [5]


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """A disk that is full after so many bytes: the system refuses to write more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("num", [GROUP_ROWS - 1, 4 * GROUP_ROWS])
def test_a_full_disk_is_counted(tmp_path: Path, num: int) -> None:
    """While a group is written, or when the file is finished: what was in it is lost, no more."""
    recorder = Recorder(tmp_path)
    with largest_file(8192):
        feed(recorder, num, step_ns=1)
        recorder.close()
    assert (recorder.num_recorded, recorder.num_lost) == (0, num)
    assert "File too large" in recorder.reason
    assert list(tmp_path.iterdir()) == []
    feed(recorder, 7, t0_ns=T0 + 2 * RETRY_NS)
    recorder.close()

    assert [each.num_requests for each in find_recordings([tmp_path])] == [7]
