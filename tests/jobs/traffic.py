"""Days of pretended traffic as recordings: cheap to make, and their shifts are known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sidecar.fold.drift.header import Header
from sidecar.fold.drift.observation import Observation
from sidecar.store.recording import Recording, RecordingWriter
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout, size

MIDNIGHT = 1_789_948_800 * 10**9
DAY = 86_400 * 10**9
PER_WINDOW = 31  # requests; 30 make a window
LAYOUT = Layout([0, 2])
IDENTITY = Identity(
    model_name="tiny", weights_digest="ab" * 32, dtype="bfloat16", num_layers=3, hidden_size=8
)
SHIFTED = "residual/prefill/l0/log_rms"  # the first entry of a signature


def record(
    folder: Path,
    days: float,
    *,
    first_day: float = 0.0,
    shift: float = 0.0,
    routes: Sequence[str] = ("chat", "code"),
    identity: Identity = IDENTITY,
    layout: Layout = LAYOUT,
    seed: int = 0,
    files_per_day: int = 1,
) -> list[Recording]:
    """Requests every ten seconds; `shift` in standard deviations of the first entry."""
    rng = np.random.default_rng(seed)
    num = round(days * 288 * PER_WINDOW)
    per_file = 288 * PER_WINDOW // files_per_day
    usual = np.linspace(-1, 1, size(layout))
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for start in range(0, num, per_file):
        path = folder / f"{first_day:05.1f}-{start:08}.parquet"
        values = usual + rng.normal(size=(min(per_file, num - start), usual.size))
        values[:, 0] += shift
        with RecordingWriter(path, Header(identity, layout, release="test")) as writer:
            for i, row in enumerate(values.astype(np.float32), start):
                t_ns = MIDNIGHT + int(first_day * DAY + i * 300e9 / PER_WINDOW)
                route = routes[i % len(routes)]
                writer.update(Observation(t_ns, "engine-dp0", route, "", 80, 40, "", row))
        made.append(Recording.open(path))
    return made
