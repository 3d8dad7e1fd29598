"""The demo from start to end, over fake servers: what it prints, and what it leaves (nothing)."""

import itertools
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.demo import launcher, preflight

Start = Callable[..., Any]


def test_shows_every_layer_and_serves_requests_until_the_time_is_over(demo: Start) -> None:
    """With --seconds the demo shows all layers, counts requests, ends by itself and exits 0."""
    run = demo("--seconds", "2")
    assert run.end() == 0
    last_table = run.text[run.text.rindex("tap: ") :]
    assert "tap: live (engine-dp0-pp0-tp0)" in last_table
    layers = [line.split()[0] for line in last_table.splitlines() if line.startswith("    ")]
    assert [layer for layer in layers if layer.isdigit()] == ["0", "1", "2"]
    served = int(last_table.partition("requests: ")[2].split()[0])
    assert served > 10
    assert f"requests: {served} served, 0 failed" in last_table
    assert run.survivors() == []
    assert run.left_files() == []


def test_a_typed_t_has_the_model_tampered_with(demo: Start) -> None:
    """At a terminal, once; what was done stands under what the canary says."""
    terminal, stdin = pty.openpty()
    run = demo(stdin=stdin)
    run.read_until("type t and Enter")
    os.write(terminal, b"what?\n")
    os.write(terminal, b"t\n")
    run.read_until("tampered with layer 1")
    assert run.end(signal.SIGINT) == 0
    assert "canary: armed   hard rule only" in run.text
    assert "could not" not in run.text
    for end in (terminal, stdin):
        os.close(end)


def test_elsewhere_than_at_a_terminal_nothing_is_read(demo: Start) -> None:
    """Words in a pipe are nobody's wish."""
    reading, writing = os.pipe()
    os.write(writing, b"t\n")
    run = demo("--seconds", "3", stdin=reading)
    assert run.end() == 0
    assert "canary: armed" in run.text
    assert "tampered with layer" not in run.text
    for end in (reading, writing):
        os.close(end)


def test_names_every_address_once_ready(demo: Start) -> None:
    """Once both servers answer, the URLs of vLLM, metrics, health and the API are printed."""
    run = demo("--seconds", "0")
    assert run.end() == 0
    for path in ("/v1/models", "/metrics", "/readyz", "/v1/status", "/v1/layers"):
        assert path in run.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything(demo: Start, number: int) -> None:
    """Ctrl-C, SIGTERM and a hang-up end every process, remove the folder and exit 0."""
    run = demo()
    run.read_until("served")
    assert len(run.survivors()) == 3  # the demo and its two servers
    assert run.end(number) == 0
    assert run.survivors() == []
    assert run.left_files() == []


def test_a_signal_during_the_start_ends_everything(demo: Start) -> None:
    """Stopped before it is ready, the demo leaves nothing either, and exits 130."""
    run = demo("--vllm=--delay 60")
    run.read_until("vLLM: loading weights")
    assert run.end(signal.SIGINT) == 130
    assert run.survivors() == []
    assert run.left_files() == []


def test_servers_that_ignore_sigterm_are_killed_with_their_children(demo: Start) -> None:
    """A server deaf to SIGTERM and its deaf child, in a group of its own, are killed."""
    run = demo("--grace", "0.5", "--vllm=--deaf --brood")
    run.read_until("served")
    assert len(run.survivors()) == 4
    assert run.end(signal.SIGTERM) == 0
    assert run.survivors() == []


def test_a_killed_demo_takes_its_servers_along(demo: Start) -> None:
    """kill -9 of the demo itself ends its servers too, through the kernel."""
    run = demo()
    run.read_until("served")
    run.process.kill()
    deadline = time.monotonic() + 10
    while run.survivors() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert run.survivors() == []


@pytest.mark.parametrize("delay", ["60", "0"], ids=["starting", "serving"])
def test_a_server_that_dies_shows_its_log(demo: Start, delay: str) -> None:
    """A server's death ends the demo with 1, the end of its log and the path of the log."""
    run = demo(f"--vllm=--delay {delay} --die 1.5")
    assert run.end() == 1
    assert f"vLLM ended with status 3; the end of {run.cache / 'vLLM.log'}:" in run.text
    assert "  | last words" in run.text
    assert run.survivors() == []
    assert run.left_files() == []


def test_a_slow_start_is_never_silent(demo: Start) -> None:
    """While a server takes 9 s to start, something is said at least every 5 s or so."""
    run = demo("--seconds", "0", "--vllm=--delay 9")
    began = time.monotonic()
    assert run.end() == 0
    moments = [began, *(moment for moment, _ in run.printed)]
    assert moments[-1] - began > 9
    assert max(late - early for early, late in itertools.pairwise(moments)) < 8
    assert run.text.count("vLLM: loading weights") >= 2


def test_a_machine_that_lacks_something_gets_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A port in use is one line on stderr that names the remedy, and nothing is started."""
    for name in preflight.MODEL_FILES:
        (tmp_path / name).touch()
    machine = preflight.this_machine()._replace(free_bytes=lambda path: 1 << 40)
    monkeypatch.setattr(preflight, "this_machine", lambda: machine)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert launcher.main(["--model", str(tmp_path), "--port", str(port)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "port " in line] == [
        f"sidecar demo: port {port} is in use: give another with --port PORT, or end what uses it"
    ]


def test_the_demo_process_loads_no_torch() -> None:
    """Neither torch nor vLLM nor transformers is imported by the launcher or a session."""
    code = (
        "import sys; from sidecar.demo import launcher, session; "
        "print([name for name in ('torch', 'vllm', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
