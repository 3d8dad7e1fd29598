"""Groups: what is judged together, and how it varies."""

import numpy as np
import pytest

from sidecar.fold.drift.related import CoMoments, groups_of, related
from sidecar.wire.signature import Layout, entries

LAYOUT = Layout([0, 3], [3], [], [3], 2, 7)


def comoments(rows: np.ndarray) -> CoMoments:
    moments = CoMoments(rows.shape[1])
    moments.update(rows)
    return moments


def correlated(num: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num, 1))
    return np.hstack([x, -x, 0.5 * x + rng.standard_normal((num, 1))])


def test_a_group_is_a_phase_of_a_layer_or_a_sketch() -> None:
    """Attention's signals stand with the residual's of their layer; no entry is in two groups."""
    names = list(entries(LAYOUT))
    groups = {group.name: [names[place] for place in group.places] for group in groups_of(LAYOUT)}

    assert [len(groups[name]) for name in ("prefill/l0", "decode/l3")] == [4, 7]
    assert groups["sketch/l3/last_prompt"] == [f"sketch/l3/last_prompt/{i}" for i in range(2)]
    together = [name for group in groups.values() for name in group]
    assert len(together) == len(set(together))
    assert {name for name in names if not name.startswith("confidence")} == set(together)


def test_co_moments_add_up_in_any_order() -> None:
    """Merged parts are the whole, and rows that were not measured whole are left out."""
    rows = correlated(500)
    rows[::7, 1] = np.nan
    whole = comoments(rows)
    merged = CoMoments(3)
    for part in np.array_split(rows[::-1], 9):
        merged.merge(comoments(part))
    kept = rows[~np.isnan(rows).any(1)]

    assert merged.n == whole.n == len(kept)
    np.testing.assert_allclose(merged.c, whole.c, rtol=1e-12)
    np.testing.assert_allclose(whole.c / (len(kept) - 1), np.cov(kept.T), rtol=1e-12)


def test_a_copy_is_left_alone() -> None:
    """What `get` returned does not change with later updates."""
    moments = comoments(correlated(5))
    copy = moments.get()
    moments.update(correlated(5))

    assert copy.n == 5


def test_correlation_is_pooled_within_strata() -> None:
    """A difference between strata is no correlation, and 0.1 of independence is mixed in."""
    strata = [comoments(correlated(4000) + shift) for shift in (0.0, 100.0)]
    found = related(groups_of(LAYOUT)[0]._replace(places=(0, 1, 2)), strata)

    assert found.rho[0, 1] == pytest.approx(-0.9)
    assert found.rho[0, 2] == pytest.approx(0.9 * 0.5 / np.sqrt(1.25), abs=0.02)
    np.testing.assert_allclose(np.diag(found.rho), 1.0)
    np.testing.assert_allclose(found.mean[1] - found.mean[0], 100.0)


@pytest.mark.parametrize("rows", [np.zeros((0, 3)), np.ones((1, 3)), np.ones((50, 3))])
def test_without_spread_nothing_is_related(rows: np.ndarray) -> None:
    """No row, one, or constants give the identity, which can be inverted."""
    group = groups_of(Layout([0]))[0]._replace(places=(0, 1, 2))
    found = related(group, [comoments(rows)])

    np.testing.assert_allclose(found.rho, np.eye(3))
    assert found.num_rows.tolist() == [len(rows)]
    assert (found.sd == 0).all() if len(rows) > 1 else np.isnan(found.sd).all()
