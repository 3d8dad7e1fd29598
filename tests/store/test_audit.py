"""The audit log: what was done stays told, and whoever changes it is found."""

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar import cli
from sidecar.errors import StoreError
from sidecar.store.audit import GENESIS, MAX_LINE, TORN, AuditLog, Head, verify


def filled(path: Path, num_entries: int = 5) -> AuditLog:
    """A log of so many acknowledgements."""
    log = AuditLog(path)
    for number in range(num_entries):
        log.append(1000 + number, "token", "drift.acknowledge", {"channel": "canary"})
    return log


def test_entries_form_a_chain(tmp_path: Path) -> None:
    """Each entry names the one before by its hash, and a later life goes on where it ended."""
    path = tmp_path / "state" / "audit.jsonl"
    filled(path, 2)
    last = filled(path, 1).append(7, "operator", "deployment.announce", {"note": "v2"})

    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [line["number"] for line in lines] == [1, 2, 3, 4]
    assert [line["previous"] for line in lines] == [GENESIS, *(x["hash"] for x in lines[:-1])]
    assert verify(path) == Head(4, last.hash) == AuditLog(path).head()


def test_no_log_is_an_empty_one(tmp_path: Path) -> None:
    """Nothing was done yet: that is no failure."""
    assert AuditLog(tmp_path / "audit.jsonl").head() == Head()


@given(at=st.integers(0, 10_000), value=st.integers(0, 255))
def test_every_changed_byte_is_found(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int
) -> None:
    """Whichever byte of the log becomes another one, the chain no longer holds."""
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    filled(path)
    data = bytearray(path.read_bytes())
    at %= len(data)
    if data[at] == value:
        return
    data[at] = value
    path.write_bytes(data)

    with pytest.raises(StoreError):
        verify(path)


@pytest.mark.parametrize("order", [[0, 2, 3, 4], [1, 2, 3, 4], [0, 2, 1, 3, 4], [0, 1, 1, 2, 3, 4]])
def test_lines_that_were_removed_moved_or_doubled_are_found(
    tmp_path: Path, order: list[int]
) -> None:
    """Whole lines of ours in another order are no chain."""
    path = tmp_path / "audit.jsonl"
    filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[each] for each in order))

    with pytest.raises(StoreError, match="does not follow"):
        verify(path)


def test_a_cut_off_end_is_found_by_an_earlier_head(tmp_path: Path) -> None:
    """A shorter chain is a chain; what the end was, somebody else must have noted."""
    path = tmp_path / "audit.jsonl"
    noted = filled(path).head()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))

    assert verify(path).number == 3
    with pytest.raises(StoreError, match="cut off"):
        verify(path, noted)
    filled(path)
    with pytest.raises(StoreError, match="written anew"):
        verify(path, noted._replace(number=4))


def test_what_a_crash_cut_off_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    """Half a line stays where it is; the next entry carries its digest, and the chain goes on."""
    path = tmp_path / "audit.jsonl"
    log = filled(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(StoreError, match="crash"):
        verify(path)

    log.append(9, "token", "drift.acknowledge", {})

    actions = [json.loads(line)["action"] for line in path.read_bytes().splitlines()[5:]]
    assert actions == [TORN, "drift.acknowledge"]
    assert path.read_bytes().startswith(whole[:-20])
    assert verify(path).number == 6


def test_a_torn_line_excuses_no_other_one(tmp_path: Path) -> None:
    """What was cut off cannot be replaced by something else later."""
    path = tmp_path / "audit.jsonl"
    log = filled(path)
    path.write_bytes(path.read_bytes()[:-20])
    log.append(9, "token", "drift.acknowledge", {})
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b"canary", b"replica")
    path.write_bytes(b"".join(lines))

    with pytest.raises(StoreError, match="line 6: it excuses no torn line"):
        verify(path)


def test_an_entry_is_spelt_in_one_way_only(tmp_path: Path) -> None:
    """A space more says the same, and is found all the same."""
    path = tmp_path / "audit.jsonl"
    filled(path)
    path.write_bytes(path.read_bytes().replace(b'"who":', b'"who": ', 1))

    with pytest.raises(StoreError):
        verify(path)


def test_a_full_disk_leaves_the_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an entry is taken back, and who asked is told."""
    path = tmp_path / "audit.jsonl"
    log = filled(path)
    before, write = path.read_bytes(), os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) < 50:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[: len(data) - 40])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StoreError, match="make room"):
            log.append(9, "token", "drift.acknowledge", {})

    assert path.read_bytes() == before


def test_two_writers_make_one_chain(tmp_path: Path) -> None:
    """Threads with a log of their own each never write over one another."""
    path = tmp_path / "audit.jsonl"
    threads = [threading.Thread(target=filled, args=(path, 25)) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert verify(path).number == 100


def test_a_detail_that_is_too_long_is_left_out(tmp_path: Path) -> None:
    """A client's text cannot make a line that the log itself refuses later."""
    log = AuditLog(tmp_path / "audit.jsonl")
    entry = log.append(1, "token", "deployment.announce", {"note": "x" * MAX_LINE})
    log.append(2, "token", "deployment.announce", {"note": "short"})

    assert "left_out" in entry.detail
    assert verify(log.path).number == 2


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Whoever can write the folder cannot make the log grow in another file."""
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(StoreError):
        AuditLog(tmp_path / "audit.jsonl").append(1, "token", "drift.acknowledge", {})
    assert (tmp_path / "elsewhere").read_bytes() == b""


def test_a_foreign_end_is_not_built_upon(tmp_path: Path) -> None:
    """A log whose last line is not ours is refused with the remedy."""
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"hello": 1}\n')

    with pytest.raises(StoreError, match="sidecar audit verify"):
        filled(path)


def test_the_command_says_where_the_chain_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sidecar audit verify` prints a head that it takes back, and exits 2 where it breaks."""
    path = tmp_path / "audit.jsonl"
    head = filled(path).head()

    assert cli.main(["audit", "verify", str(path)]) == 0
    printed = capsys.readouterr().out.split()[-1]
    assert printed == f"5:{head.hash}"
    assert cli.main(["audit", "verify", str(path), "--head", printed]) == 0
    path.write_bytes(path.read_bytes().replace(b"canary", b"replica", 1))
    assert cli.main(["audit", "verify", str(path)]) == 2
    assert "line 1: entry 1 was changed" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_began_belongs_to_whose_folder_it_is(tmp_path: Path) -> None:
    """`sudo sidecar control` before the first entry must not lock the sidecar out of its log."""
    os.chown(tmp_path, 65532, 65532)
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append(1, "uid 0", "control.write", {})

    found = log.path.stat()
    assert (found.st_uid, found.st_gid) == (65532, 65532)
