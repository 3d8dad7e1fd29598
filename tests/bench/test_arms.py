"""What the arms of the overhead benchmark are configured with, and what makes their figure void."""

import copy

import pytest

from bench.arms import (
    ARMS,
    EAGER_OFF,
    EAGER_ON,
    EVERYTHING,
    HOOKS,
    OFF,
    ON,
    REFERENCE,
    SOURCE,
    TAPPED,
    Turn,
    flaws,
    how,
    sampled,
    settings,
)
from sidecar.config import TapConfig
from sidecar.fold.reducer import Limits, Reducer
from sidecar.publish.api.signals import signals_answer
from sidecar.tap import probe_file
from sidecar.tap.budget import Budget
from sidecar.tap.pooling import Pooling
from sidecar.wire.frame import Body, Frame, Header, Source, pack, unpack
from sidecar.wire.synthetic import SyntheticEngine
from tests.publish.plain import plain, status_of

NUM_LAYERS, HIDDEN_SIZE = 28, 16
NOW = 10**18
TURNS = [Turn(batch=1, tokens=3, times=2), Turn(batch=1, tokens=1, times=2)]  # 8 decode rows


def answers() -> tuple[dict, dict]:
    """Status and signals of an engine that measured all of `TURNS`."""
    engine = SyntheticEngine(
        12, adapters=("",), probes=("a", "b", "c", "d"), num_heads=2, num_experts=2
    )
    bodies: tuple[Body, ...] = (engine.status(), engine.step(), engine.tables(8))
    reducer = Reducer(Limits(30 * 10**9, 10 * 10**9))
    for number, body in enumerate(bodies, 1):
        header = Header("boot-one", Source("engine"), number, NOW, 0, 0)
        reducer.update(unpack(pack(Frame(header, body))), NOW)
    snapshot = reducer.get(NOW)
    return plain(status_of(snapshot)), plain(signals_answer(snapshot))


@pytest.mark.parametrize("name", [ON, EVERYTHING])
def test_a_tapped_arm_sheds_nothing_and_may_be_configured_so(name, tmp_path) -> None:
    """Its settings are valid, the tap is on, and the budget is none."""
    config = TapConfig.read(settings(name, tmp_path, NUM_LAYERS, HIDDEN_SIZE))
    assert config.tap
    budget = Budget(config.budget_share)
    for second in range(0, 600, 5):
        budget.update(second, 5.0, 5.0)
    assert budget.level == 0


def test_everything_is_measured_in_every_step_and_on_the_defaults_else(tmp_path) -> None:
    """The two tapped arms differ in what everything adds, and in nothing else."""
    on, everything = (
        TapConfig.read(settings(name, tmp_path, NUM_LAYERS, HIDDEN_SIZE))
        for name in (ON, EVERYTHING)
    )
    default = TapConfig().model_dump() | {"tap": True, "budget_share": 0.0}
    assert on.model_dump() == default
    added = {"attention_every": 1, "probe_file": tmp_path / "probes.json"}
    assert everything.model_dump() == default | added
    assert everything.attention_layers == 10
    assert everything.confidence_every == 1
    assert everything.signatures
    assert everything.sketch_layers


def test_the_probe_file_has_a_probe_of_each_pooling(tmp_path) -> None:
    """As the tap reads it, at layers from the first to the last."""
    settings(EVERYTHING, tmp_path, NUM_LAYERS, HIDDEN_SIZE)
    probes = probe_file.read(tmp_path / "probes.json", NUM_LAYERS, HIDDEN_SIZE)
    assert {probe.pooling for probe in probes} == set(Pooling)
    assert [probe.layer for probe in probes] == [0, 9, 18, 27]


def test_only_tapped_arms_have_a_tap() -> None:
    """And each arm is compared with one that has none."""
    tapped = [TapConfig.read(settings(name, None, 1, 1)).tap for name in ARMS if name != EVERYTHING]
    assert tapped == [False, False, True, False, True, False]
    assert not {REFERENCE[name] for name in TAPPED} & set(TAPPED)


def test_peers_are_compared_with_what_anybody_would_run() -> None:
    """Not with an eager engine, which is half of what their technique costs."""
    assert REFERENCE[HOOKS] == REFERENCE[EAGER_OFF] == OFF
    assert how(OFF) == how(ON) == how(EVERYTHING) == "compiled"
    assert how(EAGER_OFF) == how(EAGER_ON) == "eager"
    assert how(HOOKS) == "hooks"


@pytest.mark.parametrize("name", [ON, EVERYTHING])
def test_a_run_that_measured_everything_stands(name) -> None:
    """No flaw is found, and all of each group was sampled."""
    status, signals = answers()
    assert flaws(name, status, signals, TURNS) == []
    groups = {"confidence"} | ({"attention"} if name == EVERYTHING else set())
    assert sampled(name, signals, TURNS) == dict.fromkeys(groups, 1.0)


def source(status: dict, signals: dict) -> dict:
    return next(each for each in status["sources"] if each["source"] == SOURCE)


def coverage(status: dict, signals: dict) -> dict:
    return status["coverage"][0]


@pytest.mark.parametrize(
    ("of", "field", "value", "told"),
    [
        (source, "shed_level", 1, "shed level 1"),
        (source, "state", "dead", "not live: dead"),
        (source, "errors", {"probe": 1}, "errors"),
        (source, "dead_layers", [3], "dead layers"),
        (source, "source", "another", "not live: None"),
        (coverage, "lost", 2, "lost: 2"),
        (coverage, "shed", 2, "shed: 2"),
        (coverage, "opted_out", 2, "opted_out: 2"),
        (coverage, "prefix_cached", 2, "prefix_cached: 2"),
        (coverage, "source", "another", "no coverage"),
        (lambda _, signals: signals, "num_left_out", 1, "1 cells left out"),
    ],
)
def test_whatever_was_left_out_makes_a_run_void(of, field, value, told) -> None:
    """Each cause is named."""
    status, signals = answers()
    of(status, signals)[field] = value
    found = flaws(ON, status, signals, TURNS)
    assert len(found) == 1
    assert told in found[0]


def test_a_token_that_was_not_measured_makes_a_run_void() -> None:
    """One decode row fewer than the work is one too few."""
    status, signals = answers()
    status["coverage"][0]["observed"]["decode"]["rest"] -= 1
    assert flaws(ON, status, signals, TURNS) == ["7 decode rows of 8"]


@pytest.mark.parametrize("group", ["confidence", "attention", "probe"])
def test_a_group_that_is_absent_makes_everything_void(group) -> None:
    """`on` needs less: no probes, and attention as rarely as it likes."""
    status, signals = answers()
    without = copy.deepcopy(signals)
    without["cells"] = [cell for cell in signals["cells"] if cell["group"] != group]
    assert len(flaws(EVERYTHING, status, without, TURNS)) == 1
    assert len(flaws(ON, status, without, TURNS)) == (group == "confidence")


def test_attention_of_some_layers_is_not_all_of_it() -> None:
    """A layer that fell silent is missing from the share, and the run is void."""
    status, signals = answers()
    signals["cells"] = [cell for cell in signals["cells"] if cell["labels"].get("layer") != "0"]
    assert sampled(EVERYTHING, signals, TURNS)["attention"] == pytest.approx(0.9)
    assert flaws(EVERYTHING, status, signals, TURNS) == ["attention: 0.900 of it"]
