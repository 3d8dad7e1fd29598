"""Plausible frames without an engine: for tests, benchmarks and dashboard previews.

The same seed gives the same numbers. RMS grows with depth, first positions are sinks with larger
peaks, and block influence is highest at both ends, as in trained models.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sidecar.wire.frame import (
    NUM_POPULATIONS,
    NUM_SIGNALS,
    Arrays,
    Coverage,
    Finished,
    Layers,
    Request,
    Requests,
    Serving,
    Status,
)

_FIRST_ROWS = np.array([1, 0, 1, 0], dtype=bool)  # populations whose position class is `first`


@dataclass
class SyntheticEngine:
    """A pretend engine: `step()` advances its totals, the other methods make its bodies."""

    num_layers: int = 6
    seed: int = 0
    model_name: str = "synthetic"
    totals: Arrays = field(init=False)
    coverage: Coverage = field(init=False)
    num_steps: int = 0
    num_requests: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self.totals = Arrays.zeros(self.num_layers)
        self.coverage = Coverage([0] * NUM_POPULATIONS)

    def step(self, rows: tuple[int, int, int, int] = (4, 60, 0, 8)) -> Layers:
        """Measure `rows` token rows by population, and return the running totals."""
        moments = self._moments(rows)
        total = self.totals
        self.totals = Arrays(
            total.count + moments.count,
            total.nonfinite,
            total.sums + moments.sums,
            moments.extremes,
        )
        for index, num_rows in enumerate(rows):
            self.coverage.observed[index] += num_rows
        self.num_steps += 1
        return Layers(
            list(range(self.num_layers)),
            self.num_steps,
            self.num_requests,
            self.coverage,
            self.totals.pack(),
        )

    def requests(self, num_requests: int = 1, t_ns: int = 0) -> Requests:
        """Bodies of `num_requests` finished requests of 64 prompt and 9 generated tokens."""
        rows = (4, 60, 0, 8)
        finished = []
        for _ in range(num_requests):
            self.num_requests += 1
            finished.append(
                Request(
                    f"cmpl-{self.num_requests}-0-0badcafe",
                    max(0, t_ns - 1_000_000_000),
                    t_ns,
                    64,
                    Coverage(list(rows)),
                    self._moments(rows).pack(),
                )
            )
        return Requests(list(range(self.num_layers)), finished)

    def status(self) -> Status:
        """A live tap."""
        return Status(
            "live",
            model_name=self.model_name,
            vllm_version="0.32.0",
            runner="v1",
            dtype="bfloat16",
            num_layers=self.num_layers,
        )

    def serving(self, t_ns: int = 0) -> Serving:
        """Ordinary stats that agree with `requests`."""
        n = self.num_requests
        done = [
            Finished(f"cmpl-{n}-0", "length", t_ns, 1.0, 0.01, 0.1, 0.89, 0.11, 64, 9, 0)
        ] * bool(n)
        return Serving(self.model_name, 0, 64 * n, 9 * n, 0, 0, 1, 0, 0.25, [0.11] * bool(n), done)

    def _moments(self, rows: tuple[int, int, int, int]) -> Arrays:
        made = Arrays.zeros(self.num_layers)
        for population, num_rows in enumerate(rows):
            if not num_rows:
                continue
            values = self._values(num_rows, bool(_FIRST_ROWS[population]))
            logs = np.log(values)
            made.count[population] = num_rows
            made.sums[population] = np.stack(
                [values.sum(0), logs.sum(0), (logs * logs).sum(0)], axis=-1
            )
            made.extremes[population] = np.stack([values.min(0), values.max(0)], axis=-1)
        return made

    def _values(self, num_rows: int, first: bool) -> NDArray[np.float64]:
        depth = np.linspace(0.0, 1.0, self.num_layers)
        typical = np.empty((self.num_layers, NUM_SIGNALS))
        typical[:, 0] = (3.0 if first else 1.0) * np.exp(1.5 * depth)
        typical[:, 1] = 20.0 if first else 5.0
        typical[:, 2] = 0.08 + 0.4 * np.abs(depth - 0.5)
        noise = self._rng.normal(0.0, 0.1, (num_rows, self.num_layers, NUM_SIGNALS))
        values: NDArray[np.float64] = typical * np.exp(noise)
        return values
