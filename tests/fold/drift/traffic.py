"""Traffic to fit and judge: observations of a small layout, drawn with a seed."""

from collections.abc import Callable

import numpy as np

from sidecar.fold.drift.header import Header
from sidecar.fold.drift.observation import Observation
from sidecar.fold.drift.window import Assembly
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout, size

LAYOUT = Layout([0, 1], [1], [], [1], 3, 7, ["mood"])
SECOND = 10**9
START_NS = 1_700_000_100 * SECOND  # a multiple of 300 s
HEADER = Header(
    Identity(model_name="m", weights_digest="w", dtype="bfloat16", num_layers=2, hidden_size=8),
    LAYOUT,
    Assembly(),
    release="1",
)


def observation(
    t_ns: int = START_NS,
    level: float = 3.0,
    *,
    route: str = "chat",
    num_prompt_tokens: int = 100,
    canary: str = "",
) -> Observation:
    """A request of which everything measured is `level`."""
    values = np.full(size(LAYOUT), level, np.float32)
    return Observation(t_ns, "engine-dp0-pp0-tp0", route, "", num_prompt_tokens, 20, canary, values)


def traffic(
    num: int, seed: int = 0, seconds: float = 3.0, noise: Callable[..., object] | None = None
) -> list[Observation]:
    """`num` requests, one every `seconds`, of two routes and two lengths; a tenth says little."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(num):
        kind = int(rng.integers(4))
        values = 3.0 + 0.2 * kind + 0.1 * rng.standard_normal(size(LAYOUT))
        if noise is not None:
            values = values + np.asarray(noise(rng, size(LAYOUT)))
        if i % 10 == 0:
            values[:8] = np.nan
        found.append(
            Observation(
                START_NS + int(i * seconds * SECOND),
                f"engine-dp{i % 8}-pp0-tp0",
                ["chat", "code"][kind % 2],
                "",
                [40, 100][kind // 2],
                20,
                "",
                values.astype(np.float32),
            )
        )
    return found
