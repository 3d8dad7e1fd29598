"""The overhead benchmark's order of turns, tables and command line; engines are fakes."""

import json
import pickle

import pytest
import torch

from bench import arm, engines, observed, overhead
from bench.arms import ARMS
from bench.engines import Started, Workload, taken
from bench.overhead_table import table
from bench.ratios import Taken

RATES = {
    "off": 100.0,
    "again": 100.0,
    "on": 80.0,
    "everything": 50.0,
    "eager-off": 40.0,
    "hooks": 10.0,
}


class Engines:
    """Makes fake engines, and keeps what they were asked in order."""

    def __init__(self, flaws=()) -> None:
        self.asked: list[str] = []
        self.counted: list = []
        self.flaws = list(flaws)
        self.num_stopped = 0

    def __call__(self, name, folder, shape, placing) -> "FakeEngine":
        return FakeEngine(name, self)


class FakeEngine:
    """An engine as fast as its name says."""

    def __init__(self, name, all_of_them) -> None:
        self.name = name
        self._all = all_of_them

    def started(self) -> Started:
        return Started(110.0 if self.name == "on" else 100.0, 0.0, 1e9)

    def turn(self, workload) -> Taken:
        self._all.asked.append(self.name)
        return Taken(RATES[self.name], 1 / RATES[self.name], [1 / RATES[self.name]] * 4)

    def flaws(self, turns) -> list[str]:
        self._all.counted = list(turns)
        return self._all.flaws if self.name == "on" else []

    def stop(self) -> None:
        self._all.num_stopped += 1


def test_arms_take_turns_in_an_order_that_is_reversed_each_round(tmp_path) -> None:
    """A machine that slows down during a round hits each arm as often first as last."""
    made = Engines()
    overhead.main(["--quick", "--rounds=2", "--arms=off,on"], made)
    warm, rounds = ["off", "off", "on", "on"], ["off", "on", "on", "off"]
    assert made.asked == 3 * (warm + rounds)
    assert made.num_stopped == 2
    assert [(each.batch, each.times) for each in made.counted] == [(1, 4), (8, 4), (32, 4)]


def test_each_arm_is_compared_with_its_reference(tmp_path, capsys) -> None:
    """The file has the ratios, the seed, the command and the machine; the tables are printed."""
    path = tmp_path / "result.json"
    names = "off,again,on,everything,eager-off,hooks"
    options = ["--shape=quick", "--rounds=4", f"--arms={names}", f"--json={path}"]
    overhead.main(options, Engines())
    found = json.loads(path.read_text())
    ratios = {
        (each["arm"], each["reference"]): each["compared"]["rate"]["ratio"]
        for each in found["rows"]
    }
    expected = {("again", "off"): 1.0, ("on", "off"): 0.8, ("everything", "off"): 0.5}
    expected |= {("eager-off", "off"): 0.4, ("hooks", "off"): 0.1}
    assert ratios == pytest.approx(expected)
    command = f"python -m bench.overhead --arms {names} --shape quick --rounds 4 --json {path}"
    assert found["command"] == command
    assert {"seed", "machine", "load_average", "shape", "seconds"} <= set(found)
    printed = capsys.readouterr().out
    assert "\n".join(table(found)) in printed
    assert "tok/s >= 0.98: MISSED; p99 <= 1.02: MISSED" in printed
    assert "| on | off | 100 to 110 | 1.10 |" in printed
    assert "re-implementation" in printed
    assert "engines that are alike" in printed


def test_a_quick_run_loads_all_arms_at_once_and_compares_no_start(tmp_path, capsys) -> None:
    """They slow each other down then; of those that came none is left when another fails."""
    path = tmp_path / "result.json"
    overhead.main(["--quick", f"--json={path}"], Engines())
    assert json.loads(path.read_text())["start_ratios"] == []
    assert "load and compile" not in capsys.readouterr().out
    made = Engines()

    def make(name, *others):
        if name == "on":
            raise RuntimeError("did not load")
        return made(name, *others)

    with pytest.raises(RuntimeError, match="did not load"):
        overhead.main(["--quick"], make)
    assert made.num_stopped == 1


def test_a_run_goes_on_until_it_is_known_well_enough() -> None:
    """Without noise at once, and never beyond the most rounds."""
    made = Engines()
    overhead.main(["--quick", "--rounds=3", "--until=0.01"], made)
    assert made.asked.count("on") == 3 * (2 + 3)


def test_a_run_that_a_tap_did_not_measure_is_void(tmp_path, capsys) -> None:
    """No table is printed, no file is written, and no engine is left."""
    path, made = tmp_path / "result.json", Engines(flaws=["shed level 1"])
    with pytest.raises(RuntimeError, match="void: on did not measure everything: shed level 1"):
        overhead.main(["--quick", f"--json={path}"], made)
    assert "tok/s" not in capsys.readouterr().out
    assert not path.exists()
    assert made.num_stopped == 2


@pytest.mark.parametrize("arms", ["on", "off,eager-on", "off,fast"])
def test_an_arm_without_its_reference_is_refused(arms, capsys) -> None:
    """A ratio needs both; the message names what is missing."""
    with pytest.raises(SystemExit):
        overhead.main([f"--arms={arms}"], Engines())
    assert "name that too" in capsys.readouterr().err or arms == "off,fast"


def test_workloads_are_heavy_of_decoding_or_of_prompts() -> None:
    """Both at several batches, on a CPU and on a GPU."""
    options = overhead._options([])
    for is_gpu, most in ((False, 32), (True, 256)):
        options.is_gpu = is_gpu
        found = overhead.workloads(options)
        assert {each.name for each in found} == {"decode", "prefill"}
        assert max(each.batch for each in found) == most
        assert all(each.prompt + each.tokens <= engines._ROOM_TOKENS for each in found)


def test_a_rate_is_of_what_the_workload_is_heavy_of() -> None:
    """Generated tokens after the first, or tokens of the prompts."""
    told = {"first": [1.0, 3.0], "prefill": 4.0, "steps": [0.5, 0.5], "decode": 1.0}
    assert taken(Workload("decode", 2, 32, 3), told).rate == 4.0
    assert taken(Workload("prefill", 2, 256, 3), told).rate == 128.0
    assert taken(Workload("prefill", 2, 256, 3), told).first == 2.0


class TinyDecoderLayer(torch.nn.Module):
    """Returns its input and a residual, as vLLM's do."""

    def forward(self, hidden):
        return hidden + 1, hidden


def test_the_arm_of_peers_hooks_every_layer() -> None:
    """And would not measure a model in which it found none."""
    model = torch.nn.Sequential(TinyDecoderLayer())
    assert observed.hook_every_layer(model) == 1
    assert len(model[0]._forward_hooks) == 1
    model(torch.zeros(2))
    with pytest.raises(RuntimeError, match="no decoder layer"):
        observed.hook_every_layer(torch.nn.Linear(1, 1))


def test_what_is_sent_to_a_worker_is_pickled_by_a_name_it_can_import() -> None:
    """vLLM's workers are processes of their own, in which `__main__` is not our program."""
    for function in (observed.hook_every_layer, observed.device_bytes):
        assert b"bench.observed" in pickle.dumps(function)
        assert getattr(arm, function.__name__) is function


def test_every_arm_has_a_name_to_ask_for() -> None:
    """Compiled, eager, and as peers do it."""
    assert set(ARMS) == {"off", "again", "on", "everything", "eager-off", "eager-on", "hooks"}
