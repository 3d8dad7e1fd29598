"""Plans: rare strata fold, and outliers are clipped, as a first look says."""

import numpy as np
import pytest

from sidecar.errors import BaselineError, StateError
from sidecar.fold.drift.plan import Plan, Survey
from sidecar.fold.drift.schema import Schema
from sidecar.wire.signature import Layout
from tests.fold.drift.traffic import LAYOUT, observation, traffic

SCHEMA = Schema.of(LAYOUT)
CHAT = "chat|-|p64-127|g16-31"


def survey(observations: list) -> Survey:
    found = Survey(SCHEMA)
    for each in observations:
        found.update(each)
    return found


def test_rare_strata_fold_into_other() -> None:
    """Fewer than 200 requests are no stratum of their own; what was never seen is new."""
    rare = [observation(route="rare") for _ in range(199)]
    plan = survey([*(observation() for _ in range(200)), *rare]).get()

    assert plan.strata == (CHAT, "other")
    assert plan.rare == {"rare|-|p64-127|g16-31"}
    assert [plan.place(name) for name in (CHAT, *plan.rare, "new")] == [0, 1, 1]
    assert [plan.is_new(name) for name in (CHAT, *plan.rare, "new")] == [False, False, True]


def test_canaries_are_in_no_plan() -> None:
    """A known-safe task of ours is no traffic."""
    assert survey([observation(canary="a@1")] * 300).get().strata == ("other",)


def test_values_are_clipped_at_eight_sd() -> None:
    """Of their stratum; of everything in `other`."""
    observations = [
        observation(level=level, route=route)
        for route, middle in (("chat", 3.0), ("code", 5.0))
        for level in (middle - 0.1, middle + 0.1)
        for _ in range(150)
    ]
    plan = survey(observations).get()
    sd = 0.1 * np.sqrt(300 / 299)

    np.testing.assert_allclose(plan.low[0], 3 - 8 * sd, rtol=1e-6)
    np.testing.assert_allclose(plan.high[1], 5 + 8 * sd, rtol=1e-6)
    assert (plan.high[2] > plan.high[1]).all()
    assert (plan.low.astype(np.float32) == plan.low).all()


@pytest.mark.parametrize("observations", [[], [observation()], [observation()] * 300])
def test_where_no_spread_is_known_nothing_is_clipped(observations: list) -> None:
    """No request, one, or a constant: its change must show in full."""
    plan = survey(observations).get()

    assert plan.strata[-1] == "other"
    assert np.isinf(plan.low).all()
    assert np.isinf(plan.high).all()


def test_surveys_add_up() -> None:
    """Eight parts in any order give the plan of the whole, but for rounding."""
    observations = traffic(2000)
    whole = survey(observations).get()
    merged = Survey(SCHEMA)
    for part in (3, 1, 7, 0, 5, 2, 6, 4):
        merged.merge(survey(observations[part::8]))
    plan = merged.get()

    assert (plan.strata, plan.rare) == (whole.strata, whole.rare)
    np.testing.assert_allclose(plan.low, whole.low, rtol=1e-6)
    np.testing.assert_allclose(plan.high, whole.high, rtol=1e-6)


def test_other_layouts_are_not_surveyed_together() -> None:
    """Their numbers are of other things."""
    with pytest.raises(BaselineError, match="different layouts"):
        Survey(SCHEMA).merge(Survey(Schema.of(Layout([0]))))


def test_a_flood_of_strata_stays_bounded() -> None:
    """Whoever sends a new route with every request fills `other`, not the memory."""
    flood = survey([observation(route=f"r{i}") for i in range(3000)])
    plan = flood.get()

    assert len(plan.rare) <= 1024
    assert plan.strata == ("other",)


def test_plain_plans_come_back() -> None:
    """Equal to what they were, and foreign ones are refused."""
    plan = survey(traffic(1000)).get()
    plain = plan.to_plain()
    back = Plan.from_plain(plain, SCHEMA.num_streams)

    assert plan.equals(back)
    assert not plan.equals(back._replace(low=back.low - 1))
    assert not plan.equals(back._replace(rare=frozenset({"x"})))
    for change in ({"strata": ["a"]}, {"strata": ["other", "other"]}, {"low": {}}, {"rare": None}):
        with pytest.raises(StateError):
            Plan.from_plain({**plain, **change}, SCHEMA.num_streams)
