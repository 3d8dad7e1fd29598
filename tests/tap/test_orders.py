"""What to measure at which step."""

import pytest

from sidecar.config import TapConfig
from sidecar.tap.governor import Governor
from sidecar.tap.orders import Orders


def measured(orders: Orders) -> list[int]:
    return [step for step in range(9) if orders.measures(step)]


def test_by_default_every_step_is_measured() -> None:
    """And of each the generated tokens."""
    assert measured(Orders()) == list(range(9))
    assert all(Orders().samples_confidence(step) for step in range(9))


def test_every_so_many_steps_begin_with_the_first() -> None:
    """Step 0 is measured whatever the period is."""
    assert measured(Orders(steps_every=4)) == [0, 4, 8]


def test_the_kill_switch_measures_nothing() -> None:
    """Neither steps nor tokens."""
    off = Orders(is_on=False)
    assert measured(off) == []
    assert not any(off.samples_confidence(step) for step in range(9))


@pytest.mark.parametrize(
    ("steps_every", "confidence_every", "sampled"),
    [(1, 3, [0, 3, 6]), (1, 0, []), (2, 3, [0, 6]), (2, 1, [0, 2, 4, 6, 8])],
)
def test_tokens_are_measured_in_measured_steps_alone(steps_every, confidence_every, sampled):
    """Both periods must agree; 0 is never."""
    orders = Orders(steps_every=steps_every, confidence_every=confidence_every)
    assert [step for step in range(9) if orders.samples_confidence(step)] == sampled


def test_the_first_orders_are_the_operators() -> None:
    """What the configuration asks for is in force before the first flush."""
    config = TapConfig(attention_every=3, attention_requests=5, confidence_every=7)
    orders = Governor(config, [0], None, None).orders
    assert (orders.attention_every, orders.attention_requests) == (3, 5)
    assert orders.confidence_every == 7
    assert orders.is_on
    assert orders.shed_level == 0
