"""State that leaves a detector and comes back: plain values, arrays as bytes with their shape.

Guarantees: what comes back is equal to the bit; anything else (foreign, older, of another size,
torn) raises StateError, and no array is made before its size was checked.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import StateError

Floats = NDArray[np.float64]
Plain = dict[str, Any]

_REMEDY = "delete the snapshot to start at 0; that only delays alarms"


def tagged(kind: str, version: int, fields: Plain) -> Plain:
    """`fields` with the name and version that `fields_of` asks for."""
    return {"kind": kind, "version": version, **fields}


def checked(exported: object, kind: str, version: int) -> Plain:
    """What `tagged` made, when it is of this kind and version. Raises StateError."""
    if not isinstance(exported, dict):
        raise StateError(f"the state of {kind} is no mapping; {_REMEDY}")
    found = (exported.get("kind"), exported.get("version"))
    if found != (kind, version):
        raise StateError(f"the state is of {found}, not of {(kind, version)}; {_REMEDY}")
    return exported


def packed(array: Floats | NDArray[np.int64]) -> Plain:
    """An array of float64 or int64, as bytes and shape."""
    letter = "f" if array.dtype.kind == "f" else "i"
    data = np.ascontiguousarray(array, dtype=f"<{letter}8").tobytes()
    return {"of": letter, "shape": list(array.shape), "bytes": data}


def floats(exported: Plain, field: str, shape: tuple[int, ...]) -> Floats:
    """The float64 array of `field`, when it has this shape. Raises StateError."""
    return _array(exported, field, shape, "f").astype(np.float64)


def integers(exported: Plain, field: str, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """The int64 array of `field`, when it has this shape. Raises StateError."""
    return _array(exported, field, shape, "i").astype(np.int64)


def same(exported: Plain, field: str, wanted: object) -> None:
    """Raises StateError unless the value of `field` is `wanted`."""
    if exported.get(field) != wanted:
        raise StateError(f"{field} of the state is another than now; {_REMEDY}")


def number(exported: Plain, field: str) -> int:
    """The whole number of `field`. Raises StateError."""
    value = exported.get(field)
    if not isinstance(value, int) or isinstance(value, bool):
        raise StateError(f"{field} of the state is no whole number; {_REMEDY}")
    return value


def mapping(exported: Plain, field: str) -> Plain:
    """The mapping of `field`. Raises StateError."""
    value = exported.get(field)
    if not isinstance(value, dict):
        raise StateError(f"{field} of the state is no mapping; {_REMEDY}")
    return value


def _array(exported: Plain, field: str, shape: tuple[int, ...], letter: str) -> NDArray[Any]:
    held = mapping(exported, field)
    data = held.get("bytes")
    if held.get("of") != letter or held.get("shape") != list(shape):
        raise StateError(f"{field} of the state has another shape than {shape}; {_REMEDY}")
    if not isinstance(data, bytes) or len(data) != 8 * int(np.prod(shape, dtype=np.int64)):
        raise StateError(f"{field} of the state is torn; {_REMEDY}")
    return np.frombuffer(data, dtype=f"<{letter}8").reshape(shape)
