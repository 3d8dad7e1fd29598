"""Who gives the orders: configuration, control and budget, each within the one before."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sidecar.config import TapConfig
from sidecar.tap.budget import LEVELS
from sidecar.tap.governor import Governor
from sidecar.tap.meter import Cost
from sidecar.tap.orders import Orders
from sidecar.tap.slab import Slab
from sidecar.wire import control
from sidecar.wire.control import Control
from tests.tap.test_budget import SECOND

LAYER_IDS = list(range(20, 29))  # the second stage of a pipeline
CONFIG = {"attention_every": 5, "attention_requests": 7, "confidence_every": 3}
UNTOUCHED = Orders(attention_every=5, attention_requests=7, confidence_every=3)


class FakeMeter:
    """Costs as told, and whether it runs."""

    def __init__(self) -> None:
        self.cost = Cost(0.0, 0.0, 0.0)
        self.is_started = False

    def start(self) -> None:
        self.is_started = True

    def read(self) -> Cost:
        return self.cost


class Governed:
    """A governor, and an engine that steps every 10 ms while it is busy."""

    def __init__(self, folder: Path, **options: object) -> None:
        config = TapConfig(socket=folder / "i.sock", **{**CONFIG, **options})
        self.path = config.control_path
        self.meter, self.now, self.t_ns = FakeMeter(), 100.0, SECOND
        slab = Slab(len(LAYER_IDS), 8, 4, torch.device("cpu"))
        self.governor = Governor(config, LAYER_IDS, slab, self.meter, lambda: self.now)
        self.governor.begin()

    @property
    def orders(self) -> Orders:
        return self.governor.orders

    @property
    def layers(self) -> list[int]:
        """Global ids of the layers that are added up."""
        selection = self.orders.selection
        return LAYER_IDS if selection is None else [LAYER_IDS[i] for i in selection.places]

    def ask(self, **wishes: object) -> None:
        control.write(self.path, Control(**wishes))
        self.governor.govern()

    def flush(self, seconds: float = 1.0, busy: float = 1.0, **cost: float) -> None:
        """Serve for `busy` of so many seconds, at a cost, and let the pump flush."""
        for _ in range(round(busy * seconds * 100)):
            self.t_ns += SECOND // 100
            self.governor.passed(self.t_ns)
        self.t_ns += round((1 - busy) * seconds * SECOND)
        self.now += seconds
        before = self.meter.cost
        self.meter.cost = Cost(
            before.host + cost.get("host", 0.0),
            before.pump + cost.get("pump", 0.0),
            before.device + cost.get("device", 0.0),
        )
        self.governor.govern()

    def serve(self, seconds: int, busy: float = 1.0, **cost: float) -> None:
        for _ in range(seconds):
            self.flush(1.0, busy, **cost)


@pytest.fixture
def governed(tmp_path: Path) -> Iterator[Governed]:
    return Governed(tmp_path)


def test_without_a_word_the_configuration_is_in_force(governed) -> None:
    """Nothing is left out, and the tap measures what it takes from now on."""
    assert governed.orders == UNTOUCHED
    governed.governor.govern()
    assert governed.orders == UNTOUCHED
    assert governed.meter.is_started


def test_the_control_is_obeyed_from_the_first_step_on(tmp_path: Path) -> None:
    """A kill switch thrown before the engine starts lets no row through."""
    control.write(TapConfig(socket=tmp_path / "i.sock").control_path, Control(is_on=False))
    assert not Governed(tmp_path).orders.is_on


def test_each_wish_replaces_the_configuration_and_nothing_else(governed) -> None:
    """And its removal brings the configuration back."""
    governed.ask(revision="r1", attention_every=0)
    assert governed.orders == UNTOUCHED._replace(revision="r1", attention_every=0)
    governed.ask(revision="r2", attention_requests=1, confidence_every=0, steps_every=4)
    assert governed.orders == UNTOUCHED._replace(
        revision="r2", attention_requests=1, confidence_every=0, steps_every=4
    )
    governed.ask(revision="r3", is_on=False)
    assert governed.orders == UNTOUCHED._replace(revision="r3", is_on=False)
    control.remove(governed.path)
    governed.governor.govern()
    assert governed.orders == UNTOUCHED


def test_a_bad_control_changes_no_order_and_is_told(governed) -> None:
    """The revision in force is that of the last good one."""
    governed.ask(revision="good", is_on=False)
    before = governed.orders
    governed.path.write_text('{"is_on": "yes"}')
    governed.governor.govern()
    assert governed.orders is before
    assert "is_on" in governed.governor.refusal
    assert governed.governor.num_refused == 1


def test_layers_are_chosen_by_their_global_ids(governed) -> None:
    """In the order of the slab, once each; those of other stages are not ours."""
    governed.ask(layers=[27, 3, 20, 27, 24, 99])
    assert governed.layers == [20, 24, 27]
    np.testing.assert_array_equal(governed.orders.selection.places, [0, 4, 7])
    torch.testing.assert_close(governed.orders.selection.device_places, torch.tensor([0, 4, 7]))
    governed.ask(layers=[3])
    assert governed.layers == []
    governed.ask(layers=LAYER_IDS)
    assert governed.orders.selection is None


def test_orders_that_do_not_change_are_not_made_anew(governed) -> None:
    """Nor is a choice of layers uploaded again when it comes back."""
    governed.ask(layers=[20, 21])
    first = governed.orders
    for _ in range(5):
        governed.governor.govern()
    assert governed.orders is first
    governed.ask(layers=[22])
    governed.ask(layers=[20, 21], steps_every=2)
    assert governed.orders.selection is first.selection


def test_choices_of_layers_do_not_pile_up(governed) -> None:
    """Yet the ones in use shortly before stay: a device may still read them."""
    for number in range(200):
        layers = [LAYER_IDS[i] for i in range(8) if number >> i & 1] or [LAYER_IDS[8]]
        governed.ask(layers=layers)
        assert governed.layers == layers
    assert len(governed.governor._selections) == 64
    oldest = next(iter(governed.governor._selections.values()))
    governed.ask(layers=[LAYER_IDS[i] for i in oldest.places])
    assert governed.orders.selection is oldest
    governed.ask(layers=[LAYER_IDS[8], LAYER_IDS[7]])  # one more than are kept
    governed.ask(layers=[LAYER_IDS[i] for i in oldest.places])
    assert governed.orders.selection is oldest


def test_the_levels_shed_what_their_table_says(governed) -> None:
    """Attention first, then layers, then steps; the first and the last layer stay."""
    seen = [governed.orders]
    layers = [governed.layers]
    for _ in range(300):
        governed.flush(host=0.5)
        if governed.orders is not seen[-1]:
            seen.append(governed.orders)
            layers.append(governed.layers)
    assert [orders.shed_level for orders in seen] == list(range(len(LEVELS)))
    assert [orders.attention_every for orders in seen] == [5, 10, 20, 0, 0, 0, 0, 0, 0]
    assert [orders.steps_every for orders in seen] == [1, 1, 1, 1, 1, 1, 2, 4, 16]
    assert [len(kept) for kept in layers] == [9, 9, 9, 9, 5, 3, 3, 3, 3]
    assert layers[4] == [20, 22, 24, 26, 28]
    assert layers[8] == [20, 24, 28]
    assert {orders.confidence_every for orders in seen} == {3}


def test_the_budget_cuts_what_the_operator_left(governed) -> None:
    """Wishes and levels multiply; a chosen subset is thinned, not replaced."""
    governed.serve(300, host=0.5)
    governed.ask(layers=[21, 22, 23, 24, 25, 26], steps_every=3, attention_every=2, is_on=False)
    assert governed.orders.shed_level == len(LEVELS) - 1
    assert governed.layers == [21, 26]
    assert governed.orders.steps_every == 48
    assert governed.orders.attention_every == 0
    assert not governed.orders.is_on
    governed.ask(layers=[21, 22, 23])
    assert governed.layers == [21, 23]
    governed.ask(layers=[22])
    assert governed.layers == [22]


@pytest.mark.parametrize("part", ["host", "pump", "device"])
def test_each_part_of_the_cost_counts(governed, part: str) -> None:
    """A hundredth of the time is the limit: just below it nothing is shed, above it all is."""
    governed.serve(60, **{part: 0.009})
    assert governed.orders.shed_level == 0
    assert governed.governor.cost_share == pytest.approx(0.009, rel=0.02)
    governed.serve(200, **{part: 0.02})
    assert governed.orders.shed_level == len(LEVELS) - 1


def test_an_engine_with_nothing_to_do_loses_nothing_to_the_pump(governed) -> None:
    """Our thread polls on while the engine idles; only the busy part of that is a cost."""
    governed.serve(100, busy=0.1, pump=0.009)
    assert governed.governor.cost_share == pytest.approx(0.009, rel=0.5)
    assert governed.orders.shed_level == 0
    governed.serve(1000, busy=0.1, host=0.009)
    assert governed.orders.shed_level > 0


def test_what_was_taken_before_the_first_flush_is_not_held_against_us(tmp_path: Path) -> None:
    """Loading the model took seconds of ours, and no forward pass."""
    governed = Governed(tmp_path)
    governed.meter.cost = Cost(30.0, 30.0, 30.0)
    governed.governor.govern()
    governed.serve(60)
    assert (governed.governor.cost_share, governed.orders.shed_level) == (0.0, 0)


def test_a_budget_of_zero_is_no_limit(tmp_path: Path) -> None:
    """The share is told, and nothing is shed."""
    governed = Governed(tmp_path, budget_share=0.0)
    governed.serve(200, host=0.5)
    assert governed.orders == UNTOUCHED
    assert governed.governor.cost_share == pytest.approx(0.5, rel=0.02)
