"""`sidecar canary`, as typed."""

from pathlib import Path

import pytest

from sidecar.cli import main
from tests.publish.canary.openai_server import OpenAiServer


def test_the_bundled_suite_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Every prompt by name, and the digest that a reference is of."""
    assert main(["canary", "suite"]) == 0

    told = capsys.readouterr().out
    assert "greeting-weather" in told
    assert "32 prompts of 4 routes (chat, code, extract, summary)" in told


def test_a_bad_suite_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With its place, and status 2."""
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "a", "colour": 1}\n')

    assert main(["canary", "suite", str(path)]) == 2
    assert f"{path}:1" in capsys.readouterr().err


def test_one_round_is_replayed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 0 when it was complete, 1 when it was not."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 32)
    monkeypatch.setenv("SIDECAR_CANARY_KEY_FILE", str(secret))
    monkeypatch.setenv("SIDECAR_CANARY_RATE", "1000")
    with OpenAiServer() as server:
        monkeypatch.setenv("SIDECAR_CANARY_URL", server.url)
        assert main(["canary", "once"]) == 0
        assert capsys.readouterr().out == "complete: 32 of 32 prompts answered\n"

        server.fails = (400, b"no")
        assert main(["canary", "once"]) == 1
        assert "failed_rejected: 0 of 32 prompts answered; HTTP 400" in capsys.readouterr().out


def test_once_needs_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    """And says which keys to set."""
    assert main(["canary", "once"]) == 2
    assert "SIDECAR_CANARY_URL and SIDECAR_CANARY_KEY_FILE" in capsys.readouterr().err
