"""Snapshots: a restart goes on where it stopped, and believes nothing else."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import StateError, StoreError
from sidecar.store import atomic
from sidecar.store.snapshot import Saved, Snapshot, SnapshotFile

SNAPSHOT = Snapshot(5, {"traffic": Saved("b" * 64, {"c": b"\x00\x01", "shape": [2]})})


def test_states_come_back(tmp_path: Path) -> None:
    """What was written is read, byte arrays included."""
    SnapshotFile(tmp_path / "snapshot").write(SNAPSHOT)

    assert SnapshotFile(tmp_path / "snapshot").read() == SNAPSHOT


def test_no_file_is_no_failure(tmp_path: Path) -> None:
    """The first start has nothing to go on with."""
    assert SnapshotFile(tmp_path / "snapshot").read() is None


def test_a_state_is_of_its_baseline() -> None:
    """Evidence against one baseline says nothing against another; the message names both."""
    assert SNAPSHOT.state("traffic", "b" * 64) == {"c": b"\x00\x01", "shape": [2]}
    assert SNAPSHOT.state("canary", "") is None
    with pytest.raises(StateError, match="judged by baseline bbbbbbbbbbbb, now it is none"):
        SNAPSHOT.state("traffic", "")


def test_a_refused_file_is_put_aside_and_not_overwritten(tmp_path: Path) -> None:
    """A torn file is refused, and the next write keeps its bytes under another name."""
    path = tmp_path / "snapshot"
    path.write_bytes(b"torn")
    file = SnapshotFile(path)
    with pytest.raises(StoreError):
        file.read()
    file.write(SNAPSHOT)

    assert file.read() == SNAPSHOT
    assert (tmp_path / "snapshot.refused").read_bytes() == b"torn"


def test_a_writer_that_never_read_still_looks_first(tmp_path: Path) -> None:
    """Even without a read at the start, a foreign file is not destroyed."""
    path = tmp_path / "snapshot"
    path.write_bytes(b"somebody's thesis")
    SnapshotFile(path).write(SNAPSHOT)

    assert (tmp_path / "snapshot.refused").read_bytes() == b"somebody's thesis"


def test_our_own_file_is_overwritten(tmp_path: Path) -> None:
    """The second snapshot replaces the first, and nothing piles up."""
    for saved_ns in (5, 6):
        SnapshotFile(tmp_path / "snapshot").write(SNAPSHOT._replace(saved_ns=saved_ns))

    assert [each.name for each in tmp_path.iterdir()] == ["snapshot"]
    assert SnapshotFile(tmp_path / "snapshot").read() == SNAPSHOT._replace(saved_ns=6)


@given(st.data())
def test_a_mutated_snapshot_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any changed byte, or a file that ends early, is refused, never half read."""
    path = tmp_path_factory.mktemp("mutated") / "snapshot"
    SnapshotFile(path).write(SNAPSHOT)
    whole = bytearray(atomic.read(path))
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        whole[place] ^= data.draw(st.integers(1, 255))
    else:
        del whole[place:]
    path.write_bytes(bytes(whole))

    with pytest.raises(StoreError):
        SnapshotFile(path).read()
