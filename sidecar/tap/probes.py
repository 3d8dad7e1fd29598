"""What is measured: from the residual stream of one layer to a few floats per token row.

Plain torch, one definition for compiled graphs, eager mode and CPU. `row_signals` is traced into
the model's graph: no synchronisation, no Python branch on a value, no per-layer constant (one
would cost one compilation per layer). `group_rows` runs after the step, on the same device.
"""

from typing import Final

import torch

from sidecar.wire.frame import NUM_POWERS, NUM_SIGNALS

# Columns of a row, in slab order: the layer signals (RMS as its logarithm), the number of
# non-finite elements, and a count of forward passes that proves the tap ran.
NUM_COLUMNS: Final = NUM_SIGNALS + 2
LOG_RMS, PEAK, INFLUENCE, NONFINITE, PULSE = range(NUM_COLUMNS)

NUM_SUMS: Final = NUM_SIGNALS * NUM_POWERS + 2  # and the finite rows, and non-finite elements
NUM_BOUNDS: Final = 2 * NUM_SIGNALS  # largest -v, largest v

CHUNK_CELLS: Final = 1 << 17  # rows times layers at a time: some 35 MB of scratch space

_TINY: Final = 1e-30  # below any mean square of interest, above the smallest float32
_INFLUENCE_FLOOR: Final = 1e-7  # float32 resolution of a cosine; its logarithm stays finite
_PULSE_PERIOD: Final = 1_000_000.0  # float32 counts exactly to 2^24


def row_signals(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Signals of every token row at one layer.

    before, after: [T, H] residual stream at the layer's input and output, any float type.
    Returns [NONFINITE + 1, T] float32: log RMS, max|h|/RMS, block influence 1 - cos(x, h)
    (Men et al. 2024, arXiv:2403.03853), and the number of non-finite elements of h.
    """
    x, h = before.float(), after.float()
    power = h.square().mean(-1).clamp_min(_TINY)
    peak = h.abs().amax(-1) * power.rsqrt()
    cosine = (x * h).mean(-1) * power.rsqrt() * x.square().mean(-1).clamp_min(_TINY).rsqrt()
    # Floats: a sum of truth values is one of 64-bit integers, four times as wide.
    nonfinite = torch.where(torch.isfinite(h), 0.0, 1.0).sum(-1)
    return torch.stack([0.5 * power.log(), peak, (1.0 - cosine).clamp_min(0.0), nonfinite])


def record(rows: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> None:
    """Write the signals of every row into `rows`, [NUM_COLUMNS, capacity], and count the pass."""
    num_rows = after.shape[0]
    pulse = rows[PULSE, :num_rows] + 1.0
    pulse = torch.where(pulse < _PULSE_PERIOD, pulse, 1.0)
    # Read, then written once: so the compiler writes these columns in place, and no others.
    signals = row_signals(before, after)
    rows[:, :num_rows] = torch.cat([signals, pulse.unsqueeze(0)])


def group_rows(
    rows: torch.Tensor, groups: torch.Tensor, sums: torch.Tensor, bounds: torch.Tensor
) -> None:
    """Add up the rows of each group, and find their extremes.

    rows: [L, NUM_COLUMNS, T] float32 as written by `record`; groups: [T] int64.
    sums: [G, L, NUM_SUMS] and bounds: [G, L, NUM_BOUNDS], overwritten. A row with any non-finite
    signal adds only to the count of non-finite elements. Goes by a few layers at a time, because
    the engine's memory plan knows nothing of our scratch space.
    """
    num_layers, _, num_rows = rows.shape
    step = max(1, CHUNK_CELLS // max(1, num_rows))
    for start in range(0, num_layers, step):
        part = slice(start, start + step)
        _group_layers(rows[part], groups, sums[:, part], bounds[:, part])


def _group_layers(
    rows: torch.Tensor, groups: torch.Tensor, sums: torch.Tensor, bounds: torch.Tensor
) -> None:
    columns = rows.permute(2, 0, 1)
    log_rms, peak, influence, nonfinite = columns[..., :PULSE].unbind(-1)
    values = torch.stack([log_rms.exp(), peak, influence], -1)
    logs = torch.stack([log_rms, _log(peak, _TINY), _log(influence, _INFLUENCE_FLOOR)], -1)
    finite = torch.isfinite(values).all(-1, keepdim=True)

    powers = torch.stack([values, logs, logs.square()], -1).flatten(-2)
    powers = torch.where(finite, powers, 0.0)
    terms = torch.cat([powers, finite.to(powers.dtype), nonfinite.unsqueeze(-1)], -1)
    sums.zero_().index_add_(0, groups, terms.to(sums.dtype))

    signed = torch.where(finite, torch.cat([-values, values], -1), -torch.inf)
    places = groups.view(-1, 1, 1).expand_as(signed)
    bounds.fill_(-torch.inf).scatter_reduce_(0, places, signed, "amax")


def _log(values: torch.Tensor, floor: float) -> torch.Tensor:
    return values.clamp_min(floor).log()
