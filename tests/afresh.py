"""What a failed test leaves is ended before anything else runs: a plugin of pytest for all tests.

`make test` runs a test that failed once more. pytest-rerunfailures keeps what fixtures of a module
or the session have made, so that the second run would meet servers that died in the first, alarms
that latched, and logs that were written to. With this, whoever runs next has other processes, ports
and folders; what starting them again costs is paid after failures only.
"""

from collections.abc import Generator
from typing import Any

import pytest

_HAS_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Remember that a phase of this test failed."""
    report = yield
    item.stash[_HAS_FAILED] = item.stash.get(_HAS_FAILED, False) or report.failed
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """End everything, before pytest-rerunfailures puts it by for the second run."""
    _end_all(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The same, where the first run failed in its end only."""
    _end_all(item)


def _end_all(item: pytest.Item) -> None:
    if item.config.getoption("reruns", None) and item.stash.get(_HAS_FAILED, False):
        item.stash[_HAS_FAILED] = False
        item.session._setupstate.teardown_exact(None)
