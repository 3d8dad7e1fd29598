"""Which tests on real servers one worker runs together."""

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
