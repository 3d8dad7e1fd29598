"""`sidecar control`: writes what is typed, prints what is asked, and says what is wrong."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar import cli
from sidecar.store.audit import verify
from sidecar.wire import control
from sidecar.wire.control import Control


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The control that the environment leads to: beside the socket."""
    monkeypatch.setenv("SIDECAR_SOCKET", str(tmp_path / "run" / "ingest.sock"))
    return tmp_path / "run" / "control.json"


def test_wishes_add_up_until_they_are_cleared(path: Path, capsys) -> None:
    """Each command changes what it names, and prints the whole of it."""
    assert cli.main(["control", "--off", "--layers", "0,5,11"]) == 0
    assert cli.main(["control", "--attention-every", "64", "--attention-requests", "2"]) == 0
    assert cli.main(["control", "--steps-every", "2", "--confidence-every", "0"]) == 0
    asked = control.read(path)
    assert asked is not None
    assert asked == Control(
        revision=asked.revision,
        is_on=False,
        layers=[0, 5, 11],
        steps_every=2,
        attention_every=64,
        attention_requests=2,
        confidence_every=0,
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    head, _, document = capsys.readouterr().out.rpartition(f"{path}: ")[2].partition("\n")
    assert head == f"revision {asked.revision}"
    assert json.loads(document) == json.loads(control.encode(asked))

    assert cli.main(["control", "--on", "--layers", "all", "--steps-every", "null"]) == 0
    asked = control.read(path)
    assert asked is not None
    assert (asked.is_on, asked.layers, asked.steps_every) == (True, None, None)
    assert asked.attention_every == 64
    assert cli.main(["control", "--clear", "--off"]) == 0
    assert control.change(control.read(path), {}) == Control(is_on=False)
    assert cli.main(["control", "--clear"]) == 0
    assert not path.exists()
    assert capsys.readouterr().out.endswith("no control; the configuration is in force\n")


def test_without_a_word_it_shows_and_changes_nothing(path: Path, capsys) -> None:
    """With --show or without."""
    control.write(path, Control(revision="mine", attention_every=7))
    before = path.stat()  # but for the time of access: a look is a look
    for arguments in ([], ["--show"]):
        assert cli.main(["control", *arguments]) == 0
        assert '"attention_every": 7' in capsys.readouterr().out
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )


def test_the_file_is_where_it_is_said_to_be(path: Path, tmp_path: Path, monkeypatch) -> None:
    """--file wins over the environment's key, and that over the socket's folder."""
    named, given = tmp_path / "named.json", tmp_path / "given.json"
    monkeypatch.setenv("SIDECAR_CONTROL_FILE", str(named))
    assert cli.main(["control", "--off"]) == 0
    assert cli.main(["control", "--off", "--file", str(given)]) == 0
    assert (named.exists(), given.exists(), path.exists()) == (True, True, False)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--attention-every", "often"], "attention_every"),
        (["--attention-every", "-3"], "attention_every"),
        (["--steps-every", "0"], "steps_every"),
        (["--attention-requests", "100000"], "attention_requests"),
        (["--layers", "0,five"], "layers"),
        (["--layers", ""], "layers"),
        (["--layers", "-1"], "layers"),
    ],
)
def test_a_bad_value_is_one_line_and_status_two(path: Path, capsys, arguments, named) -> None:
    """Named, with where to read on; and nothing is written."""
    assert cli.main(["control", *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("sidecar: ")
    assert said.err.count("\n") == 1
    assert named in said.err
    assert "docs/control.md" in said.err
    assert said.out == ""
    assert not path.exists()


def test_off_and_on_at_once_is_a_usage_error(path: Path) -> None:
    """One of them is a mistake."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["control", "--off", "--on"])
    assert exit_.value.code == 2


def test_a_file_that_cannot_be_used_is_named_with_the_way_out(path: Path, capsys) -> None:
    """And the way out works."""
    path.parent.mkdir()
    path.write_text("{")
    assert cli.main(["control", "--off"]) == 2
    said = capsys.readouterr().err
    assert str(path) in said
    assert "sidecar control --clear" in said
    assert cli.main(["control", "--clear", "--off"]) == 0
    assert control.change(control.read(path), {}) == Control(is_on=False)


def test_it_runs_without_torch_and_without_the_exporter(path: Path) -> None:
    """An operator's shell has the base dependencies only."""
    code = (
        "import sys\n"
        "for name in ('torch', 'vllm', 'fastapi', 'prometheus_client'):\n"
        "    sys.modules[name] = None\n"
        "from sidecar.cli import main\n"
        "sys.exit(main(['control', '--off']))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=os.environ, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert path.exists()


def test_a_scan_asked_for_again_is_another_wish(path: Path, capsys) -> None:
    """The number stays, and what is asked beside it; the id is a new one each time."""
    assert cli.main(["control", "--layers", "0,5"]) == 0
    ids = set()
    for _ in range(2):
        assert cli.main(["control", "--scan", "3"]) == 0
        asked = control.read(path)
        assert asked is not None
        assert (asked.scan_requests, asked.layers) == (3, [0, 5])
        ids.add(asked.scan_id)
    assert cli.main(["control", "--attention-every", "8"]) == 0
    kept = control.read(path)

    assert len(ids) == 2
    assert kept is not None
    assert (kept.scan_requests, kept.scan_id) == (3, asked.scan_id)
    assert cli.main(["control", "--scan", "65"]) == 2
    assert "scan_requests" in capsys.readouterr().err


def test_a_change_is_in_the_audit_log_before_it_is_done(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who, which file, and every wish; a look is no entry."""
    monkeypatch.setenv("SIDECAR_STATE_DIR", str(tmp_path / "state"))
    for arguments in (["--off"], ["--show"], ["--layers", "0,5"], ["--clear"]):
        assert cli.main(["control", *arguments]) == 0
    log = tmp_path / "state" / "audit.jsonl"
    told = [json.loads(line) for line in log.read_text().splitlines()]

    assert [each["action"] for each in told] == ["control.write"] * 2 + ["control.clear"]
    assert {each["who"] for each in told} == {f"uid {os.getuid()}"}
    assert told[1]["detail"]["file"] == str(path)
    assert told[1]["detail"]["wishes"] == {"is_on": False, "layers": [0, 5]}
    assert verify(log).number == 3


@pytest.mark.parametrize("arguments", [["--on"], ["--clear"]])
def test_without_an_entry_nothing_is_changed(path: Path, tmp_path: Path, capsys, arguments) -> None:
    """A log that cannot be written is one line and status 2; the wishes before stay in force."""
    control.write(path, Control(is_on=False))
    folder = tmp_path / "state"
    folder.write_text("no folder")
    assert cli.main(["control", "--state-dir", str(folder), *arguments]) == 2

    assert "audit log" in capsys.readouterr().err
    assert control.change(control.read(path), {}) == Control(is_on=False)
