"""The demo's command line."""

from pathlib import Path

import pytest

from sidecar.demo.options import MODEL, default_cache, parse


def test_without_arguments_the_documented_defaults_hold() -> None:
    """vLLM on 8000, metrics on 9478, the API on 9479, two requests a second, no time limit."""
    options = parse([], {})
    assert (options.port, options.metrics_port, options.api_port) == (8000, 9478, 9479)
    assert (options.rate, options.seconds, options.seed) == (2.0, None, 0)
    assert options.model == MODEL
    assert options.vllm_url == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "0"], "use 1 to 65535"),
        (["--port", "x"], "invalid"),
        (["--rate", "51"], "not within 0 to 50"),
        (["--rate", "nan"], "not within 0 to 50"),
        (["--seconds", "-1"], "not within"),
        (["--speed", "2"], "unrecognized"),
    ],
)
def test_bad_values_are_refused_with_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value out of range, or an unknown option, ends with 2 and says what is wrong."""
    with pytest.raises(SystemExit) as caught:
        parse(arguments, {})
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_folders_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Relative folders mean the current directory, also for servers started elsewhere."""
    monkeypatch.chdir(tmp_path)
    options = parse(["--model", "m", "--cache-dir", "c"], {})
    assert (options.model, options.cache) == (tmp_path / "m", tmp_path / "c")


def test_a_clone_keeps_its_cache_inside() -> None:
    """Run from a clone, compiled graphs and logs stay in its .cache folder."""
    assert default_cache({}) == Path(__file__).parents[2] / ".cache"
