"""docs/deploy.md: what a stranger types exists."""

import os
import re
import subprocess
from typing import Any

import yaml

import sidecar
from sidecar import cli
from tests.deploy.chart import CHART, ROOT
from tests.deploy.matrix import EXAMPLES

PAGE = (ROOT / "docs" / "deploy.md").read_text()
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
NAMED = re.compile(r"\b((?:{})(?:\.[a-zA-Z]\w*)+)".format("|".join(VALUES)))
# Maps that are the operator's to fill.
FREE = {"podMonitor.labels", "podMonitor.selector"}


def exists(path: str) -> bool:
    value: Any = VALUES
    walked = []
    for key in path.split("."):
        if ".".join(walked) in FREE:
            return True
        if not isinstance(value, dict) or key not in value:
            return False
        value = value[key]
        walked.append(key)
    return True


def test_every_value_named_exists() -> None:
    """In the page, in values.yaml."""
    files = re.compile(r"\.(yaml|yml|json|md|tgz|io|sh)\b")
    named = {path for path in NAMED.findall(PAGE) if not files.search(path)}

    assert len(named) > 15
    assert {path for path in named if not exists(path)} == set()


def test_links_lead_to_files() -> None:
    """Relative ones, from the page."""
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target


def test_every_example_is_told_of() -> None:
    """And every layout told of has its file of values."""
    assert set(re.findall(r"helm/examples/([\w-]+\.yaml)", PAGE)) == set(EXAMPLES)


def test_commands_exist() -> None:
    """Of the sidecar, and of make."""
    for word in re.findall(r"(?:sidecar|--) sidecar ([a-z]+)|`sidecar ([a-z]+)", PAGE):
        assert (word[0] or word[1]) in cli.COMMANDS
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"\bmake ([a-z]+)\b", PAGE):
        assert f"\n{command}:" in makefile or command in {"differ"}, command


def test_the_image_has_one_name() -> None:
    """What `make image` builds is what the page, Compose, the chart and the patches run."""
    name = f"{VALUES['image']['repository']}:{sidecar.__version__}"
    files = ("docker-compose.yml", "kustomize/sidecar/deployment.yaml")
    files += ("kustomize/kserve/operations.yaml", "docs/deploy.md")
    for file in files:
        named = re.findall(r"\w[\w./-]*/sidecar:[\w.]+", (ROOT / file).read_text())
        assert named
        assert set(named) == {name}

    told = subprocess.run(  # of the targets with the exporter's name, the one that leaves no file
        [ROOT / "scripts" / "image.sh", "sbom"],
        env={"PATH": os.environ["PATH"], "BUILDER": "echo"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert told.stdout.splitlines()[-1] == f"image: {name}"
