"""Rows put aside: those of several steps of a steady batch, to be reduced at once.

A step's rows stand in static buffers until the next pass overwrites them. To reduce them takes some
sixty small operations, which a short decode step feels; to copy them takes one for each buffer.
"""

from typing import Final, NamedTuple

import torch

MAX_STEPS: Final = 16  # in one run
MAX_ROWS: Final = 1024  # of all its steps


class Place(NamedTuple):
    """Where the rows of a step stand: the last of `num_steps`, of at most `most`."""

    num_rows: int
    most: int
    num_steps: int


class Aside:
    """Memory for the rows of a run, of buffers [..., capacity] like `rows`.

    The rows of one token row stand together, step by step: [..., num_rows * num_steps].
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self._kept = rows.new_zeros(*rows.shape[:-1], MAX_ROWS)

    def put(self, rows: torch.Tensor, place: Place) -> None:
        """Copy the first rows of `rows`, [..., capacity], to their place. Step path."""
        self._of(place)[..., place.num_steps - 1].copy_(rows[..., : place.num_rows])

    def rows(self, place: Place) -> torch.Tensor:
        """All that was put so far, [..., num_rows * num_steps]."""
        return self._of(place)[..., : place.num_steps].flatten(-2)

    def _of(self, place: Place) -> torch.Tensor:
        used = self._kept[..., : place.num_rows * place.most]
        return used.view(*used.shape[:-1], place.num_rows, place.most)


def most_steps(num_rows: int) -> int:
    """How many steps of so many rows fit."""
    return min(MAX_STEPS, MAX_ROWS // max(1, num_rows))
