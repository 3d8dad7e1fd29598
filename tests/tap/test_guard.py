"""The guest never hurts the host: swallowed, counted by site, disarmed, and said once."""

import logging

import pytest

from sidecar.tap.guard import Guard


def broken(*_: object) -> None:
    raise RuntimeError("a bug of ours")


def test_a_result_passes_through(guard) -> None:
    """What works returns what it returns, and counts nothing."""
    assert guard.run("site", divmod, 7, 2) == (3, 1)
    assert guard.run("site", int, "21", base=3) == 7
    assert guard.errors == {}
    assert guard.disarmed == []


def test_exceptions_are_swallowed_and_counted_by_site(guard) -> None:
    """Each site has its own count; the caller sees None."""
    assert guard.run("a", broken) is None
    assert guard.run("a", broken) is None
    assert guard.run("b", broken) is None
    assert guard.errors == {"a": 2, "b": 1}


def test_a_site_is_not_called_after_its_last_exception(guard) -> None:
    """The third exception of three disarms the site; others are still called."""
    calls = []

    def counted() -> None:
        calls.append(1)
        broken()

    for _ in range(10):
        guard.run("bad", counted)
    assert len(calls) == 3
    assert guard.errors == {"bad": 3}
    assert guard.disarmed == ["bad"]
    assert guard.is_disarmed("bad")
    assert guard.run("good", lambda: "still here") == "still here"


def test_exceptions_caught_elsewhere_count_too(guard) -> None:
    """A site that catches its own exceptions is disarmed by the same count."""
    for _ in range(3):
        guard.count("probe", ValueError("seen elsewhere"))
    assert guard.disarmed == ["probe"]


def test_the_first_exception_of_a_site_is_logged_once_with_its_cause(guard, caplog) -> None:
    """The log names the site and carries the traceback, once per site and not per exception."""
    with caplog.at_level(logging.WARNING):
        for site in ("a", "a", "b", "a"):
            guard.run(site, broken)
    assert [record.getMessage() for record in caplog.records] == [
        "sidecar: error at a; serving goes on",
        "sidecar: error at b; serving goes on",
    ]
    assert "a bug of ours" in str(caplog.records[0].exc_info)


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_a_call_to_stop_is_not_swallowed(end, guard) -> None:
    """An interrupt or an exit is not an error of ours: it passes."""

    def stop() -> None:
        raise end

    with pytest.raises(end):
        guard.run("site", stop)
    assert guard.errors == {}


def test_limits_differ_between_guards() -> None:
    """The limit is the guard's own."""
    strict = Guard(max_errors=1)
    strict.run("site", broken)
    assert strict.disarmed == ["site"]
