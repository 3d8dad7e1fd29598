"""Plausible frames without an engine."""

import numpy as np
import pytest

from sidecar.wire.frame import Arrays, Cells, Frame, Header, pack, unpack
from sidecar.wire.signals import GROUPS
from sidecar.wire.synthetic import SyntheticEngine
from tests.fakes import ENGINE, NOW


def test_the_same_seed_gives_the_same_numbers() -> None:
    """Tests and previews are repeatable."""
    one, other = SyntheticEngine(seed=3), SyntheticEngine(seed=3)

    assert one.step() == other.step()
    assert one.requests(2) == other.requests(2)
    assert one.tables() == other.tables()
    assert one.signatures(2) == other.signatures(2)
    assert one.step() != SyntheticEngine(seed=4).step()


def test_its_bodies_are_frames() -> None:
    """The border that refuses strangers accepts every body."""
    engine = SyntheticEngine()
    bodies = (
        *(engine.status(), engine.step(), engine.tables(), engine.requests(3, NOW)),
        *(engine.signatures(3, NOW), engine.serving(NOW)),
    )
    for body in bodies:
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


def test_every_group_is_told() -> None:
    """As running totals, or of requests."""
    engine = SyntheticEngine()
    (request,) = engine.requests(1).requests
    groups = {table.group for table in (*engine.tables().tables, *request.tables)}

    assert groups == set(GROUPS)


@pytest.mark.parametrize("num_layers", [1, 6, 80])
def test_its_tables_are_plausible(num_layers: int) -> None:
    """Totals grow; means lie between the extremes; shares and probabilities below 1."""
    engine = SyntheticEngine(num_layers, num_heads=2)
    first, second = engine.tables(), engine.tables()
    for before, table in zip(first.tables, second.tables, strict=True):
        old, new = Cells.unpack(before), Cells.unpack(table)
        assert (new.count >= old.count).all()
        means = new.sums[..., 0] / np.maximum(new.count, 1)[..., None]
        assert np.isfinite(new.sums).all()
        assert (np.abs(means - new.extremes.mean(-1)) < 0.5 * np.abs(means)).all()
        if table.group == "attention":
            assert (new.extremes[..., [0, 1, 3], :] < 1).all()
            assert len(table.axes[0]) == min(10, num_layers)


def test_signatures_are_those_of_the_requests_told() -> None:
    """The two can be joined by id."""
    engine = SyntheticEngine()
    ids = [request.id for request in engine.requests(3).requests]

    assert ids == [each.id for each in engine.signatures(3).signatures]
