"""Alive or alarm: which layers have proven that their tap ran.

Each tapped layer counts its forward passes in the graph itself. A layer whose count stands still
over a measured step is dead, whatever plausible numbers its rows still hold.
"""

import numpy as np
from numpy.typing import ArrayLike


class Liveness:
    """Compares the pulses of successive steps.

    layer_ids: global ids of the tapped layers, for naming the dead ones.
    """

    def __init__(self, layer_ids: list[int]) -> None:
        self.dead_layers: list[int] = []
        self.has_proof = False
        self._layer_ids = np.asarray(layer_ids)
        self._last = np.zeros(len(layer_ids))

    def update(self, pulses: ArrayLike) -> None:
        """Judge a step by the pulses after it, [L]."""
        now = np.array(pulses, np.float64)
        self.dead_layers = self._layer_ids[now == self._last].tolist()
        self.has_proof = True
        self._last = now

    @property
    def is_live(self) -> bool:
        """Whether every layer moved in the last judged step."""
        return self.has_proof and not self.dead_layers
