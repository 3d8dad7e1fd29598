"""Who gives the orders: the configuration, the operator's control, and the budget.

Everything happens on the pump's thread, once a flush, but for `begin`; the step path reads
`orders`, which is replaced whole.
"""

import time
from collections.abc import Callable
from typing import Final

from sidecar.config import TapConfig
from sidecar.tap.budget import LEVELS, Budget, BusyTime, Level
from sidecar.tap.control import ControlFile
from sidecar.tap.meter import Cost, Meter
from sidecar.tap.orders import Orders, Wish
from sidecar.tap.signature import evenly
from sidecar.tap.slab import Selection, Slab
from sidecar.wire.control import Control
from sidecar.wire.scan import MAX_SHED_LEVEL

_LEAST_LAYERS: Final = 2  # the first and the last
_NUM_KEPT: Final = 64  # selections; one in use on a device must not be freed under it


class Governor:
    """Keeps `orders` up to date.

    layer_ids: global ids of the layers in `slab`. meter: what the tap takes.
    """

    def __init__(
        self,
        config: TapConfig,
        layer_ids: list[int],
        slab: Slab,
        meter: Meter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._layer_ids = layer_ids
        self._slab = slab
        self._meter = meter
        self._clock = clock
        self._file = ControlFile(config.control_path)
        self._budget = Budget(config.budget_share)
        self._busy = BusyTime()
        self._passed_ns: list[int] = []
        self._last: tuple[float, Cost] | None = None
        self._selections: dict[tuple[int, ...], Selection] = {}
        self._obeyed = (Control(), 0)
        self.orders = self._orders(*self._obeyed)

    @property
    def cost_share(self) -> float:
        """The tap's own time over the engine's, of the last closed minute of work."""
        return self._budget.share

    @property
    def refusal(self) -> str:
        """Why the operator's control is not obeyed; "" when it is."""
        return self._file.refusal

    @property
    def num_refused(self) -> int:
        """Controls that could not be obeyed so far."""
        return self._file.num_refused

    def begin(self) -> None:
        """Obey from the first measured step on. Called once, when the engine is warm."""
        self._meter.start()
        self._obey()

    def passed(self, t_ns: int) -> None:
        """A forward pass was launched at this Unix time."""
        self._passed_ns.append(t_ns)

    def govern(self) -> None:
        """Read the costs and the control, and replace the orders where they changed."""
        self._account()
        self._obey()

    def _account(self) -> None:
        now, cost = self._clock(), self._meter.read()
        passed, self._passed_ns = self._passed_ns, []
        busy = self._busy.add(passed)
        if self._last is not None:
            then, before = self._last
            # The pump takes nothing from an engine that has nothing to do.
            engaged = min(1.0, busy / (now - then)) if now > then else 1.0
            taken = cost.host - before.host + cost.device - before.device
            self._budget.update(now, busy, taken + engaged * (cost.pump - before.pump))
        self._last = now, cost

    def _obey(self) -> None:
        self._file.look()
        wanted = self._file.control, self._budget.level
        if wanted != self._obeyed:
            self.orders = self._orders(*wanted)
            self._obeyed = wanted

    def _orders(self, control: Control, shed_level: int) -> Orders:
        config, level = self._config, LEVELS[shed_level]
        asked = _or(control.attention_every, config.attention_every)
        return Orders(
            is_on=control.is_on,
            steps_every=_or(control.steps_every, 1) * level.steps,
            selection=self._select(control.layers, level),
            attention_every=asked * level.attention,
            attention_requests=_or(control.attention_requests, config.attention_requests),
            confidence_every=_or(control.confidence_every, config.confidence_every),
            shed_level=shed_level,
            revision=control.revision,
            scan=_scan(control, shed_level),
        )

    def _select(self, layers: list[int] | None, level: Level) -> Selection | None:
        """The layers that are left; None for all of them."""
        mine = self._layer_ids
        chosen = mine if layers is None else [layer for layer in mine if layer in layers]
        num = max(_LEAST_LAYERS, -(-len(chosen) // level.layers))
        kept = evenly(chosen, num)
        if kept == mine:
            return None
        places = tuple(mine.index(layer) for layer in kept)
        selection = self._selections.pop(places, None) or self._slab.select(list(places))
        self._selections[places] = selection  # the latest stands last
        if len(self._selections) > _NUM_KEPT:
            del self._selections[next(iter(self._selections))]
        return selection


def _scan(control: Control, shed_level: int) -> Wish | None:
    if control.scan_requests is None or shed_level > MAX_SHED_LEVEL:
        return None
    return Wish(control.scan_id or control.revision, control.scan_requests)


def _or(wish: int | None, otherwise: int) -> int:
    return otherwise if wish is None else wish
