"""What the capacity bench loads a sidecar with, and that its short form measures a real one."""

import pytest

from bench.capacity import growth, ingest, memory, sender
from bench.capacity.frames import SIZES, Stream, body_of, traffic
from bench.capacity.growth import Growth, accepting
from bench.report import Target
from sidecar.wire.frame import Layers, Requests, Signatures, Source, Status, Totals, unpack
from sidecar.wire.synthetic import SyntheticEngine

NOW = 1_790_000_000 * 10**9


@pytest.mark.parametrize("kilobytes", SIZES)
def test_a_frame_is_as_large_as_it_is_called(kilobytes) -> None:
    """Within a tenth, and the wire takes it."""
    message = Stream(Source("engine")).message(body_of(kilobytes), NOW)
    assert len(message) == pytest.approx(1000 * kilobytes, rel=0.1)
    assert unpack(message).header.seq == 1


def test_traffic_is_a_hundred_frames_of_every_kind() -> None:
    """All that grows a sidecar's memory is among them."""
    bodies = list(traffic(SyntheticEngine(4), NOW))
    assert len(bodies) == 100
    kinds = {type(body) for body in bodies}
    assert {Layers, Totals, Requests, Signatures, Status} <= kinds


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_is_that_of_the_cost(power) -> None:
    """A cost that is a power of its size, after two sizes that are all overhead."""
    sizes = [1, 2, 10, 20, 40]
    costs = [500.0, 500.0, *(3.0 * size**power for size in sizes[2:])]
    assert Growth("a", "b", "us", sizes, costs).exponent == pytest.approx(power)


def test_a_frame_that_is_refused_is_not_measured() -> None:
    """Refusing is quick: its cost would say nothing of taking it in."""
    with pytest.raises(RuntimeError, match="oversized"):
        accepting(SyntheticEngine(80).requests(200, NOW))


def test_a_target_says_whether_it_is_met() -> None:
    """In words, with both figures."""
    assert not Target.at_least("frames", 4000, 3999).is_met
    assert (
        str(Target.at_most("memory", 250, 120.4, "MB")) == "Target: memory: 120.4 MB of 250: met."
    )


@pytest.mark.parametrize(
    ("dropped", "seconds", "is_met"), [(0, 15.0, True), (3, 15.0, False), (0, 16.0, False)]
)
def test_frames_at_the_target_rate_must_all_arrive(dropped, seconds, is_met) -> None:
    """CPU alone could take more than what arrives; and a sender that is too slow proves nothing."""
    pushed = [ingest.Pushed(1000 * each, 1000, 3000.0, 170.0, 0, {}) for each in SIZES]
    paced = {"sent": 60_000, "dropped": dropped, "lost": 0, "seconds": seconds}
    per_cpu, at_pace = ingest.section(ingest.Size(), pushed, paced).figures["targets"]
    assert per_cpu["found"] == pytest.approx(1e6 / 170)
    assert (per_cpu["is_met"], at_pace["is_met"]) == (True, is_met)


def test_a_real_sidecar_takes_in_what_it_is_pushed() -> None:
    """Each size, a pace, and nothing is lost where the sender waits."""
    found = ingest.run(ingest.Size(frames=500, seconds=0.2)).figures
    assert [each["lost"] for each in found["pushed"]] == [0, 0, 0]
    # CPU is counted in hundredths of a second: what the smallest frames took may be none.
    assert found["pushed"][SIZES.index(200)]["cpu_us"] > 20
    assert found["paced"]["sent"] == 801
    assert found["paced"]["lost"] == 0


def test_a_send_to_nobody_is_dropped_and_one_to_a_sidecar_is_not() -> None:
    """The three kinds of receivers are what they are called."""
    costs = {each["receiver"]: each for each in sender.run(sender.Size(1, 300)).figures["costs"]}
    assert costs["absent"]["dropped"] == 1.0
    assert costs["up"]["dropped"] < costs["slow"]["dropped"] < 1.0


def test_memory_is_looked_at_while_the_sidecar_publishes_most() -> None:
    """Some 50,000 series, after the frames that were asked for."""
    figures = memory.run(memory.Size(200)).figures
    last = figures["looks"][-1]
    assert last["frames"] == 200
    assert last["series"] > 48_000
    assert last["rss_mb"] > figures["empty_mb"] > 10


def test_growth_has_a_row_for_each_cost() -> None:
    """With as many costs as sizes, none of them nothing."""
    grown = growth.run(growth.Size(1, 3)).figures["growth"]
    assert {"layers", "requests in it", "ranks", "strata"} <= {each["driver"] for each in grown}
    assert all(len(each["sizes"]) == len(each["costs"]) == 3 for each in grown)
    assert all(min(each["costs"]) > 0 for each in grown)
