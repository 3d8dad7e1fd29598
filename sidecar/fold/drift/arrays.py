"""Arrays as plain values: packed for files, listed for JSON; a stranger's are refused.

A packed array is its type, its shape and its bytes: the bytes of equal significance beside each
other, then deflated. Sums of float32 leave the low bytes of float64 at zero, so that this halves
them, and costs no bit.
"""

import hashlib
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import UNREADABLE, StateError

# Of an array that a sidecar reads: the largest, the spread of 100 strata of 640 streams, takes
# 82 MB, while a stranger's megabyte may inflate to a thousand.
MAX_BYTES: Final = 128 << 20
MAX_FIT_BYTES: Final = 1 << 30  # of one that only merging reads
_TYPES: Final = ("<f8", "<f4", "<i8", "<u4", "|b1")
_LEVEL: Final = 1  # a higher one takes four times as long for 3 % less


# `packed`, or `fingerprint` where only equality matters.
Pack = Callable[[NDArray[Any]], dict[str, Any]]


def packed(array: NDArray[Any]) -> dict[str, Any]:
    """`array` as a msgpack-able map; its type must be one that `unpacked` reads."""
    kind = array.dtype.newbyteorder("<").str
    if kind not in _TYPES:
        raise ValueError(f"arrays of {kind} are not kept in files")
    data = np.ascontiguousarray(array, kind)
    by_byte = data.reshape(-1).view(np.uint8).reshape(-1, data.itemsize).T
    deflated = zlib.compress(by_byte.tobytes(), _LEVEL)
    return {"type": kind, "shape": list(array.shape), "data": deflated}


def fingerprint(array: NDArray[Any]) -> dict[str, Any]:
    """What tells `array` from any other, whichever release of zlib packs it."""
    kind = array.dtype.newbyteorder("<").str
    data = np.ascontiguousarray(array, kind).tobytes()
    return {
        "type": kind,
        "shape": list(array.shape),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def unpacked(
    plain: Mapping[str, Any],
    kind: str,
    shape: Sequence[int | None],
    max_bytes: int = MAX_BYTES,
) -> NDArray[Any]:
    """The array in `plain`, writable.

    Raises StateError unless it has this type (such as `<f8`) and shape, None being any length, and
    at most `max_bytes`, of which as much again is in memory for a moment.
    """
    try:
        lengths = [int(length) for length in plain["shape"]]
        fits = len(lengths) == len(shape) and all(
            length >= 0 and wanted in {None, length}
            for length, wanted in zip(lengths, shape, strict=True)
        )
        if plain["type"] != kind or not fits:
            raise StateError(f"an array {plain['type']} {lengths}; {kind} {list(shape)} is needed")
        raw = _inflated(plain["data"], math.prod(lengths) * np.dtype(kind).itemsize, max_bytes)
        by_byte = np.frombuffer(raw, np.uint8).reshape(np.dtype(kind).itemsize, -1)
        flat = by_byte.T.copy().reshape(-1).view(kind)
        return flat.reshape(lengths).astype(np.dtype(kind).newbyteorder("="), copy=False)
    except (*UNREADABLE, zlib.error) as error:
        raise StateError(f"no packed array: {error!r}") from error


def listed(array: NDArray[Any]) -> list[Any]:
    """Numbers for JSON; null for what is not finite, which JSON cannot say."""
    return [value if math.isfinite(value) else None for value in array.tolist()]


def floats_of(values: Sequence[float | None], length: int, missing: float) -> NDArray[np.float64]:
    """[length] of what `listed` wrote, `missing` for null; ValueError for another length."""
    if len(values) != length:
        raise ValueError(f"{len(values)} values; {length} are needed")
    return np.array([missing if value is None else value for value in values], np.float64)


def _inflated(data: bytes, num_bytes: int, max_bytes: int) -> bytes:
    if num_bytes > max_bytes:
        raise StateError(f"an array of {num_bytes} bytes; at most {max_bytes} are read")
    machine = zlib.decompressobj()
    # One byte more than wanted, so that a longer stream shows without being inflated.
    raw = machine.decompress(data, num_bytes + 1)
    if len(raw) != num_bytes or not machine.eof or machine.unused_data:
        raise StateError(f"a packed array does not hold the {num_bytes} bytes of its shape")
    return raw
