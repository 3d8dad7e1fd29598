"""Several recordings as one stream."""

from collections.abc import Iterator
from pathlib import Path

from sidecar.fold.drift.observation import Observation
from sidecar.jobs.order import in_order
from sidecar.store.recording import Recording
from tests.jobs.traffic import record


def test_requests_come_in_order_of_time(tmp_path: Path) -> None:
    """Of replicas that overlap and of files that follow; each request once, with its file."""
    recordings = [
        *record(tmp_path / "a", 0.2, files_per_day=20),
        *record(tmp_path / "b", 0.1, first_day=0.03, files_per_day=15, seed=1),
        *record(tmp_path / "c", 0.05, first_day=3, seed=2),
    ]
    found = list(in_order(recordings[::-1]))
    times = [observation.t_ns for _, observation in found]

    assert times == sorted(times)
    for recording in recordings:
        mine = [row.values.tobytes() for each, row in found if each == recording]
        assert mine == [row.values.tobytes() for row in recording.observations()]
    assert in_order([]) is not None
    assert list(in_order([])) == []


def test_few_recordings_are_open_at_once(tmp_path: Path, monkeypatch) -> None:
    """Those whose span is under way, however many there are."""
    recordings = record(tmp_path, 0.5, files_per_day=40)
    opened: list[Path] = []
    most = 0
    read = Recording.observations

    def observed(self: Recording) -> Iterator[Observation]:
        opened.append(self.path)
        yield from read(self)
        opened.remove(self.path)

    monkeypatch.setattr(Recording, "observations", observed)
    for _ in in_order(recordings):
        most = max(most, len(opened))

    assert len(recordings) > 19
    assert most <= 2
