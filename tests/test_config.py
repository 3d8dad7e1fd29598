"""Configuration: read once, validated once, every refusal with its remedy."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from sidecar.config import (
    API_PORT,
    METRICS_PORT,
    ExporterConfig,
    Shared,
    TapConfig,
    default_socket,
    is_tap_on,
)
from sidecar.errors import ConfigError


def test_an_empty_environment_gives_the_defaults() -> None:
    """Nothing needs to be configured."""
    exporter, tap = ExporterConfig.read({}), TapConfig.read({})

    assert (exporter.metrics_port, exporter.api_port) == (METRICS_PORT, API_PORT)
    assert exporter.api_host == "127.0.0.1"
    assert exporter.socket == tap.socket == default_socket()
    assert tap.tap is False


def test_each_side_reads_its_own_keys() -> None:
    """One environment serves both sides; foreign variables are none of our business."""
    environ = {"SIDECAR_TAP": "1", "SIDECAR_METRICS_PORT": "1234", "PATH": "/bin", "sidecar_x": "1"}

    assert ExporterConfig.read(environ).metrics_port == 1234
    assert TapConfig.read(environ).tap is True


def test_additional_config_wins_over_the_environment() -> None:
    """What vLLM was told on its command line is the last word."""
    tap = TapConfig.read({"SIDECAR_FLUSH_SECONDS": "2"}, {"flush_seconds": 3, "tap": True})

    assert (tap.flush_seconds, tap.tap) == (3.0, True)


def test_an_unknown_key_is_refused_with_the_nearest_one() -> None:
    """A typing error is not silence."""
    with pytest.raises(
        ConfigError, match="SIDECAR_METRIC_PORT: unknown key; did you mean SIDECAR_"
    ):
        ExporterConfig.read({"SIDECAR_METRIC_PORT": "1"})
    with pytest.raises(ConfigError, match="flush_secnds: unknown key; did you mean flush_seconds"):
        TapConfig.read({}, {"flush_secnds": 1})


def test_an_unknown_key_without_a_near_one_lists_all() -> None:
    """The operator sees what there is."""
    with pytest.raises(ConfigError, match=r"known keys: SIDECAR_ADAPTERS, .*SIDECAR_TAP"):
        ExporterConfig.read({"SIDECAR_ZZZZZZZZZZZZZZZZZZZZ": "1"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("METRICS_PORT", "http"),
        ("METRICS_PORT", "65536"),
        ("API_PORT", "-1"),
        ("SERIES_CAP", "0"),
        ("SERIES_CAP", "1000001"),
        ("STALE_SECONDS", "0.5"),
        ("STALE_SECONDS", "nan"),
        ("MAX_AGE_SECONDS", "inf"),
        ("PRESET", "fast"),
        ("WINDOW_SECONDS", "0"),
        ("WINDOW_SECONDS", "nan"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: str) -> None:
    """The message names the key and repeats the value."""
    with pytest.raises(ConfigError, match=f"SIDECAR_{name}='{value}': Input should be"):
        ExporterConfig.read({f"SIDECAR_{name}": value})


def test_every_fault_is_told_at_once() -> None:
    """Nobody fixes one key to learn of the next."""
    with pytest.raises(ConfigError, match=r"SIDECAR_METRICS_PORT=.*; SIDECAR_API_PORT="):
        ExporterConfig.read({"SIDECAR_METRICS_PORT": "x", "SIDECAR_API_PORT": "y"})


def test_a_configuration_is_frozen() -> None:
    """What was validated is what is used."""
    with pytest.raises(ValidationError, match="frozen"):
        ExporterConfig.read({}).metrics_port = 1


def test_a_key_file_gives_its_bytes(tmp_path: Path) -> None:
    """Without the newline that editors add."""
    file = tmp_path / "key"
    file.write_bytes(b"0123456789abcdef\n")

    assert Shared(key_file=file).key() == b"0123456789abcdef"
    assert Shared(canary_key_file=file).canary_key() == b"0123456789abcdef"
    assert Shared().key() is Shared().canary_key() is None


def test_a_key_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """Missing, a folder, or too short to be a secret."""
    (tmp_path / "short").write_bytes(b"0123456789abcde\n")

    for name, message in (("none", "No such file"), ("", "Is a dir"), ("short", "fewer than 16")):
        with pytest.raises(ConfigError, match=f"SIDECAR_KEY_FILE: .*{message}"):
            Shared(key_file=tmp_path / name).key()
        with pytest.raises(ConfigError, match=f"SIDECAR_CANARY_KEY_FILE: .*{message}"):
            Shared(canary_key_file=tmp_path / name).canary_key()


@pytest.mark.parametrize("value", ["", "0", "false", "No", " off "])
def test_the_tap_is_off_unless_told(value: str) -> None:
    """Absent or any word for no."""
    assert not is_tap_on({})
    assert not is_tap_on({"SIDECAR_TAP": value})


@pytest.mark.parametrize("value", ["1", "true", "on", "yes"])
def test_the_tap_is_on_when_told(value: str) -> None:
    """Any word for yes, read alike by the cheap test and by the configuration."""
    assert is_tap_on({"SIDECAR_TAP": value})
    assert TapConfig.read({"SIDECAR_TAP": value}).tap


def test_both_sides_of_one_user_meet() -> None:
    """The default path is under /run, or in a folder of this user's alone."""
    folder = default_socket().parent

    assert str(folder) in ("/run/llm-internals", f"/tmp/llm-internals-{os.getuid()}")


@pytest.mark.parametrize(
    "name",
    [
        "SIDECAR_SERVICE_HOST",
        "SIDECAR_SERVICE_PORT_METRICS",
        "SIDECAR_PORT",
        "SIDECAR_PORT_9478_TCP",
    ],
)
def test_what_kubernetes_adds_for_a_service_of_this_name_is_passed_over(name: str) -> None:
    """A Service named `sidecar` does not stop the sidecar or the tap."""
    environ = {name: "tcp://10.0.0.1:9478"}

    assert ExporterConfig.read(environ) == ExporterConfig.read({})
    assert TapConfig.read(environ) == TapConfig.read({})


def test_the_demo_preset_shortens_windows_unless_told_otherwise() -> None:
    """A length that was given wins over the preset, even when it is the default's."""
    demo = {"SIDECAR_PRESET": "demo"}

    assert ExporterConfig.read({}).window_ns == 300 * 10**9
    assert ExporterConfig.read(demo).window_ns == 5 * 10**9
    assert ExporterConfig.read({**demo, "SIDECAR_WINDOW_SECONDS": "300"}).window_ns == 300 * 10**9
    assert [ExporterConfig.read(given).is_demo for given in ({}, demo)] == [False, True]
