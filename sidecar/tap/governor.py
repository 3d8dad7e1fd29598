"""Who gives the orders: the configuration, the operator's control, and the budget.

Everything happens on the pump's thread, once a flush; the step path reads `orders`, which is
replaced whole.
"""

from sidecar.config import TapConfig
from sidecar.tap.orders import Orders
from sidecar.tap.slab import Slab


class Governor:
    """Keeps `orders` up to date.

    cost_share: the tap's own time over the engine's, of the last closed minute.
    """

    def __init__(self, config: TapConfig, layer_ids: list[int], slab: Slab) -> None:
        self.cost_share = 0.0
        self._layer_ids = layer_ids
        self._slab = slab
        self.orders = Orders(
            attention_every=config.attention_every,
            attention_requests=config.attention_requests,
            confidence_every=config.confidence_every,
        )

    def govern(self) -> None:
        """Read the control and the costs, and replace the orders where they changed."""
