"""What the tap hears: a new file at once, the last good one while it is bad, none once gone."""

import logging
from pathlib import Path

import pytest

from sidecar.tap.control import ControlFile
from sidecar.wire import control
from sidecar.wire.control import Control


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.json"


def test_a_new_file_is_obeyed_and_a_removed_one_forgotten(path: Path) -> None:
    """Each look shows what is there now."""
    heard = ControlFile(path)
    heard.look()
    assert heard.control == Control()
    control.write(path, Control(is_on=False))
    heard.look()
    assert not heard.control.is_on
    control.write(path, Control(attention_every=3))
    heard.look()
    assert (heard.control.is_on, heard.control.attention_every) == (True, 3)
    control.remove(path)
    heard.look()
    assert heard.control == Control()
    assert (heard.refusal, heard.num_refused) == ("", 0)


def test_the_last_good_one_stays_while_a_file_is_bad(path: Path, caplog) -> None:
    """It is told why, counted and logged once; not again at every look."""
    heard = ControlFile(path)
    control.write(path, Control(layers=[2]))
    heard.look()
    path.write_text('{"layers": "all"}')
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            heard.look()
    assert heard.control.layers == [2]
    assert "layers" in heard.refusal
    assert str(path) in heard.refusal
    assert heard.num_refused == 1
    (record,) = caplog.records
    assert heard.refusal in record.getMessage()

    path.chmod(0o666)
    heard.look()
    assert heard.num_refused == 2
    assert "chmod 640" in heard.refusal
    control.write(path, Control(layers=[3]))
    heard.look()
    assert (heard.control.layers, heard.refusal) == ([3], "")


def test_a_bad_file_that_is_removed_is_no_trouble_any_more(path: Path) -> None:
    """The configuration is in force, and the refusal over."""
    heard = ControlFile(path)
    path.write_text("{")
    heard.look()
    assert heard.refusal
    path.unlink()
    heard.look()
    assert (heard.control, heard.refusal) == (Control(), "")


def test_a_file_is_read_once(path: Path, monkeypatch) -> None:
    """A look at a file that has not changed costs one question of the file system."""
    reads = []
    read = control.read
    monkeypatch.setattr(control, "read", lambda path: reads.append(path) or read(path))
    heard = ControlFile(path)
    control.write(path, Control(is_on=False))
    for _ in range(10):
        heard.look()
    assert reads == [path]


def test_a_path_that_cannot_be_looked_at_is_told(tmp_path: Path) -> None:
    """A file where a folder should be; counted once."""
    (tmp_path / "run").write_text("")
    heard = ControlFile(tmp_path / "run" / "control.json")
    for _ in range(3):
        heard.look()
    assert "cannot read the control" in heard.refusal
    assert heard.num_refused == 1
