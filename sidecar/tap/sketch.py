"""Sketches: the random directions of a layer, which are the same on every machine.

A sketch is what of a token's residual stream is seen along a few random orthonormal directions: a
change of the stream in any direction shows in it, and the stream cannot be told from it. Numbers of
two runs can be compared only where the directions are equal, so they are drawn from the raw stream
of a counter-based generator (Philox; Salmon et al. 2011), which no release of numpy changes, and
not from its distributions, which a release may.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.tap.pooling import Columns, Pool, Pooling, Rows
from sidecar.tap.rows import Ints, Plan


def directions(seed: int, layer: int, num_directions: int, hidden_size: int) -> NDArray[np.float32]:
    """[num_directions, hidden_size], orthonormal rows, uniformly distributed over all such.

    The same for the same arguments, but for the rounding of the last place. `num_directions` is at
    most `hidden_size`.
    """
    gaussian = _gaussian(seed, layer, hidden_size * num_directions)
    q, r = np.linalg.qr(gaussian.reshape(hidden_size, num_directions))
    # LAPACK leaves the signs open; a positive diagonal makes the factors unique.
    fixed = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    return np.ascontiguousarray(fixed.T, dtype=np.float32)


class Sketching(NamedTuple):
    """What is sketched: the stream after each of `layers`, along `size` directions each."""

    layers: list[int]
    size: int
    seed: int

    def directions(self, hidden_size: int) -> NDArray[np.float32]:
        """[layers * size, hidden_size], one layer after the other."""
        drawn = [directions(self.seed, layer, self.size, hidden_size) for layer in self.layers]
        return np.concatenate([np.zeros((0, hidden_size), np.float32), *drawn])


class Sketches:
    """Sketches of requests: of the last prompt token, and of the mean generated token.

    places: [layers * size] where their columns stand in the product.
    """

    def __init__(self, sketching: Sketching, places: Ints, num_slots: int) -> None:
        self._shape = (len(sketching.layers), sketching.size)
        # In the order of `wire.signature.SKETCHES`.
        self._pools = [
            Pool(Columns(pooling, rows, places, np.zeros(len(places))), num_slots)
            for pooling, rows in ((Pooling.LAST, Rows.PROMPT), (Pooling.MEAN, Rows.GENERATED))
        ]

    def add(self, plan: Plan, parts: NDArray[np.float32], kept: NDArray[np.bool_] | None) -> None:
        """Add the groups of one step; see `pooling.Pool.add`."""
        for pool in self._pools:
            pool.add(plan, parts, kept)

    def of(self, slot: int) -> NDArray[np.float32]:
        """[layers, len(SKETCHES), size] of a request so far; NaN where nothing was measured."""
        sketches = [pool.values(slot).reshape(self._shape) for pool in self._pools]
        return np.stack(sketches, 1).astype(np.float32)

    def clear(self, slot: int) -> None:
        """The request in `slot` is over."""
        for pool in self._pools:
            pool.clear(slot)


def _gaussian(seed: int, layer: int, num: int) -> NDArray[np.float64]:
    """[num] standard normal numbers, by Box and Muller (1958)."""
    raw = np.random.Philox(key=np.array([seed, layer], np.uint64)).random_raw(2 * num)
    # The upper 53 bits, in the middle of their interval: never 0, whose logarithm is infinite.
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(uniform[:num]))
    normal: NDArray[np.float64] = radius * np.cos(2.0 * np.pi * uniform[num:])
    return normal
