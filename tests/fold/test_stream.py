"""Accounting of frame numbers: sent == before + received + stale + dropped + missing."""

from enum import Enum

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.fold.stream import Stream, Tally
from sidecar.wire.frame import Header
from tests.fakes import ENGINE, NOW


class Fate(Enum):
    """What becomes of one frame."""

    RECEIVED = "received"
    STALE = "stale"
    DROPPED = "dropped"
    MISSING = "missing"
    BEFORE = "before us, whatever became of it"


ARRIVES = (Fate.RECEIVED, Fate.STALE)


def header(seq: int, dropped_total: int = 0) -> Header:
    return Header("boot-one", ENGINE, seq, NOW, 0, dropped_total)


def play(fates: list[Fate]) -> Stream:
    """Send frames with these fates through an honest sender."""
    stream, num_dropped = Stream(), 0
    for seq, fate in enumerate(fates, start=1):
        if fate in ARRIVES:
            assert stream.update(header(seq, num_dropped), stale=fate is Fate.STALE)
        num_dropped += fate is Fate.DROPPED
    return stream


@settings(deadline=None, max_examples=300)
@given(
    before=st.integers(0, 20),
    fates=st.lists(st.sampled_from([*ARRIVES, Fate.DROPPED, Fate.MISSING])),
)
def test_every_frame_is_accounted_for(before: int, fates: list[Fate]) -> None:
    """For any pattern of losses, each frame up to the last one heard has exactly its true fate."""
    while fates and fates[-1] not in ARRIVES:
        fates.pop()  # not known yet
    while fates and fates[0] not in ARRIVES:
        fates.pop(0)
        before += 1
    tally = play([Fate.BEFORE] * before + fates).get()

    expected = Tally(
        sent=before + len(fates) if fates else 0,
        before=before if fates else 0,
        received=fates.count(Fate.RECEIVED),
        stale=fates.count(Fate.STALE),
        dropped=fates.count(Fate.DROPPED),
        missing=fates.count(Fate.MISSING),
    )
    assert expected == tally


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.booleans())))
def test_the_account_is_closed_whatever_a_source_claims(
    claims: list[tuple[int, int, bool]],
) -> None:
    """With any numbers in any order the parts add up, and none of them ever falls."""
    stream = Stream()
    for seq, dropped_total, stale in claims:
        before = stream.get()
        stream.update(header(seq, dropped_total), stale=stale)
        after = stream.get()
        assert all(old <= new for old, new in zip(before, after, strict=True))
        assert after.sent == sum(after[1:])


def test_a_late_start_knows_what_was_dropped_before() -> None:
    """What the source dropped while nobody listened is told; what it handed over is no loss."""
    stream = Stream()
    stream.update(header(101, dropped_total=40), stale=False)

    assert Tally(sent=101, before=60, received=1, dropped=40) == stream.get()


def test_a_repeated_frame_is_refused() -> None:
    """The same number twice counts once."""
    stream = Stream()
    assert stream.update(header(1), stale=False)
    assert not stream.update(header(1), stale=False)

    assert Tally(sent=1, received=1) == stream.get()


def test_an_overtaken_frame_is_refused() -> None:
    """It was counted as missing, and stays so."""
    stream = Stream()
    for seq in (1, 3):
        stream.update(header(seq), stale=False)
    assert not stream.update(header(2), stale=False)

    assert Tally(sent=3, received=2, missing=1) == stream.get()


def test_numbers_start_at_one() -> None:
    """Number 0 is no frame."""
    assert not Stream().update(header(0), stale=False)
