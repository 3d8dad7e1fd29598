"""One week of pretended traffic and the baseline of it, made once by the command itself."""

from pathlib import Path
from typing import NamedTuple

import pytest

from sidecar import cli
from tests.jobs.traffic import record


class Week(NamedTuple):
    recordings: Path
    baseline: Path


@pytest.fixture(scope="session")
def week(tmp_path_factory: pytest.TempPathFactory) -> Week:
    folder = tmp_path_factory.mktemp("week")
    record(folder / "recordings", 7 + 1 / 24)
    baseline = folder / "traffic.baseline"
    command = ["baseline", "fit", str(folder / "recordings"), "-o", str(baseline)]
    assert cli.main([*command, "--months", "10"]) == 0
    return Week(folder / "recordings", baseline)
