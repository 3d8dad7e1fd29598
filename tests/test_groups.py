"""Which tests on real servers one worker runs together."""

import re
from pathlib import Path

import pytest

from tests.e2e.groups import BFLOAT16, FLOAT32, IMAGE, group_of


@pytest.mark.parametrize(
    ("nodeid", "group"),
    [
        ("tests/e2e/test_numbers.py::test_metrics_tell_what_the_requests_told", FLOAT32),
        ("tests/e2e/test_callers.py::test_it[streamed-chat]", FLOAT32),
        ("tests/e2e/test_liveness.py::test_a_running_tap_is_proven_alive", BFLOAT16),
        ("tests/image/test_exporter.py::test_it", IMAGE),
        ("tests/e2e/test_pod.py::test_it", IMAGE),
        ("tests/e2e/test_architectures.py::test_it[phi3-rms]", "test_architectures-phi3"),
        ("tests/e2e/test_parallel.py::test_each_pipeline_stage", "test_parallel-pipeline"),
        ("tests/e2e/test_parallel.py::test_it", "test_parallel"),
        ("tests/e2e/test_manners.py::test_it", "tests/e2e/test_manners.py::test_it"),
        ("tests/e2e/test_router.py::test_it", "test_router"),
    ],
)
def test_tests_of_one_server_are_together(nodeid: str, group: str) -> None:
    """By the file, by the parameter that has a server of its own, or each for itself."""
    assert group_of(nodeid) == group


def test_what_is_to_run_alone_is_where_that_is_heeded() -> None:
    """`make e2e` runs it by itself, from the two folders that it leaves it out of before."""
    tests = Path(__file__).parent
    mark = re.compile(r"mark\.alone\b|add_marker\(.alone")
    found = {
        each.relative_to(tests).parts[0]
        for each in tests.rglob("*.py")
        if mark.search(each.read_text())
    } - {Path(__file__).name}
    assert found <= {"e2e", "image"}

    makefile = (tests.parent / "Makefile").read_text()
    folders = "tests/e2e tests/image"
    assert re.findall(r"\$\(PYTEST\) (.+?) -m (\"not alone\"|alone)", makefile) == [
        (folders, '"not alone"'),
        (folders, "alone"),
    ]
