"""The books of frames: what they find, and what they do not let pass."""

from pathlib import Path

import pytest

from bench.chaos.account import Found, Known, compare
from bench.chaos.journal import Entries, Journal


def entries(sent: int, dropped: int = 0) -> Entries:
    return Entries(sent, sent - dropped, dropped, 0, 0, ())


def known(sent: int, received: int, **lost: int) -> Known:
    return Known(sent, received, {"dropped": 0, "stale": 0, "missing": 0, **lost})


def test_frames_that_both_books_have_are_accounted_for() -> None:
    """Ten sent, two dropped, one too old: seven received, and nothing is strange."""
    found = compare(entries(10, 2), known(10, 7, dropped=2, stale=1))
    assert found == Found(sent=10, received=7, dropped=2, stale=1)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (entries(10), known(9, 9)),  # the last one never came
        (entries(10), known(11, 11)),  # nobody sent it
        (entries(10, 3), known(10, 8, dropped=2)),  # a drop that the sidecar does not tell
        (entries(10), known(10, 8)),  # two before the first, and nobody was there to read them
    ],
)
def test_what_one_book_does_not_have_is_found(written: Entries, told: Known) -> None:
    """Whatever is in one book only is unaccounted, unless a process was killed."""
    assert compare(written, told).unaccounted > 0


def test_a_sidecar_that_was_killed_had_some_in_its_hands() -> None:
    """Of thirty handed over before the new one heard any, the old one told of twenty-five."""
    found = compare(entries(100, 20), known(100, 50, dropped=20), known(26, 25))
    assert (found.received, found.in_hands, found.unaccounted) == (75, 5, 0)
    assert compare(entries(100), known(100, 95), known(6, 6)).unaccounted == 1


def test_an_engine_that_was_killed_takes_its_last_frames_along() -> None:
    """Ten were sent since it was heard: four of them dropped, six in its hands."""
    found = compare(entries(100, 4), known(90, 90), is_killed=True)
    assert (found.dropped, found.in_hands, found.unaccounted) == (4, 6, 0)
    assert compare(entries(100), known(101, 101), is_killed=True).unaccounted == 1


def test_a_journal_tells_what_its_writer_did_before_it_was_killed(tmp_path: Path) -> None:
    """Every outcome, and the frame that was under way as not known."""
    journal = Journal(tmp_path / "a")
    for is_handed_over in (True, True, False):
        journal.begin()
        journal.end(is_handed_over=is_handed_over, seconds=5e-6)
    journal.begin()
    journal.fail(1e-6)
    journal.begin()
    read = Entries.read(tmp_path / "a")
    assert read[:5] == (5, 2, 1, 1, 1)
    assert read.microseconds == (5.0, 5.0, 5.0, 1.0)
