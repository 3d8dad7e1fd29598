"""The entry point: nothing at all unless asked, once if asked, and never an exception."""

import json
import subprocess
import sys
import textwrap
from importlib.metadata import entry_points

import pytest

from sidecar.tap.vllm import plugin
from sidecar.tap.vllm.plugin import is_requested, register
from sidecar.wire.frame import Source, Status
from tests.tap.inbox import pumps

OPTIONS = json.dumps({"sidecar": {"max_errors": 2}})


def fresh(code: str, **environ: str) -> dict[str, object]:
    """What `code` leaves in `report`, run in a new interpreter with nothing of ours loaded."""
    begin, end = "import json, sys, threading\nreport = {}\n", "\nprint(json.dumps(report))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", begin + textwrap.dedent(code) + end],
        env=environ | {"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout) | {"log": done.stderr}


def test_switched_off_it_does_nothing_at_all() -> None:
    """However it is not asked for: no import of torch, zmq or vLLM, no thread, no variable set."""
    report = fresh(
        """
        import os
        before = dict(os.environ)
        from sidecar.tap.vllm.plugin import register
        for value in (None, "0", "off", ""):
            for argv in (
                [],
                ["--additional-config", '{"other": 1}'],
                ["--additional-config", "not json"],
                ["--additional-config", '{"sidecar": {"tap": false}}'],
            ):
                if value is not None:
                    os.environ["SIDECAR_TAP"] = value
                sys.argv = ["vllm", "serve", "model", *argv]
                register()
                os.environ.pop("SIDECAR_TAP", None)
        report["loaded"] = sorted({"torch", "zmq", "vllm", "numpy"} & set(sys.modules))
        report["threads"] = threading.active_count()
        report["environ"] = dict(os.environ) == before
        """
    )
    assert report == {"loaded": [], "threads": 1, "environ": True, "log": ""}


def test_an_unread_release_serves_untapped_and_says_so(socket_path, inbox) -> None:
    """Nothing is patched nor imported; the log says it once, and the sidecar hears it for ever."""
    code = """
        import time
        from sidecar.tap.vllm import releases
        releases.version = lambda name: "0.99.1"
        from sidecar.tap.vllm.plugin import register
        register()
        time.sleep(0.5)
        report["loaded"] = sorted({"torch", "vllm"} & set(sys.modules))
        report["threads"] = sorted(thread.name for thread in threading.enumerate())
        """
    environ = {"SIDECAR_SOCKET": str(socket_path), "SIDECAR_FLUSH_SECONDS": "0.05"}
    report = fresh(code, SIDECAR_TAP="1", **environ)
    assert report["loaded"] == []
    assert report["threads"] == ["MainThread", "sidecar-pump"]
    assert str(report["log"]).count("serving untapped") == 1
    frame = inbox.wait_for(lambda frame: isinstance(frame.body, Status))
    assert frame.header.source == Source("engine")
    assert (frame.body.state, frame.body.reason) == ("refused", "not_supported")
    assert "vLLM 0.99.1 has not been read" in frame.body.detail
    assert frame.body.vllm_version == "0.99.1"


@pytest.mark.parametrize(
    "argv",
    [
        ["--additional-config", OPTIONS],
        [f"--additional-config={OPTIONS}"],
        ["--additional_config", OPTIONS],
        [f"--additional_config={OPTIONS}"],
        ["--port", "8000", "--additional-config", '{"sidecar": {}}', "--dtype", "auto"],
    ],
)
def test_a_request_on_the_command_line_is_passed_on(argv) -> None:
    """In each of vLLM's spellings it switches the tap on, in this process and in its children."""
    environ: dict[str, str] = {}
    assert is_requested(environ, ["vllm", "serve", "model", *argv])
    assert environ == {"SIDECAR_TAP": "1"}
    assert is_requested(environ, ["multiprocessing-fork"])


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--additional-config"],
        ["--additional-config", "{"],
        ["--additional-config", "[]"],
        ["--additional-config", "null"],
        ["--additional-config", '{"sidecar": true}'],
        ["--additional-config", '{"sidecar": {"tap": false}}'],
        ["--additional-config", '{"sidecars": {}}'],
        ["--not-additional-config", OPTIONS],
    ],
)
def test_a_command_line_that_does_not_ask_changes_nothing(argv) -> None:
    """Absent, unreadable or declined: off, and left for vLLM to complain of."""
    environ: dict[str, str] = {}
    assert not is_requested(environ, ["vllm", "serve", "model", *argv])
    assert environ == {}


@pytest.mark.parametrize(
    ("value", "is_on"), [("1", True), ("true", True), ("0", False), ("", False)]
)
def test_the_environment_has_the_last_word(value, is_on) -> None:
    """`SIDECAR_TAP` decides, whatever the command line says."""
    environ = {"SIDECAR_TAP": value}
    assert is_requested(environ, ["vllm", "--additional-config", OPTIONS]) is is_on
    assert environ == {"SIDECAR_TAP": value}


@pytest.mark.parametrize("broken", ["_install", "is_requested"])
def test_register_never_raises(broken, monkeypatch, caplog) -> None:
    """An exception in here would kill vLLM: it is logged, and the engine serves untapped."""

    def fail(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setenv("SIDECAR_TAP", "1")
    monkeypatch.setattr(plugin, broken, fail)
    register()
    assert "serving untapped" in caplog.text
    assert "a bug of ours" in caplog.text


@pytest.mark.parametrize("error", [ImportError("no loggers"), AttributeError("no init_device")])
def test_a_layout_that_does_not_look_as_read_is_refused(
    error, tap_on, installed_vllm, monkeypatch
) -> None:
    """A known release whose parts are elsewhere is refused as an unread one is."""
    from sidecar.tap.vllm import worker

    def fail() -> None:
        raise error

    monkeypatch.setattr(worker, "install", fail)
    register()
    status = tap_on.wait_for(lambda frame: isinstance(frame.body, Status)).body
    assert (status.state, status.reason) == ("refused", "not_supported")
    assert f"unread layout: {error}" in status.detail


def test_only_the_main_process_reports_a_refusal(tap_on, monkeypatch, caplog) -> None:
    """The others would repeat it: they say nothing."""
    monkeypatch.setattr(plugin.multiprocessing, "parent_process", object)
    monkeypatch.setattr("sidecar.tap.vllm.releases.version", lambda name: "0.1.0")
    register()
    assert not pumps()
    assert caplog.text == ""


def test_registering_twice_patches_once(tap_on, installed_vllm, monkeypatch) -> None:
    """vLLM calls plugins in every process, and some of them twice: the patches are idempotent."""
    from vllm.v1.metrics.loggers import StatLoggerManager
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    patched = ((WorkerWrapperBase, "init_device"), (StatLoggerManager, "__init__"))
    originals = [getattr(owner, name) for owner, name in patched]
    for (owner, name), original in zip(patched, originals, strict=True):
        monkeypatch.setattr(owner, name, original)
    register()
    once = [getattr(owner, name) for owner, name in patched]
    register()
    assert [getattr(owner, name) for owner, name in patched] == once
    assert [method.__wrapped__ for method in once] == originals
    assert not pumps()  # nothing is opened before there is a worker


def test_the_installed_entry_point_is_ours() -> None:
    """vLLM finds `register` under the name that an operator gives in VLLM_PLUGINS."""
    (entry,) = (
        entry
        for entry in entry_points(group="vllm.general_plugins")
        if entry.name == plugin.PLUGIN_NAME
    )
    assert entry.load() is register
