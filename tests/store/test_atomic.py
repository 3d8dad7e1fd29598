"""Atomic files: whole or not at all."""

import fcntl
import os
from pathlib import Path

import pytest

from sidecar.errors import StoreError
from sidecar.store import atomic


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """The folder is made, the bytes come back, and nothing else lies beside them."""
    path = tmp_path / "state" / "file"
    atomic.replace(path, b"old")
    atomic.replace(path, b"new")

    assert atomic.read(path) == b"new"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full half way through changes nothing of the file that readers see."""
    path = tmp_path / "file"
    atomic.replace(path, b"old")

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StoreError, match="the old file is as it was"):
            atomic.replace(path, b"new")

    assert atomic.read(path) == b"old"


def test_the_leftover_of_a_dead_writer_is_used_again(tmp_path: Path) -> None:
    """What a killed writer left beside the file is longer than the next, and leaves no trace."""
    (tmp_path / ".file.tmp").write_bytes(b"half of something longer")
    atomic.replace(tmp_path / "file", b"new")

    assert atomic.read(tmp_path / "file") == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_of_two_writers_one_is_refused(tmp_path: Path) -> None:
    """While another process writes the file, ours is refused and the old one stays."""
    path = tmp_path / "file"
    atomic.replace(path, b"old")
    with (tmp_path / ".file.tmp").open("wb") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="cannot write"):
            atomic.replace(path, b"ours")

    assert atomic.read(path) == b"old"


def test_writes_are_on_the_disk_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is synced before the rename and the folder after, so a power cut loses neither."""
    calls = []
    sync, rename = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (calls.append("sync"), sync(descriptor))[-1]
    )
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (calls.append("rename"), rename(self, to))[-1]
    )
    atomic.replace(tmp_path / "file", b"new")

    assert calls == ["sync", "rename", "sync"]


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """A file above the limit is refused by its size."""
    (tmp_path / "file").write_bytes(bytes(11))

    with pytest.raises(StoreError, match="larger than 10 bytes"):
        atomic.read(tmp_path / "file", max_bytes=10)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """An error of the system is told with the path."""
    with pytest.raises(StoreError, match="cannot read"):
        atomic.read(tmp_path)


def test_no_file_is_no_failure_of_the_store(tmp_path: Path) -> None:
    """The caller decides what no data yet means."""
    with pytest.raises(FileNotFoundError):
        atomic.read(tmp_path / "file")


def test_a_refused_file_is_put_aside(tmp_path: Path) -> None:
    """It keeps its bytes under another name."""
    path = tmp_path / "file"
    path.write_bytes(b"whose?")

    assert atomic.put_aside(path).read_bytes() == b"whose?"
    assert not path.exists()
    with pytest.raises(StoreError, match="cannot put"):
        atomic.put_aside(path)
