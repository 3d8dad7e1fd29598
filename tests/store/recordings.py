"""Requests that were never served, for tests of what is recorded."""

from collections.abc import Iterator, Sequence

import numpy as np

from sidecar.fold.drift.header import Header
from sidecar.fold.drift.observation import Observation
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout, size

T0 = 1_790_000_000 * 10**9
LAYOUT = Layout([0, 2], sketch_layers=[1], sketch_size=2, probes=["refusal"])
IDENTITY = Identity(model_name="tiny", weights_digest="ab" * 32, dtype="bfloat16", num_layers=3)
HEADER = Header(IDENTITY, LAYOUT, release="0.0.test")


def observations(
    num: int, *, seed: int = 0, t0_ns: int = T0, step_ns: int = 10**9, layout: Layout = LAYOUT
) -> Iterator[Observation]:
    """`num` requests of random values, one every `step_ns`."""
    rng = np.random.default_rng(seed)
    for i in range(num):
        values = rng.normal(size=size(layout)).astype(np.float32)
        values[rng.random(values.size) < 0.1] = np.nan
        route = ("chat", "code", "")[i % 3]
        yield Observation(t0_ns + i * step_ns, "engine-dp0", route, "", 64 + i, 9, "", values)


def assert_same(read: Sequence[Observation], written: Sequence[Observation]) -> None:
    """All fields, and values bit by bit."""
    assert [each[:-1] for each in read] == [each[:-1] for each in written]
    for mine, theirs in zip(read, written, strict=True):
        assert mine.values.dtype == np.float32
        assert mine.values.tobytes() == theirs.values.tobytes()
