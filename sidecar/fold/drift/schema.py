"""Streams: the numbers of a signature that drift is judged by, by name.

Every entry of a signature is a stream but for the sketches, whose single directions mean nothing.
Guarantee: two schemas of one digest have the same streams in the same order.
"""

import hashlib
from functools import cached_property
from typing import NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from sidecar.wire.signals import Phase
from sidecar.wire.signature import Layout, entries

_SKETCH = "sketch/"
_PROBE = "probe/"
_CONFIDENCE = "confidence/"


class Stream(NamedTuple):
    """One number per request.

    name: of the entry, such as `residual/decode/l3/log_rms`.
    phase: `prefill` or `decode`; "" for a probe, which has its own.
    layer: global id; None for what has no layer.
    signal: what is measured, such as `log_rms`, `last_entropy` or the name of a probe.
    """

    name: str
    phase: str
    layer: int | None
    signal: str


class Schema:
    """The streams of one layout. Two schemas are equal when their layouts are.

    layout: as told on the wire.
    streams: [p], in the order of the signature's entries.
    places: [p] where they stand in a signature's values.
    """

    def __init__(self, layout: Layout) -> None:
        names = list(entries(layout))
        places = [i for i, name in enumerate(names) if not name.startswith(_SKETCH)]
        self.layout = layout
        self.streams = tuple(_stream(names[i]) for i in places)
        self.places: NDArray[np.intp] = np.array(places, np.intp)

    @classmethod
    def of(cls, layout: Layout) -> Self:
        """The streams of `layout`."""
        return cls(layout)

    @property
    def num_streams(self) -> int:
        """p, how many streams there are."""
        return len(self.streams)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the layout, in hex; equal digests can be compared number by number."""
        return hashlib.sha256(msgspec.msgpack.encode(self.layout)).hexdigest()

    def scalars(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """[..., p] out of signatures' values [..., size(layout)]; NaN where not measured."""
        return values[..., self.places].astype(np.float64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and other.layout == self.layout

    def __hash__(self) -> int:
        return hash(self.digest)


def _stream(name: str) -> Stream:
    if name.startswith(_PROBE):
        return Stream(name, "", None, name.removeprefix(_PROBE))
    if name.startswith(_CONFIDENCE):
        return Stream(name, str(Phase.DECODE), None, name.removeprefix(_CONFIDENCE))
    _, phase, layer, signal = name.split("/")
    return Stream(name, phase, int(layer.removeprefix("l")), signal)
