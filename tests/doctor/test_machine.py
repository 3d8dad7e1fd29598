"""What the doctor sees with nothing running, and with a sidecar beside it."""

import os
from pathlib import Path

import pytest

from sidecar.config import ExporterConfig
from sidecar.doctor import machine
from sidecar.doctor.finding import Finding, Level
from sidecar.store.audit import AuditLog
from sidecar.wire.channel import Receiver


def only(findings: list[Finding], subject: str) -> Finding:
    """The one finding about this subject."""
    [found] = [each for each in findings if each.subject == subject]
    return found


def test_the_plugin_is_found_where_vllm_is() -> None:
    """In this environment all is well."""
    findings = list(machine.packages({}))

    assert only(findings, "plugin").level is Level.OK
    assert only(findings, "VLLM_PLUGINS").level is Level.OK


def test_a_list_of_plugins_that_keeps_ours_out_is_wrong() -> None:
    """vLLM would then load nothing of ours, silently."""
    found = only(list(machine.packages({"VLLM_PLUGINS": "other"})), "VLLM_PLUGINS")
    let_in = only(list(machine.packages({"VLLM_PLUGINS": f"a, {machine.PLUGIN}"})), "VLLM_PLUGINS")

    assert (found.level, let_in.level) == (Level.WRONG, Level.OK)
    assert machine.PLUGIN in found.remedy


def test_an_environment_without_vllm_is_said_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter's image has none."""
    monkeypatch.setattr(machine, "_VLLM", ("no-such-distribution",))

    assert only(list(machine.packages({})), "vllm").level is Level.UNKNOWN


def test_a_misspelt_key_is_wrong() -> None:
    """With the words of the error that would end the start."""
    findings = list(machine.settings({"SIDECAR_TAB": "1"}))

    assert only(findings, "settings of the exporter").level is Level.WRONG
    assert "did you mean SIDECAR_TAP?" in only(findings, "settings of the tap").sentence


def test_the_tap_is_on_or_not() -> None:
    """Off is worth a word, on is not."""
    assert only(list(machine.settings({})), "tap").level is Level.WARN
    assert not [f for f in machine.settings({"SIDECAR_TAP": "1"}) if f.subject == "tap"]


def test_the_socket_is_looked_at_and_nothing_is_made(tmp_path: Path) -> None:
    """Absent, then listened at, then left behind."""
    path = tmp_path / "run" / "ingest.sock"
    assert only(list(machine.socket(path)), "socket").level is Level.WARN
    assert not path.parent.exists()

    receiver = Receiver(path)
    assert only(list(machine.socket(path)), "socket").level is Level.OK
    receiver.close()
    assert "no sidecar listens" in only(list(machine.socket(path)), "socket").sentence


@pytest.mark.skipif(os.getuid() != 0, reason="another user's folder needs root")
def test_a_folder_of_somebody_else_is_wrong(tmp_path: Path) -> None:
    """In a place where everybody may create files."""
    tmp_path.chmod(0o1777)
    folder = tmp_path / "run"
    folder.mkdir()
    os.chown(folder, 12345, 12345)

    assert only(list(machine.socket(folder / "i.sock")), "socket").level is Level.WRONG


def test_keys_are_to_be_read_by_us_alone(tmp_path: Path) -> None:
    """Absent is wrong, open to everybody is worth a word."""
    key = tmp_path / "key"

    def found() -> Finding:
        config = ExporterConfig(socket=tmp_path / "i.sock", key_file=key)
        return only(list(machine.files(config)), "SIDECAR_KEY_FILE")

    assert found().level is Level.WRONG
    key.write_bytes(b"x" * 32)
    key.chmod(0o644)
    assert found().level is Level.WARN
    key.chmod(0o640)
    assert found().level is Level.OK


def test_state_audit_log_and_baseline(tmp_path: Path) -> None:
    """A broken chain is wrong; what is absent is a word of advice."""
    state = tmp_path / "state"
    config = ExporterConfig(socket=tmp_path / "i.sock", state_dir=state)
    assert only(list(machine.files(config)), "audit log").level is Level.OK

    log = AuditLog(state / "audit.jsonl")
    for note in ("a", "b"):
        log.append(1, "token", "asked", {"note": note})
    assert "2 entries" in only(list(machine.files(config)), "audit log").sentence
    log.path.write_bytes(log.path.read_bytes().replace(b'"a"', b'"c"'))

    findings = list(machine.files(config))
    assert only(findings, "audit log").level is Level.WRONG
    assert only(findings, "state").level is Level.OK
    assert only(findings, "baseline").level is Level.WARN


def test_a_baseline_that_cannot_be_read_is_wrong(tmp_path: Path) -> None:
    """Said before the start would say it."""
    config = ExporterConfig(socket=tmp_path / "i.sock", baseline_file=tmp_path / "none")

    assert only(list(machine.files(config)), "baseline").level is Level.WRONG
