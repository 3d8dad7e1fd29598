"""The command `sidecar`."""

import subprocess
import sys
from pathlib import Path

import pytest

import sidecar
from sidecar import cli
from sidecar.commands.serve import exporter_config
from sidecar.config import ExporterConfig
from sidecar.publish.metrics.reference import reference
from sidecar.wire.frame import SCHEMA
from sidecar.wire.signals import METRICS

REFERENCE = Path(__file__).parents[1] / "docs" / "metrics.md"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sidecar", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_the_metrics_reference_is_up_to_date() -> None:
    """docs/metrics.md is what `sidecar metrics` prints."""
    assert reference() == REFERENCE.read_text(), "run: sidecar metrics > docs/metrics.md"


def test_the_reference_names_every_family(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its help, labels, and what is normal."""
    assert cli.main(["metrics"]) == 0
    printed = capsys.readouterr().out

    for metric in METRICS:
        assert f"### {metric.name}\n\n{metric.help}" in printed
        assert metric.normal in printed


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """With the schema, since both sides must agree on it."""
    assert cli.main(["version"]) == 0

    assert capsys.readouterr().out == f"sidecar {sidecar.__version__} (wire schema {SCHEMA})\n"


def test_base_dependencies_suffice_for_the_reference() -> None:
    """`metrics` and `version` run where fastapi and prometheus_client cannot be imported."""
    code = (
        "import sys\n"
        "for name in ('fastapi', 'starlette', 'uvicorn', 'prometheus_client', 'torch'):\n"
        "    sys.modules[name] = None\n"
        "from sidecar.cli import main\n"
        "sys.exit(main(['metrics']) or main(['version']) or main(['serve']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )

    assert done.stdout.startswith("# Metrics")
    assert done.stdout.endswith(f"(wire schema {SCHEMA})\n")
    assert done.returncode == 2
    assert "pip install 'llm-internals-sidecar[exporter]'" in done.stderr


@pytest.mark.parametrize("key", ExporterConfig.model_fields)
def test_every_key_is_an_option(key: str) -> None:
    """`--metrics-port` for SIDECAR_METRICS_PORT, and so on."""
    parsed = cli._parser().parse_args(["serve", f"--{key.replace('_', '-')}", "7"])

    assert getattr(parsed, key) == "7"


def test_an_option_wins_over_the_environment() -> None:
    """What is typed last counts."""
    environ = {"SIDECAR_METRICS_PORT": "1", "SIDECAR_API_PORT": "2"}
    parsed = cli._parser().parse_args(["serve", "--metrics-port", "3"])
    config = exporter_config(parsed, environ)

    assert (config.metrics_port, config.api_port) == (3, 2)


def test_a_wrong_value_is_one_line_and_status_two() -> None:
    """No traceback for a mistake of the operator's."""
    done = run("serve", "--metrics-port", "http")

    assert done.returncode == 2
    assert done.stderr.startswith("sidecar: SIDECAR_METRICS_PORT='http': Input should be")
    assert done.stderr.count("\n") == 1


def test_no_command_is_a_usage_error() -> None:
    """The commands are listed."""
    done = run()

    assert done.returncode == 2
    assert "COMMAND" in done.stderr
