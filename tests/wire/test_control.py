"""The control file: whole or refused, and never somebody else's."""

import contextlib
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import ConfigError
from sidecar.wire import control
from sidecar.wire.control import (
    MAX_BYTES,
    MODE,
    Control,
    change,
    decode,
    encode,
    read,
    remove,
    write,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "control.json"


COUNTS = st.none() | st.integers(1, 1024)
CONTROLS = st.builds(
    Control,
    revision=st.text(max_size=64).filter(lambda text: text.isprintable()),
    is_on=st.booleans(),
    layers=st.none() | st.lists(st.integers(0, 200), min_size=1, max_size=8),
    steps_every=COUNTS,
    attention_every=COUNTS,
    attention_requests=COUNTS,
    confidence_every=st.none() | st.integers(0, 9),
)


@given(CONTROLS)
def test_what_is_written_is_what_is_read(asked: Control) -> None:
    """Every wish, and its revision where it has one."""
    again = decode(encode(asked))
    assert change(again, {}) == change(asked, {})
    assert again.revision == asked.revision or not asked.revision


def test_a_revision_is_made_of_the_contents() -> None:
    """The same wishes have the same name, others another."""
    one, two = Control(is_on=False), Control(attention_every=3)
    assert decode(encode(one)).revision == decode(encode(one)).revision
    assert decode(encode(one)).revision != decode(encode(two)).revision
    assert decode(b'{"revision": "incident-42"}').revision == "incident-42"


def test_every_field_is_optional() -> None:
    """An empty document asks for nothing."""
    assert change(decode(b"{}"), {}) == Control()


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (b'{"attention_evry": 3}', "attention_evry"),
        (b'{"attention_every": -1}', "attention_every"),
        (b'{"attention_every": "3"}', "attention_every"),
        (b'{"steps_every": 0}', "steps_every"),
        (b'{"attention_requests": 0}', "attention_requests"),
        (b'{"confidence_every": 1.5}', "confidence_every"),
        (b'{"layers": []}', "layers"),
        (b'{"layers": [-1]}', "layers"),
        (b'{"is_on": 1}', "is_on"),
        (b'{"version": 2}', "version"),
        (b'{"revision": "' + b"x" * 65 + b'"}', "revision"),
        (b'{"is_on": fal', "truncated"),
        (b"", "truncated"),
        (b"\xff\xfe", "sidecar control --clear"),
        (b"[" * 100_000, "sidecar control --clear"),
    ],
)
def test_what_is_no_control_is_refused_by_name(document: bytes, named: str) -> None:
    """The message names the field, and the way out."""
    with pytest.raises(ConfigError, match=named) as refusal:
        decode(document)
    assert "sidecar control --clear" in str(refusal.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """With an error of ours and no other."""
    with contextlib.suppress(ConfigError):
        assert decode(data).revision


def test_changes_add_to_what_was_asked_before() -> None:
    """The rest stays, but for the name, which was that of other wishes."""
    before = Control(revision="mine", is_on=False, layers=[1, 2])
    after = change(before, {"attention_every": "5", "layers": None})
    assert after == Control(is_on=False, attention_every=5)
    with pytest.raises(ConfigError, match=r"steps_every.*docs/control\.md"):
        change(before, {"steps_every": "many"})


def test_a_file_is_written_whole_with_its_mode(path: Path) -> None:
    """Whatever the umask says; nothing is left beside it, and the folder is made."""
    before = os.umask(0)
    try:
        write(path, Control(is_on=False))
        assert stat.S_IMODE(path.stat().st_mode) == MODE
        os.umask(0o177)
        write(path, Control(is_on=True, steps_every=2))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == MODE
    assert [file.name for file in path.parent.iterdir()] == ["control.json"]
    assert read(path).steps_every == 2  # type: ignore[union-attr]


def test_a_reader_never_meets_half_a_file(path: Path) -> None:
    """While it is rewritten again and again."""
    write(path, Control(layers=[0]))
    stop = threading.Event()

    def rewrite() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            write(path, Control(layers=list(range(1, 2 + number % 500))))

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(300):
            assert read(path) is not None
    finally:
        stop.set()
        writer.join()


def test_no_file_is_no_control(path: Path) -> None:
    """Nor is one that has been removed, once or twice."""
    assert read(path) is None
    write(path, Control())
    remove(path)
    remove(path)
    assert read(path) is None


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    """It may lead to anything; writing replaces it and leaves what it led to."""
    target = tmp_path / "target.json"
    target.write_text('{"is_on": false}')
    path.parent.mkdir()
    path.symlink_to(target)
    with pytest.raises(ConfigError, match="cannot read the control"):
        read(path)
    write(path, Control())
    assert target.read_text() == '{"is_on": false}'
    assert not path.is_symlink()


@pytest.mark.parametrize("mode", [0o642, 0o666])
def test_a_file_that_everybody_may_write_is_refused(path: Path, mode: int) -> None:
    """Anybody could steer the tap by it."""
    write(path, Control())
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 640"):
        read(path)


def test_a_file_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is neither this user who asks, nor root."""
    write(path, Control())
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    monkeypatch.setattr(control, "_ROOT", owner)
    assert read(path) is not None
    monkeypatch.setattr(control, "_ROOT", owner + 2)
    with pytest.raises(ConfigError, match="another user"):
        read(path)


def test_what_is_no_plain_file_is_refused_at_once(path: Path) -> None:
    """A pipe does not keep the pump waiting, nor does a folder confuse it."""
    path.parent.mkdir()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="plain file"):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="plain file"):
        read(path)
    with pytest.raises(ConfigError, match="cannot write the control"):
        write(path, Control())
    assert [file.name for file in path.parent.iterdir()] == ["control.json"]


def test_a_huge_file_is_refused_unread(path: Path) -> None:
    """The tap lives in somebody else's process."""
    path.parent.mkdir()
    path.write_bytes(b"{}" + b" " * MAX_BYTES)
    with pytest.raises(ConfigError, match=str(MAX_BYTES)):
        read(path)


def test_a_folder_that_somebody_else_laid_there_is_refused(tmp_path: Path) -> None:
    """As for the socket: where everybody may create, the folder must be ours alone."""
    tmp_path.chmod(0o777)
    folder = tmp_path / "run"
    folder.mkdir()
    write(folder / "control.json", Control())
    folder.chmod(0o777)
    for call in (
        lambda: read(folder / "control.json"),
        lambda: write(folder / "control.json", Control()),
    ):
        with pytest.raises(ConfigError, match="not a folder of this user alone"):
            call()
