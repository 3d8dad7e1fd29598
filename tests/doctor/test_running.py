"""What the doctor makes of the answers of a sidecar and of Prometheus."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar import cli
from sidecar.doctor import running
from sidecar.doctor.finding import Finding, Level
from sidecar.wire.channel import Sender
from sidecar.wire.frame import Source
from sidecar.wire.synthetic import SyntheticEngine
from tests.publish.test_server import Served, eventually


def answers(**told: Any) -> running.Ask:
    """Somebody who answers so, by the last word of the path; nothing else is there."""

    def ask(url: str) -> Any:
        word = url.split("?", maxsplit=1)[0].rsplit("/", 1)[1]
        if word not in told:
            raise OSError("Connection refused")
        return told[word]

    return ask


def status(**changed: Any) -> dict[str, Any]:
    """A status without a fault, and what differs from it."""
    engine = {"source": "engine-0", "role": "engine", "state": "live", "detail": "", "reason": ""}
    told: dict[str, Any] = {
        "version": "1", "frames_refused": {"mac": 0}, "sources": [engine], "reasons": [],
    }  # fmt: skip
    return {**told, **changed}


def levels(findings: list[Finding]) -> dict[str, Level]:
    return {each.subject: each.level for each in findings}


def test_a_sidecar_without_a_fault() -> None:
    """Nothing but what is well."""
    findings = list(running.exporter(answers(status=status()), "http://s"))

    assert levels(findings) == {"sidecar": Level.OK, "tap engine-0": Level.OK}


def test_nobody_answers() -> None:
    """Not wrong: it may not have been started yet."""
    [found] = running.exporter(answers(), "http://s")

    assert found.level is Level.UNKNOWN
    assert "sidecar serve" in found.remedy


@pytest.mark.parametrize("state", ["dead", "refused", "disarmed"])
def test_a_tap_that_is_not_live_is_wrong(state: str) -> None:
    """With its own reason."""
    engine = {"source": "e", "role": "engine", "state": state, "detail": "why", "reason": ""}
    findings = list(running.exporter(answers(status=status(sources=[engine])), "http://s"))

    [found] = [each for each in findings if each.subject == "tap e"]
    assert found == Finding(Level.WRONG, "tap e", f"{state}: why", "docs/support.md")


def test_no_engine_and_refused_frames_are_told() -> None:
    """Each with what it usually means."""
    told = status(sources=[], frames_refused={"schema": 3, "mac": 0}, reasons=["no data"])
    findings = list(running.exporter(answers(status=told), "http://s"))

    assert levels(findings)["tap"] is Level.WARN
    [frames] = [each for each in findings if each.subject == "frames"]
    assert (frames.sentence, frames.remedy) == (
        "refused so far: 3 schema",
        "install one release on both sides",
    )


def test_prometheus_that_scrapes_and_alerts() -> None:
    """The number of both is told."""
    query = {"data": {"result": [{"metric": {"instance": "pod:9478"}}]}}
    rules = {"data": {"groups": [{"name": "llm-internals", "rules": [1, 2]}, {"name": "x"}]}}
    findings = list(running.prometheus(answers(query=query, rules=rules), "http://p"))

    assert [each.level for each in findings] == [Level.OK, Level.OK]
    assert findings[1].sentence == "2 rules are loaded"


def test_prometheus_that_does_not() -> None:
    """No target is wrong, no rule is worth a word."""
    empty = answers(query={"data": {"result": []}}, rules={"data": {"groups": []}})

    assert [f.level for f in running.prometheus(empty, "http://p")] == [Level.WRONG, Level.WARN]
    assert [f.level for f in running.prometheus(answers(), "http://p")] == [Level.WRONG]


def test_the_command_on_a_running_sidecar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds the socket, the sidecar and its tap; status 0. With a wrong key, 1."""
    path = tmp_path / "run" / "i.sock"
    monkeypatch.setenv("SIDECAR_SOCKET", str(path))
    served = Served(path)
    try:
        sender = Sender(path, Source("engine"))
        eventually(lambda: sender.send(SyntheticEngine().status()), 60)
        eventually(lambda: bool(served.status()["sources"]), 60)

        assert cli.main(["doctor", "--url", served.api_url]) == 0
        told = capsys.readouterr().out
        assert f"a sidecar listens at {path}" in told
        assert "tap engine-dp0-pp0-tp0: live" in told
        assert told.endswith("nothing is wrong\n")
        monkeypatch.setenv("SIDECAR_KEY_FILE", "/nonexistent")
        assert cli.main(["doctor", "--url", served.api_url]) == 1
        assert "-> mount the secret" in capsys.readouterr().out
        sender.close()
    finally:
        served.close()


def test_findings_have_a_remedy_where_one_is_needed() -> None:
    """Whatever is wrong says what to do."""
    cases: list[Callable[[], list[Finding]]] = [
        lambda: list(running.exporter(answers(), "u")),
        lambda: list(running.prometheus(answers(), "u")),
    ]
    assert all(found.remedy for case in cases for found in case())
