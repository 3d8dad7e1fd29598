"""Plausible frames without an engine: for tests, benchmarks and dashboard previews.

The same seed gives the same numbers. RMS grows with depth, first positions are sinks with larger
peaks, block influence is highest at both ends, and attention narrows with depth, as in trained
models. The model has a router in every layer, so that each group of signals is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sidecar.wire.frame import (
    NUM_POPULATIONS,
    NUM_SIGNALS,
    Arrays,
    Cells,
    Coverage,
    Finished,
    Layers,
    Request,
    Requests,
    Serving,
    Signature,
    Signatures,
    Status,
    Table,
    Totals,
)
from sidecar.wire.scan import CONFIDENCE, Scan, window
from sidecar.wire.signals import GROUPS, NUM_FIRST_POSITIONS, Phase, Transform
from sidecar.wire.signature import Layout, size

_SIGNED_LAYERS: Final = 10
# A usual value of each signal, in the order of its group.
_TYPICAL: Final = {
    "attention": (0.5, 0.3, 12.0, 0.4),
    "confidence": (1.2, 0.6, 0.4, 1.1, 14.0),
    "router": (0.8, 0.02),
    "probe": (-0.3,),
}
_FIRST_ROWS = np.array([1, 0, 1, 0], dtype=bool)  # populations whose position class is `first`


@dataclass
class SyntheticEngine:
    """A pretend engine: `step()` advances its totals, the other methods make its bodies."""

    num_layers: int = 6
    seed: int = 0
    model_name: str = "synthetic"
    num_heads: int = 4
    num_experts: int = 8
    adapters: tuple[str, ...] = ("", "support", "other")
    probes: tuple[str, ...] = ("refusal",)
    quantiles: tuple[str, ...] = ("0.9", "0.99")
    totals: Arrays = field(init=False)
    coverage: Coverage = field(init=False)
    num_steps: int = 0
    num_requests: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self.totals = Arrays.zeros(self.num_layers)
        self.coverage = Coverage([0] * NUM_POPULATIONS)
        self._tables: dict[str, Cells] = {}

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
                    self._request_id(self.num_requests),
                    max(0, t_ns - 1_000_000_000),
                    t_ns,
                    64,
                    Coverage(list(rows)),
                    self._moments(rows).pack(),
                    tables=self._request_tables(),
                )
            )
        return Requests(list(range(self.num_layers)), finished)

    def scan(self, num_prompt_tokens: int = 64, num_generated: int = 9) -> Scan:
        """A scan of the request told last, whole; the first four positions are sinks."""
        positions = np.arange(num_prompt_tokens + num_generated - 1)
        picked = positions[np.isin(positions, window(num_prompt_tokens))]
        values = self._values(len(picked), first=False)
        sinks = picked < NUM_FIRST_POSITIONS
        values[sinks] = self._values(int(sinks.sum()), first=True)
        tokens = picked[picked >= num_prompt_tokens - 1]
        noise = self._rng.normal(0.0, 0.3, (len(tokens), len(CONFIDENCE)))
        confidence = np.array(_TYPICAL["confidence"]) * np.exp(noise.clip(-0.5, 0.5))
        return Scan(
            self._request_id(self.num_requests),
            list(range(self.num_layers)),
            num_prompt_tokens,
            len(positions),
            is_final=True,
            positions=picked.astype("<u4").tobytes(),
            values=values.astype("<f4").tobytes(),
            token_positions=tokens.astype("<u4").tobytes(),
            confidence=confidence.astype("<f4").tobytes(),
        )

    def tables(self, num_rows: int = 8) -> Totals:
        """Measure `num_rows` rows in every cell of every group; the running totals."""
        return Totals([self._table(group, num_rows) for group in self._axes()])

    def signatures(self, num_requests: int = 1, t_ns: int = 0) -> Signatures:
        """Final signatures of the requests told last, of 64 prompt and 9 generated tokens."""
        layers = self.signed_layers
        layout = Layout(layers, layers, layers, probes=list(self.probes))
        first = self.num_requests - num_requests
        return Signatures(
            layout,
            [
                Signature(
                    self._request_id(first + k + 1),
                    t_ns,
                    is_final=True,
                    num_prompt_tokens=64,
                    num_generated_tokens=9,
                    adapter="",
                    preemptions=0,
                    values=self._rng.normal(size=size(layout)).astype("<f4").tobytes(),
                )
                for k in range(num_requests)
            ],
        )

    @property
    def signed_layers(self) -> list[int]:
        """Layers of signatures and of attention: evenly spaced, the first and the last included."""
        last = self.num_layers - 1
        num = min(_SIGNED_LAYERS, self.num_layers)
        return sorted({round(place) for place in np.linspace(0, last, num).tolist()})

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
        done = Finished(
            f"cmpl-{n}-0",
            "length",
            t_ns,
            *(1.0, 0.01, 0.1, 0.89, 0.11, 64, 9, 0),
            start_ns=max(0, t_ns - 1_000_000_000),
            time_to_first_token=0.11,
            max_tokens=9,
            temperature=1.0,
            top_p=1.0,
        )
        first, told = [0.11] * bool(n), [done] * bool(n)
        return Serving(self.model_name, 0, 64 * n, 9 * n, 0, 0, 1, 0, 0.25, first, told)

    @staticmethod
    def _request_id(number: int) -> str:
        return f"cmpl-{number}-0-0badcafe"

    def _axes(self) -> dict[str, list[list[str]]]:
        phases = [phase.value for phase in Phase]
        layers = [str(layer) for layer in range(self.num_layers)]
        heads = [str(head) for head in range(self.num_heads)]
        return {
            "attention": [[str(layer) for layer in self.signed_layers], phases, heads],
            "confidence": [list(self.adapters)],
            "router": [layers, phases],
            "expert_load": [layers, [str(expert) for expert in range(self.num_experts)]],
            "probe": [list(self.probes)],
            "probe_exceedance": [list(self.probes), list(self.quantiles)],
            "requests": [list(self.adapters)],
        }

    def _table(self, group: str, num_rows: int) -> Table:
        axes = self._axes()[group]
        made = self._cells(group, axes, num_rows)
        known = self._tables.get(group)
        if known is not None:
            count, sums = known.count + made.count, known.sums + made.sums
            made = Cells(count, sums, made.extremes, made.last)
        self._tables[group] = made
        return _packed(group, axes, made, last=False)

    def _request_tables(self) -> list[Table]:
        axes = self._axes()
        attention_mean = _packed(
            "attention_mean",
            axes["attention"][:2],
            self._cells("attention", axes["attention"][:2], 1),
            last=True,
        )
        own = {"confidence": [[""]], "router": axes["router"], "probe": axes["probe"]}
        return [
            attention_mean,
            *(_packed(g, own[g], self._cells(g, own[g], 9), last=True) for g in own),
        ]

    def _cells(self, group: str, axes: Sequence[Sequence[str]], num_rows: int) -> Cells:
        shape = tuple(len(labels) for labels in axes)
        typical = np.array(_TYPICAL.get(group, ()))
        noise = self._rng.normal(0.0, 0.1, (num_rows, *shape, len(typical))).clip(-0.3, 0.3)
        values = typical * np.exp(noise)
        phi = _transformed(group, values)
        # Counts differ only where they are all there is, as between experts.
        spread = self._rng.integers(0, num_rows + 1, shape) if not len(typical) else 0
        return Cells(
            (np.full(shape, num_rows) + spread).astype(np.uint64),
            np.stack([values.sum(0), phi.sum(0), (phi * phi).sum(0)], axis=-1),
            np.stack([values.min(0), values.max(0)], axis=-1).astype(np.float32),
            values[-1].astype(np.float32),
        )

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


def _transformed(group: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    phi = values.copy()
    for column, signal in enumerate(GROUPS[group].signals):
        v = values[..., column]
        if signal.transform is Transform.LOG:
            phi[..., column] = np.log(v)
        elif signal.transform is Transform.LOGIT:
            phi[..., column] = np.log(v) - np.log1p(-v)
    return phi


def _packed(group: str, axes: Sequence[Sequence[str]], cells: Cells, *, last: bool) -> Table:
    return Table(
        group,
        [list(labels) for labels in axes],
        cells.count.astype("<u8", copy=False).tobytes(),
        cells.sums.astype("<f8", copy=False).tobytes(),
        cells.extremes.astype("<f4", copy=False).tobytes(),
        cells.last.astype("<f4", copy=False).tobytes() if last else b"",
    )
