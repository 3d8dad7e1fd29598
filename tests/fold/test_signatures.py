"""The latest signature of each of the last requests."""

from sidecar.fold.signatures import RecentSignatures
from tests import fakes


def ids(recent: RecentSignatures, limit: int = 99) -> list[str]:
    return [each.signature.id for each in recent.get(limit)]


def test_the_latest_come_first_up_to_the_limit() -> None:
    """With the source that told them."""
    recent = RecentSignatures()
    recent.update("engine-dp0-pp0-tp0", fakes.signatures("a", "b", "c"))

    assert ids(recent, 2) == ["c", "b"]
    assert recent.get(1)[0].source == "engine-dp0-pp0-tp0"
    assert recent.get(1)[0].layout == fakes.signatures("c").layout


def test_a_running_request_has_one_signature_the_latest() -> None:
    """Long requests do not push out the finished ones."""
    recent = RecentSignatures(max_signatures=2)
    recent.update("engine", fakes.signatures("done"))
    for _ in range(5):
        recent.update("engine", fakes.signatures("long", is_final=False))
    assert ids(recent) == ["long", "done"]
    recent.update("engine", fakes.signatures("done"))
    assert ids(recent) == ["done", "long"]

    recent.update("engine", fakes.signatures("long"))
    assert [each.signature.is_final for each in recent.get(2)] == [True, True]


def test_sources_are_kept_apart() -> None:
    """Two stages of a pipeline sign the same request."""
    recent = RecentSignatures()
    recent.update("engine-dp0-pp0-tp0", fakes.signatures("a"))
    recent.update("engine-dp0-pp1-tp0", fakes.signatures("a", layers=(4, 6)))

    assert [each.layout.layers for each in recent.get(2)] == [[4, 6], [0, 2]]


def test_the_number_of_signatures_is_bounded() -> None:
    """The oldest go."""
    recent = RecentSignatures(max_signatures=3)
    recent.update("engine", fakes.signatures(*(f"r{k}" for k in range(5))))

    assert ids(recent) == ["r4", "r3", "r2"]


def test_the_bytes_of_signatures_are_bounded() -> None:
    """Values and layouts both count, and room that was left is there again."""
    one = len(fakes.signatures("r").signatures[0].values)
    recent = RecentSignatures(max_bytes=20 * one)
    for round_ in range(3):
        recent.update("engine", fakes.signatures(*(f"r{round_}-{k}" for k in range(50))))
        assert 0 < len(ids(recent)) < 20
        assert recent._num_bytes <= 20 * one
    held = len(ids(recent))
    recent.update("engine", fakes.signatures(*(f"s{k}" for k in range(50)), layers=range(40)))

    assert len(ids(recent)) < held / 4


def test_a_request_takes_its_room_once() -> None:
    """However often it is signed."""
    recent = RecentSignatures()
    recent.update("engine", fakes.signatures("long"))
    once = recent._num_bytes
    recent.update("engine", fakes.signatures("long"))

    assert recent._num_bytes == once


def test_equal_layouts_are_held_once() -> None:
    """A frame a second does not hold a layout each."""
    recent = RecentSignatures()
    for k in range(3):
        recent.update("engine", fakes.signatures(f"r{k}"))

    assert len({id(each.layout) for each in recent.get(3)}) == 1
