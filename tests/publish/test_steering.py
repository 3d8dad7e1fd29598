"""Who steers the tap is in the audit log, whichever way the control was written."""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sidecar import cli
from sidecar.config import ExporterConfig
from sidecar.errors import StoreError
from sidecar.publish.app import create_state
from sidecar.publish.guard.guard import create_guard
from sidecar.publish.steering import Steering
from sidecar.store.audit import Entry, verify
from sidecar.wire import control
from sidecar.wire.control import Control


class Written:
    """A log in memory; `trouble` refuses entries."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str, Mapping[str, Any]]] = []
        self.trouble = ""

    def append(self, t_ns: int, who: str, action: str, detail: dict[str, Any]) -> Entry:
        if self.trouble:
            raise StoreError(self.trouble)
        self.entries.append((who, action, detail))
        return Entry(len(self.entries), t_ns, who, action, detail, "", "")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.json"


@pytest.fixture
def log() -> Written:
    return Written()


@pytest.fixture
def steering(path: Path, log: Written) -> Steering:
    return Steering(path, log, clock_ns=lambda: 5)


def test_a_file_that_somebody_wrote_is_told_once(
    steering: Steering, path: Path, log: Written
) -> None:
    """With its owner, its revision and its wishes; nothing before there is one."""
    steering.look()
    assert log.entries == []
    control.write(path, Control(revision="incident-42", is_on=False))
    for _ in range(3):
        steering.look()

    (who, action, detail), *rest = log.entries
    assert rest == []
    assert (who, action) == (f"uid {os.getuid()}", "control.seen")
    assert detail == {
        "file": str(path),
        "wishes": {"revision": "incident-42", "is_on": False},
    }


def test_each_change_and_the_end_are_told(steering: Steering, path: Path, log: Written) -> None:
    """Another wish, a file that no tap obeys, and none at all."""
    control.write(path, Control(steps_every=2))
    steering.look()
    path.write_text('{"is_on": "perhaps"}')
    steering.look()
    path.unlink()
    steering.look()
    told = [detail for _, _, detail in log.entries]

    assert told[0]["wishes"]["steps_every"] == 2
    assert "is_on" in told[1]["not_read"]
    assert told[2] == {"file": str(path), "removed": True}


def test_what_could_not_be_told_is_told_later(
    steering: Steering, path: Path, log: Written, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk is logged once, and the change stands in the log as soon as there is room."""
    control.write(path, Control(steps_every=2))
    log.trouble = "no room"
    with caplog.at_level(logging.ERROR):
        steering.look()
        steering.look()
    assert [record.getMessage() for record in caplog.records] == [
        "a change of the control is not in the audit log yet: no room"
    ]
    log.trouble = ""
    steering.look()

    assert [action for _, action, _ in log.entries] == ["control.seen"]


def test_a_sidecar_tells_of_a_command_and_of_an_editor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command says beforehand what it will do, the sidecar what came into force; one chain."""
    folder, file = tmp_path / "state", tmp_path / "control.json"
    environ = {
        "SIDECAR_SOCKET": str(tmp_path / "s.sock"),
        "SIDECAR_STATE_DIR": str(folder),
        "SIDECAR_CONTROL_FILE": str(file),
    }
    config = ExporterConfig.read(environ)
    state = create_state(config, create_guard(config))
    state.start()
    try:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        assert cli.main(["control", "--off"]) == 0
        wait_for(folder, 2)
        file.write_text('{"attention_every": 7}')
        wait_for(folder, 3)
    finally:
        state.stop()
    told = entries(folder)

    assert [each["action"] for each in told] == ["control.write", "control.seen", "control.seen"]
    assert told[0]["detail"]["wishes"]["is_on"] is False
    assert told[1]["detail"]["wishes"]["is_on"] is False
    assert told[2]["detail"]["wishes"]["attention_every"] == 7
    assert verify(folder / "audit.jsonl").number == 3


def entries(folder: Path) -> list[dict[str, Any]]:
    """What the log in `folder` holds so far."""
    file = folder / "audit.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(folder: Path, num: int) -> None:
    """Until the log has so many entries."""
    until = time.monotonic() + 60.0
    while len(entries(folder)) < num:
        assert time.monotonic() < until, f"no {num} entries within a minute"
        time.sleep(0.02)
