"""State that leaves a detector and comes back."""

import msgspec
import numpy as np
import pytest

from sidecar.errors import StateError
from sidecar.fold.drift import exported


def test_arrays_survive_msgpack_to_the_bit() -> None:
    """NaN, infinities, negative zero and the shape are what they were."""
    array = np.array([[np.nan, np.inf], [-0.0, 1e-310]])
    plain = exported.tagged("test", 3, {"a": exported.packed(array), "n": 7})
    back = exported.checked(msgspec.msgpack.decode(msgspec.msgpack.encode(plain)), "test", 3)

    assert exported.floats(back, "a", (2, 2)).tobytes() == array.tobytes()
    assert exported.number(back, "n") == 7


def test_a_restored_array_can_be_written_to() -> None:
    """A detector goes on adding to what it got back."""
    plain = {"a": exported.packed(np.arange(3))}
    back = exported.integers(plain, "a", (3,))
    back += 1

    assert back.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "plain",
    [
        {"kind": "test", "version": 2},
        {"kind": "other", "version": 3},
        {},
        [],
        None,
    ],
)
def test_another_kind_or_version_is_refused(plain: object) -> None:
    """Only what this version of this detector wrote is taken."""
    with pytest.raises(StateError, match="delete the snapshot"):
        exported.checked(plain, "test", 3)


@pytest.mark.parametrize(
    "held",
    [
        None,
        {"of": "f", "shape": [3], "bytes": b""},
        {"of": "f", "shape": [2], "bytes": b"\0" * 15},
        {"of": "i", "shape": [2], "bytes": b"\0" * 16},
        {"of": "f", "shape": [1, 2], "bytes": b"\0" * 16},
        {"of": "f", "shape": [2], "bytes": "text"},
    ],
)
def test_a_torn_array_is_refused(held: object) -> None:
    """Another shape, another kind of number, or too few bytes."""
    with pytest.raises(StateError, match="delete the snapshot"):
        exported.floats({"a": held}, "a", (2,))
