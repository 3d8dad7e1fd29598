"""Sketches: directions that are the same everywhere, and orthonormal."""

import numpy as np
import pytest

from sidecar.tap.sketch import Sketching, directions


def test_directions_are_those_of_every_other_machine() -> None:
    """What was drawn once is drawn for ever: baselines are compared over years of releases."""
    golden = [
        [0.35648549, -0.80642694, -0.00089612, -0.39885139, 0.25201282],
        [-0.01747588, 0.46963629, 0.238763, -0.81615692, 0.23667796],
    ]
    drawn = directions(7, 3, 2, 5)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn, golden, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("num", "hidden_size"), [(1, 1), (3, 3), (16, 224), (64, 512)])
def test_directions_are_orthonormal(num, hidden_size) -> None:
    """Each has length 1 and none is seen in another."""
    drawn = directions(0, 0, num, hidden_size).astype(np.float64)
    np.testing.assert_allclose(drawn @ drawn.T, np.eye(num), atol=1e-6)


def test_every_seed_and_every_layer_has_directions_of_its_own() -> None:
    """No two of them agree, also where seed and layer are exchanged."""
    drawn = [
        directions(seed, layer, 2, 8) for seed, layer in [(0, 0), (0, 1), (1, 0), (1 << 61, 0)]
    ]
    for number, one in enumerate(drawn):
        for other in drawn[:number]:
            assert np.abs(one - other).max() > 0.1


def test_directions_point_nowhere_in_particular() -> None:
    """Over many seeds no coordinate is preferred and no sign: mean 0, mean square 1 / H."""
    drawn = np.stack([directions(seed, 0, 2, 8) for seed in range(2000)]).astype(np.float64)
    spread = 5 / np.sqrt(len(drawn))  # standard errors of coordinates of size 1 at most
    assert np.abs(drawn.mean(0)).max() < spread * np.sqrt(1 / 8)
    assert np.abs((drawn**2).mean(0) - 1 / 8).max() < spread * 1 / 8 * np.sqrt(2)


def test_a_sketch_has_the_directions_of_its_layers_in_order() -> None:
    """One layer after the other; none without layers."""
    drawn = Sketching([4, 9], 3, 5).directions(8)
    np.testing.assert_array_equal(drawn[:3], directions(5, 4, 3, 8))
    np.testing.assert_array_equal(drawn[3:], directions(5, 9, 3, 8))
    assert Sketching([], 0, 0).directions(8).shape == (0, 8)
