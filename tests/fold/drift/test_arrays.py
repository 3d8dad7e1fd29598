"""Packed arrays: to the bit, and only of the type and shape that is asked for."""

import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sidecar.errors import StateError
from sidecar.fold.drift.arrays import MAX_BYTES, MAX_FIT_BYTES, fingerprint, packed, unpacked
from sidecar.fold.drift.spread import NUM_BUCKETS

SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)


@given(st.sampled_from(["<f8", "<f4", "<i8", "<u4", "|b1"]), st.data())
def test_arrays_come_back_to_the_bit(kind: str, data: st.DataObject) -> None:
    """Whatever they hold, NaN included, and can be written to."""
    array = data.draw(arrays.arrays(np.dtype(kind), SHAPES))
    back = unpacked(packed(array), kind, array.shape)

    assert back.tobytes() == array.tobytes()
    assert back.shape == array.shape
    assert back.flags.writeable


def test_any_length_can_be_asked_for() -> None:
    """None in a shape stands for any length."""
    assert unpacked(packed(np.zeros((2, 3))), "<f8", (None, 3)).shape == (2, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"type": "<f4"},
        {"type": "|O"},
        {"shape": [3, 2]},
        {"shape": [2, -3]},
        {"shape": [6]},
        {"shape": "no"},
        {"data": b"no"},
        {"data": zlib.compress(bytes(47))},
        {"data": zlib.compress(bytes(49))},
        {"data": zlib.compress(bytes(48)) + b"x"},
        {"data": zlib.compress(bytes(48))[:-1]},
        {"data": None},
    ],
)
def test_anything_else_is_refused(change: dict[str, object]) -> None:
    """Type, shape and bytes must fit together, or StateError is raised."""
    plain = {**packed(np.zeros((2, 3))), **change}

    with pytest.raises(StateError):
        unpacked(plain, "<f8", (2, 3))
    with pytest.raises(StateError):
        unpacked({"type": "<f8"}, "<f8", (2, 3))


def test_a_bomb_is_not_inflated() -> None:
    """A small stream that would inflate to a gigabyte is refused by the shape it tells."""
    bomb = {"type": "<f8", "shape": [1], "data": zlib.compress(bytes(1 << 26))}
    tracemalloc.start()
    with pytest.raises(StateError, match="does not hold the 8 bytes"):
        unpacked(bomb, "<f8", (1,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 1 << 20
    with pytest.raises(StateError, match="at most"):
        unpacked({**bomb, "shape": [1 << 40]}, "<f8", (None,))


def test_an_honest_array_is_bounded_too() -> None:
    """What only merging reads may be larger than what a sidecar reads; the largest spread fits."""
    large = {"type": "|b1", "shape": [MAX_BYTES + 1], "data": zlib.compress(bytes(MAX_BYTES + 1))}
    with pytest.raises(StateError, match="at most"):
        unpacked(large, "|b1", (None,))

    assert len(unpacked(large, "|b1", (None,), MAX_FIT_BYTES)) == MAX_BYTES + 1
    assert 8 * 100 * 640 * NUM_BUCKETS < MAX_BYTES


def test_objects_are_not_packed() -> None:
    """Only numbers are kept in files."""
    with pytest.raises(ValueError, match="are not kept"):
        packed(np.array([object()]))


def test_a_fingerprint_tells_arrays_apart() -> None:
    """Equal arrays have equal fingerprints, and another bit or shape another."""
    array = np.arange(6.0)

    assert fingerprint(array) == fingerprint(array.copy())
    assert fingerprint(array) != fingerprint(array.reshape(2, 3))
    assert fingerprint(array) != fingerprint(-array)
