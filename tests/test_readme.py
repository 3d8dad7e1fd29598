"""What the README says is still so."""

import re
from pathlib import Path

import pytest

from sidecar.config import ExporterConfig, FleetConfig, TapConfig
from sidecar.tap.vllm.plugin import PLUGIN_NAME
from sidecar.wire.signals import FLEET_METRICS, METRICS, PREFIX

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
SUFFIX = re.compile(r"_(total|sum|count|bucket|info)$")


def test_the_table_of_keys_is_the_configuration() -> None:
    """Every key of all sides stands in the table with its default, and no other does."""
    rows = re.findall(r"^\| `(SIDECAR_\w+)` \| (\w+) \| (.+?) \|", CONFIGURATION, re.MULTILINE)
    both = set(TapConfig.model_fields) & set(ExporterConfig.model_fields)
    expected = {}
    sides = (("fleet", FleetConfig), ("tap", TapConfig), ("sidecar", ExporterConfig))
    for side, config in sides:
        for key, field in config.model_fields.items():
            where = "both" if key in both else side
            expected[f"SIDECAR_{key.upper()}"] = (where, field.default)
    assert {key: side for key, side, _ in rows} == {k: side for k, (side, _) in expected.items()}
    for key, _, told in rows:
        default = expected[key][1]
        if key != "SIDECAR_SOCKET":
            plain = int(default) if isinstance(default, bool) else default
            assert told == ("none" if default in (None, (), "") else f"`{plain}`"), key


def test_every_key_that_the_readme_names_exists() -> None:
    """The README's own short table names no key that the whole table lacks."""
    named = set(re.findall(r"\bSIDECAR_[A-Z]\w*", README))
    assert len(named) > 8
    assert named <= set(re.findall(r"^\| `(SIDECAR_\w+)`", CONFIGURATION, re.MULTILINE))


def test_every_metric_named_exists() -> None:
    """Each family that the README names is in the table of signals."""
    names = {metric.name for metric in (*METRICS, *FLEET_METRICS)}
    named = set(re.findall(rf"\b{PREFIX}\w+", README)) - {PLUGIN_NAME}
    named -= {FleetConfig().fleet_api_label}
    assert len(named) > 8
    unknown = {name for name in named if name not in names and SUFFIX.sub("", name) not in names}
    assert unknown == set()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_and_commands_exist(page: str) -> None:
    """Each linked file exists, and each `make` command is a target of the Makefile."""
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"(?:`|^)make (\w+)", text, re.MULTILINE):
        assert f"\n{command}:" in makefile, command


def test_the_rooms_named_for_contributors_exist() -> None:
    """Each path in CONTRIBUTING's table of rooms is there."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for path in re.findall(r"`((?:sidecar|scripts|tests|bench)/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path
