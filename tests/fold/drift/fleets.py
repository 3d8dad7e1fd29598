"""A fleet of replicas whose windows are drawn from a seed: what the contrast is tried on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.drift.moments import Moments
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.window import Window
from sidecar.wire.signature import Layout

LENGTH = 300 * 10**9
START = 1_790_000_100 * 10**9 // LENGTH * LENGTH
# 2 layers, 4 residual signals, 2 phases, and 4 of the generated tokens: 20 streams.
SCHEMA = Schema.of(Layout(layers=[0, 5]))
NUM_STREAMS = SCHEMA.num_streams
MIX = {"chat|-|p64-127|g16-31": 0.6, "code|-|p256-511|g64-127": 0.4}

Draw = Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]]


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Values of one request, mean 0 and variance 1."""
    return rng.standard_normal(shape)


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Log-normal: a skewness of 6."""
    return np.exp(rng.standard_normal(shape))


@dataclass
class Fleet:
    """Replicas that differ in nothing but what `shifts` says.

    shifts: by replica, added to each request's values [p], in standard deviations of one request.
    bursts: what each window of each replica has of its own, in standard deviations of its mean, as
        when one user sends many requests that are alike.
    mixes: by replica, its own shares of the strata, where routing is not random.
    """

    num_replicas: int = 8
    num_requests: int = 100
    seed: int = 0
    draw: Draw = normal
    shifts: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    bursts: float = 0.0
    mixes: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.names = [f"10.0.0.{i}:9478" for i in range(self.num_replicas)]

    def windows(self, index: int, names: Sequence[str] | None = None) -> dict[str, Window]:
        """What every replica serves in window `index`, common bustle included."""
        bustle = self.rng.standard_normal(NUM_STREAMS)  # the traffic of this window, for all alike
        return {name: self._window(name, index, bustle) for name in names or self.names}

    def _window(self, name: str, index: int, bustle: NDArray[np.float64]) -> Window:
        strata = {}
        own = self.rng.standard_normal(NUM_STREAMS) * self.bursts / np.sqrt(self.num_requests)
        bustle = bustle + own
        mix = self.mixes.get(name, MIX)
        counts = self.rng.multinomial(self.num_requests, list(mix.values()))
        for place, (stratum, count) in enumerate(zip(mix, counts.tolist(), strict=True)):
            rows = self.draw(self.rng, (count, NUM_STREAMS)) + bustle + 10.0 * place
            moments = Moments(NUM_STREAMS)
            moments.update(rows + self.shifts.get(name, 0.0))
            strata[stratum] = moments
        start_ns = START + index * LENGTH
        return Window(start_ns, start_ns + LENGTH, self.num_requests, strata)


def shift(size: float, num_streams: int, num_requests: int = 100) -> NDArray[np.float64]:
    """A shift by `size` standard deviations of a window's mean, of the first streams."""
    shifted = np.zeros(NUM_STREAMS)
    shifted[:num_streams] = size / np.sqrt(num_requests)
    return shifted
