"""Plausible frames without an engine."""

import numpy as np

from sidecar.wire.frame import Arrays, Frame, Header, pack, unpack
from sidecar.wire.synthetic import SyntheticEngine
from tests.fakes import ENGINE, NOW


def test_the_same_seed_gives_the_same_numbers() -> None:
    """Tests and previews are repeatable."""
    one, other = SyntheticEngine(seed=3), SyntheticEngine(seed=3)

    assert one.step() == other.step()
    assert one.requests(2) == other.requests(2)
    assert one.step() != SyntheticEngine(seed=4).step()


def test_its_bodies_are_frames() -> None:
    """The border that refuses strangers accepts every body."""
    engine = SyntheticEngine()
    for body in (engine.status(), engine.step(), engine.requests(3, NOW), engine.serving(NOW)):
        frame = Frame(Header("boot-one", ENGINE, 1, NOW, 0, 0), body)
        assert frame == unpack(pack(frame))


def test_its_totals_grow_as_an_engine_s_do() -> None:
    """Counts and sums are cumulative, and coverage agrees with the counts."""
    engine = SyntheticEngine()
    first = Arrays.unpack(engine.step().moments, 6)
    body = engine.step()
    second = Arrays.unpack(body.moments, 6)

    np.testing.assert_array_equal(2 * first.count, second.count)
    assert (second.sums[..., 0] >= first.sums[..., 0]).all()
    assert body.coverage.observed == second.count[:, 0].tolist()
