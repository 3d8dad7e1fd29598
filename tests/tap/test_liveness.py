"""Alive or alarm: a layer that does not move over a measured step is dead."""

import numpy as np

from sidecar.tap.liveness import Liveness


def test_without_a_step_nothing_is_proven() -> None:
    """Before the first judged step a tap is neither live nor has it dead layers."""
    liveness = Liveness([0, 1])
    assert not liveness.has_proof
    assert not liveness.is_live
    assert liveness.dead_layers == []


def test_all_layers_moving_is_life() -> None:
    """A step that moved every pulse proves the tap live."""
    liveness = Liveness([0, 1])
    liveness.update([1.0, 1.0])
    assert liveness.is_live
    liveness.update([2.0, 5.0])
    assert liveness.is_live


def test_a_pulse_of_zero_is_dead_from_the_first_step() -> None:
    """A layer that never ran is dead after the first step, by its global number."""
    liveness = Liveness([12, 13, 14])
    liveness.update([1.0, 0.0, 1.0])
    assert liveness.has_proof
    assert not liveness.is_live
    assert liveness.dead_layers == [13]


def test_a_pulse_that_stands_still_is_dead_until_it_moves() -> None:
    """Death is judged step by step, and so is recovery."""
    liveness = Liveness([0, 1])
    liveness.update([4.0, 4.0])
    liveness.update([5.0, 4.0])
    assert liveness.dead_layers == [1]
    liveness.update([6.0, 5.0])
    assert liveness.is_live


def test_a_pulse_that_wraps_is_alive() -> None:
    """Only a standing pulse is dead: at the end of its period it starts again at 1."""
    liveness = Liveness([0])
    liveness.update([999_999.0])
    liveness.update([1.0])
    assert liveness.is_live


def test_pulses_are_judged_by_value_not_by_memory() -> None:
    """The slab reuses its memory for the next step; the last pulses are a copy."""
    liveness = Liveness([0])
    pulses = np.array([1.0], np.float32)
    liveness.update(pulses)
    pulses += 1
    liveness.update(pulses)
    assert liveness.is_live
