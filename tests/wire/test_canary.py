"""The tag of a canary: proven by the operator's secret, and worth nothing to anybody else."""

import hashlib
import hmac
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import ConfigError
from sidecar.wire.canary import (
    MAX_AGE_MS,
    MAX_AHEAD_MS,
    MAX_PROMPT,
    MAX_TAG,
    Canary,
    parse,
    proven,
    tag,
)

SECRET = b"a secret of the operator's, 32 b"
NOW_MS = 1_790_000_000_000
CANARIES = st.builds(
    Canary,
    # Not from the pattern itself, which takes ten times as long to draw.
    prompt=st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=64),
    round_ms=st.integers(NOW_MS - MAX_AGE_MS, NOW_MS + MAX_AHEAD_MS),
)


@given(CANARIES)
def test_the_operators_tag_names_its_prompt_and_round(canary: Canary) -> None:
    """What was signed is what is proven, and reads back as it was."""
    name = proven(tag(canary, SECRET), SECRET, NOW_MS)
    assert parse(name) == canary
    assert len(tag(canary, SECRET)) <= MAX_TAG


def test_the_mac_is_the_one_that_is_documented() -> None:
    """Anybody can make a tag with an ordinary HMAC-SHA256 and the secret."""
    mac = hmac.new(SECRET, b"greeting-1@1790000000000", hashlib.sha256).hexdigest()
    assert tag(Canary("greeting-1", NOW_MS), SECRET) == f"greeting-1@1790000000000:{mac}"


@given(CANARIES, st.binary(min_size=1, max_size=40).filter(lambda key: key != SECRET))
def test_another_secret_proves_nothing(canary: Canary, other: bytes) -> None:
    """Nor does no secret at all."""
    assert proven(tag(canary, other), SECRET, NOW_MS) == ""
    assert proven(tag(canary, SECRET), None, NOW_MS) == ""


@given(CANARIES, st.data())
def test_one_changed_character_is_enough(canary: Canary, data: st.DataObject) -> None:
    """A tag cannot be bent to another prompt or round."""
    good = tag(canary, SECRET)
    place = data.draw(st.integers(0, len(good) - 1))
    other = data.draw(st.characters().filter(lambda each: each != good[place]))
    assert proven(good[:place] + other + good[place + 1 :], SECRET, NOW_MS) == ""


@pytest.mark.parametrize("late_ms", [-MAX_AHEAD_MS - 1, MAX_AGE_MS + 1])
def test_a_tag_is_good_for_its_round_alone(late_ms: int) -> None:
    """Seen on its way, it is worth nothing ten minutes later; nor is one from the future."""
    assert proven(tag(Canary("one", NOW_MS), SECRET), SECRET, NOW_MS + late_ms) == ""


@given(
    st.one_of(st.none(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.text()))
)
def test_a_strangers_value_is_no_canary(given: object) -> None:
    """Of whatever type or shape; it is neither proven nor an error."""
    assert proven(given, SECRET, NOW_MS) == ""


@pytest.mark.parametrize(
    "canary",
    [
        Canary("", NOW_MS),
        Canary("two words", NOW_MS),
        Canary("a@b", NOW_MS),
        Canary("a\n", NOW_MS),
        Canary("ä", NOW_MS),
        Canary("x" * (MAX_PROMPT + 1), NOW_MS),
        Canary("one", 0),
        Canary("one", -1),
        Canary("one", 10**15),
    ],
)
def test_a_name_that_could_not_be_read_back_is_refused(canary: Canary) -> None:
    """With the remedy, before it is signed."""
    with pytest.raises(ConfigError, match="name a prompt"):
        tag(canary, SECRET)
