"""What is measured: from the residual stream of one layer to a few floats per token row.

Plain torch, one definition for compiled graphs, eager mode and CPU. `row_moments` is traced into
the model's graph, once for each layer, so it does what only the graph can do, and as little: every
operation more there is compile time. No synchronisation, no Python branch on a value, no per-layer
constant (one would cost one compilation per layer). `row_signals` and `group_rows` make signals of
it after the step, on the same device, for all layers at once.
"""

from typing import Final

import torch

from sidecar.wire.frame import NUM_POWERS, NUM_SIGNALS

# Columns of a row, in slab order: what signals are made of, the number of non-finite elements, and
# a count of forward passes that proves the tap ran.
NUM_COLUMNS: Final = 5
POWER, LARGEST, ALONG, NONFINITE, PULSE = range(NUM_COLUMNS)

LOG_RMS, PEAK, INFLUENCE = range(NUM_SIGNALS)  # signals of a row, RMS as its logarithm

NUM_SUMS: Final = NUM_SIGNALS * NUM_POWERS + 2  # and the finite rows, and non-finite elements
NUM_BOUNDS: Final = 2 * NUM_SIGNALS  # largest -v, largest v

CHUNK_CELLS: Final = 1 << 17  # rows times layers at a time: some 35 MB of scratch space

_TINY: Final = 1e-30  # below any mean square of interest, above the smallest float32
_INFLUENCE_FLOOR: Final = 1e-7  # float32 resolution of a cosine; its logarithm stays finite
_PULSE_PERIOD: Final = 1_000_000.0  # float32 counts exactly to 2^24


def row_moments(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """What the graph tells of every token row at one layer.

    before, after: [T, H] residual stream x at the layer's input and h at its output, any float
    type. Returns [PULSE, T] float32: mean square of h, max|h|, mean product of h with x / RMS(x),
    and the number of non-finite elements of h.
    """
    x, h = before.float(), after.float()
    along = (x * h).mean(-1) * x.square().mean(-1).clamp_min(_TINY).rsqrt()
    # Floats: a sum of truth values is one of 64-bit integers, four times as wide.
    nonfinite = torch.where(torch.isfinite(h), 0.0, 1.0).sum(-1)
    return torch.stack([h.square().mean(-1), h.abs().amax(-1), along, nonfinite])


def row_signals(
    power: torch.Tensor, largest: torch.Tensor, along: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log RMS, max|h|/RMS and block influence 1 - cos(x, h) of rows, of their first three columns.

    Any shape. Block influence: Men et al. 2024, arXiv:2403.03853.
    """
    power = power.clamp_min(_TINY)
    inverse = power.rsqrt()
    return 0.5 * power.log(), largest * inverse, (1.0 - along * inverse).clamp_min(0.0)


def record(rows: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> None:
    """Write the moments of every row into `rows`, [NUM_COLUMNS, capacity], and count the pass."""
    num_rows = after.shape[0]
    pulse = rows[PULSE, :num_rows] + 1.0
    pulse = torch.where(pulse < _PULSE_PERIOD, pulse, 1.0)
    # Read, then written once: so the compiler writes these columns in place, and no others.
    moments = row_moments(before, after)
    rows[:, :num_rows] = torch.cat([moments, pulse.unsqueeze(0)])


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
    *moments, nonfinite = columns[..., :PULSE].unbind(-1)
    log_rms, peak, influence = row_signals(*moments)
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
