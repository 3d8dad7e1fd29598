"""The simulated fleet is one: its sums are of all replicas, by the shipped code."""

from bench import fleet
from bench.fleet import Size, run


def test_a_small_fleet_is_simulated_whole() -> None:
    """Series of a dense model, baselines that add up, replicas that are judged and do not page."""
    found = run(Size(replicas=4, seconds=1, windows=4, contrasted=2)).figures
    assert 1_000 < found["replica"]["series"] <= 2_000
    assert found["replica"]["scrape_gzip_bytes"] < found["replica"]["scrape_bytes"]
    assert found["replica"]["frames_a_second"] == 2 * fleet.NUM_RANKS + 3
    assert found["merge"]["baselines"] == 4
    assert found["merge"]["whole_bytes"] > 0
    assert found["contrast"]["judged"] == 4 * 2
    assert found["contrast"]["pages"] == 0
