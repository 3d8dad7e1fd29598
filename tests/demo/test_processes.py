"""One server: its log, its exit, its end."""

import sys
from pathlib import Path

import pytest

from sidecar.demo.processes import TAIL_LINES, Process, Service


def start(tmp_path: Path, code: str) -> Process:
    command = (sys.executable, "-c", code)
    return Process.start(Service("server", command, {}, tmp_path / "logs" / "server.log", ""))


def wait(process: Process) -> int:
    while (code := process.exit_code()) is None:
        pass
    return code


def test_new_lines_are_read_once_and_whole(tmp_path: Path) -> None:
    """Each complete line of the log is returned once; an unfinished one waits for its end."""
    process = start(tmp_path, "print('one'); print('two'); print('thr', end='')")
    wait(process)
    assert process.new_lines() == ["one", "two"]
    assert process.new_lines() == []
    with process.service.log.open("a") as log:
        log.write("ee\n")
    assert process.new_lines() == ["three"]


def test_the_tail_is_the_end_of_the_log(tmp_path: Path) -> None:
    """Errors are in the log too, and the tail holds its last lines, whatever their bytes."""
    code = "import os\nfor n in range(50): print(n, flush=True)\nos.write(2, b'\\xff end\\n')"
    process = start(tmp_path, code)
    wait(process)
    assert len(process.tail()) == TAIL_LINES
    assert process.tail()[-2:] == ["49", "\ufffd end"]


def test_a_signal_is_a_negative_exit_code(tmp_path: Path) -> None:
    """The exit code is None while the server runs, and -15 once SIGTERM ended it."""
    process = start(tmp_path, "import time; time.sleep(60)")
    assert process.exit_code() is None
    process.stop()
    assert process.exit_code() == -15


def test_stopping_an_ended_server_is_harmless(tmp_path: Path) -> None:
    """A server that ended by itself keeps its exit code."""
    process = start(tmp_path, "raise SystemExit(3)")
    assert wait(process) == 3
    process.stop()
    assert process.exit_code() == 3


def test_a_command_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    """Nothing is started, and the error names the command."""
    with pytest.raises(FileNotFoundError, match="no-such-server"):
        Process.start(Service("server", ("/no-such-server",), {}, tmp_path / "log", ""))
