"""Is routing random? A G-test over windows that chance fools once in a lifetime."""

import numpy as np
import pytest

from sidecar.errors import StateError
from sidecar.fold.drift.affinity import NUM_WINDOWS, Affinity

KINDS = ("chat|-|p64-127|g16-31", "chat|-|p128-255|g16-31", "code|-|p256-511|g64-127")


def drawn(
    rng: np.random.Generator, shares: list[list[float]], num_requests: int = 300
) -> list[dict[str, int]]:
    """One window of a fleet, each replica with its own shares of the kinds."""
    return [
        dict(zip(KINDS, rng.multinomial(num_requests, each).tolist(), strict=True))
        for each in shares
    ]


def test_random_routing_is_never_called_kept() -> None:
    """2000 windows whose mix walks about, alike for all replicas."""
    rng = np.random.default_rng(1)
    affinity = Affinity()
    for _ in range(2000):
        mix = rng.dirichlet([2.0, 2.0, 2.0]).tolist()

        assert not affinity.update(drawn(rng, [mix] * 8))


def test_sessions_kept_at_replicas_are_seen_at_once() -> None:
    """Each replica with its own users: one window is enough, and the size says how strong."""
    rng = np.random.default_rng(2)
    affinity = Affinity()
    shares = rng.dirichlet([1.0, 1.0, 1.0], 8).tolist()

    assert affinity.update(drawn(rng, shares))
    assert affinity.size > 0.3


def test_a_mild_affinity_is_seen_over_windows() -> None:
    """Shares a few points apart need several windows, and are seen."""
    rng = np.random.default_rng(3)
    affinity = Affinity()
    shares = [[0.5, 0.3, 0.2]] * 4 + [[0.4, 0.35, 0.25]] * 4
    found = [affinity.update(drawn(rng, shares, 200)) for _ in range(NUM_WINDOWS)]

    assert not found[0]
    assert found[-1]


def test_what_is_too_small_to_matter_is_let_pass() -> None:
    """Half a point of difference, certain at a million requests, stops nothing."""
    rng = np.random.default_rng(4)
    affinity = Affinity()
    shares = [[0.5, 0.3, 0.2]] * 4 + [[0.495, 0.305, 0.2]] * 4
    for _ in range(NUM_WINDOWS):
        assert not affinity.update(drawn(rng, shares, 1_000_000))


def test_it_is_armed_again_when_routing_is_random_again() -> None:
    """After as many windows as are judged together."""
    rng = np.random.default_rng(5)
    affinity = Affinity()
    affinity.update(drawn(rng, rng.dirichlet([1.0, 1.0, 1.0], 8).tolist()))
    for _ in range(NUM_WINDOWS):
        affinity.update(drawn(rng, [[0.5, 0.3, 0.2]] * 8))

    assert not affinity.is_kept


def test_a_replica_whose_answers_grew_is_not_routing() -> None:
    """The length of an answer is the replica's doing, so it is left out."""
    longer = {"chat|-|p64-127|g512-1023": 500}
    affinity = Affinity()

    assert not affinity.update([{"chat|-|p64-127|g16-31": 500}, longer, longer])


@pytest.mark.parametrize(
    "replicas", [[], [{}, {}], [{KINDS[0]: 90}] * 3, [{KINDS[0]: 90, KINDS[2]: 1}] * 3]
)
def test_one_kind_or_nothing_says_nothing(replicas: list[dict[str, int]]) -> None:
    """No table, no verdict."""
    affinity = Affinity()

    assert not affinity.update(replicas)
    assert affinity.size == 0


def test_it_goes_on_where_it_stopped() -> None:
    """Exported and restored, it says the same; a stranger's state is refused."""
    rng = np.random.default_rng(6)
    windows = [drawn(rng, rng.dirichlet([30.0, 20.0, 20.0], 6).tolist()) for _ in range(20)]
    one, other = Affinity(), Affinity()
    said = [one.update(each) for each in windows]
    again = [other.update(each) for each in windows[:7]]
    restored = Affinity()
    restored.restore(other.export())

    assert again + [restored.update(each) for each in windows[7:]] == said
    assert restored.size == one.size
    with pytest.raises(StateError):
        restored.restore({"looks": [[1]]})
