"""Which numbers of a signature a canary is judged by, and how they are grouped into streams.

A canary is prefill only, so a stream is one layer's prefill statistic of the residual stream or of
the router, the sketch of the last prompt token of one layer (all its directions are one stream: the
direction in which a model moved is nobody's to interpret), or, in no layer, what the model thinks
of the first token: entropy, margin, log-probability. Attention is sampled, so left out.

The floor of a stream is the smallest movement that may be called one, where repeats show none: a
share of a mean over tokens (logarithms, hence relative), and a share of the length of a sketch.
Which shares depends on the precision that is computed with; the figures behind both are in
docs/decisions/0014-canary.md.
"""

from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sidecar.wire.signature import Layout, entries

SKETCH: Final = "sketch"
_TINY: Final = 1e-12  # a floor is never zero
_CONFIDENCE: Final = ("entropy", "top1_margin", "min_logprob")
_PREFILL: Final = ("residual/prefill/", "router/prefill/")

Floats = NDArray[np.float64]


class CanaryStream(NamedTuple):
    """One stream. layer: global id; None for the first token's. signal: such as `log_rms`."""

    layer: int | None
    signal: str

    @property
    def name(self) -> str:
        """Such as `canary/l3/log_rms`, or `canary/output/entropy`."""
        place = "output" if self.layer is None else f"l{self.layer}"
        return f"canary/{place}/{self.signal}"


class Floors(NamedTuple):
    """Smallest relative movement of a mean over tokens, and of a sketch."""

    scalar: float
    sketch: float

    @classmethod
    def of(cls, dtype: str) -> Self:
        """Those of a model that computes in `dtype`, such as `bfloat16`; "" when unknown."""
        return cls(1e-6, 5e-6) if dtype == "float32" else cls(1e-5, 1e-4)


class CanaryStreams(NamedTuple):
    """The streams of one layout, layer by layer.

    streams: S of them. places: int64 [m], the entries of a signature that are read, stream by
    stream. starts: int64 [S], where the entries of each stream begin.
    is_sketch: bool [S]. least: what counts where repeats show no noise.
    """

    layout: Layout
    streams: tuple[CanaryStream, ...]
    places: NDArray[np.int64]
    starts: NDArray[np.int64]
    is_sketch: NDArray[np.bool_]
    least: Floors

    @classmethod
    def of(cls, layout: Layout, dtype: str = "") -> Self:
        """The streams of `layout`; S is 0 when it has none of them."""
        found: dict[CanaryStream, list[int]] = {}
        for place, name in enumerate(entries(layout)):
            stream = _stream(name)
            if stream is not None:
                found.setdefault(stream, []).append(place)
        streams = tuple(sorted(found, key=_order))
        places = [place for stream in streams for place in found[stream]]
        sizes = [len(found[stream]) for stream in streams]
        starts = np.cumsum([0, *sizes])[:-1]
        is_sketch = np.array([stream.signal == SKETCH for stream in streams], bool)
        held = np.array(places, np.int64)
        return cls(layout, streams, held, starts, is_sketch, Floors.of(dtype))

    def read(self, values: NDArray[np.float32]) -> Floats:
        """[m] out of a signature [size(layout)]; NaN where it is not finite."""
        read = values[self.places].astype(np.float64)
        read[~np.isfinite(read)] = np.nan
        return read

    def mean_square(self, entries_: Floats) -> Floats:
        """[..., S] mean of the squares of entries [..., m] by stream; NaN where none is known."""
        known = np.isfinite(entries_)
        squares = np.where(known, entries_, 0.0) ** 2
        with np.errstate(invalid="ignore"):
            mean: Floats = self._sums(squares) / self._sums(known.astype(np.float64))
        return mean

    def floors(self, mean: Floats) -> Floats:
        """[P, S] least deviation that counts around `mean` [P, m]; NaN where no mean is known."""
        size = np.sqrt(self.mean_square(mean))
        scalar = self.least.scalar * np.maximum(size, 1.0)
        floors: Floats = np.where(self.is_sketch, self.least.sketch * size, scalar)
        return np.maximum(floors, _TINY)

    def _sums(self, entries_: Floats) -> Floats:
        sums: Floats = np.add.reduceat(entries_, self.starts, axis=-1)
        return sums


def _stream(name: str) -> CanaryStream | None:
    kind, _, rest = name.partition("/")
    if kind == "confidence":
        return CanaryStream(None, rest) if rest in _CONFIDENCE else None
    if name.startswith(_PREFILL):
        _, layer, signal = rest.split("/")
        return CanaryStream(int(layer.removeprefix("l")), signal)
    if kind == SKETCH:
        layer, which, _ = rest.split("/")
        if which == "last_prompt":
            return CanaryStream(int(layer.removeprefix("l")), SKETCH)
    return None


def _order(stream: CanaryStream) -> tuple[bool, int]:
    # Stable: signals of a layer stay in the order of the signature; the output comes last.
    return (stream.layer is None, stream.layer or 0)
