"""Arms stand still unless it is their turn, and none outlives the bench."""

import time
from pathlib import Path

import pytest

from bench import engines
from bench.arms import SOURCE, Turn
from bench.engines import ArmProcess, Placing, Workload
from bench.shapes import SHAPES
from sidecar.wire import control
from sidecar.wire.control import Control

WORKLOAD = Workload("decode", 2, 32, 3)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch) -> None:
    monkeypatch.setattr(engines, "ARM", "tests.bench.stand_in_arm")
    monkeypatch.setattr(engines, "_SETTLE_SECONDS", 1.0)


def made(name: str, folder: Path, *, is_gpu: bool = False) -> ArmProcess:
    return ArmProcess(name, folder, SHAPES["quick"], Placing(is_gpu, num_arms=2, most=8))


def states(arm: ArmProcess) -> list[str]:
    """Of the engine's process and its sidecar's, as the kernel tells them."""
    files = [Path(f"/proc/{each.pid}/stat") for each in arm._processes]
    return [file.read_text().rpartition(")")[2].split()[0] for file in files]


def await_states(arm: ArmProcess, wanted: set[str]) -> None:
    until = time.monotonic() + 60
    while not set(states(arm)) <= wanted:
        assert time.monotonic() < until, states(arm)
        time.sleep(0.01)


def test_an_arm_stands_still_with_its_sidecar_between_its_turns(tmp_path) -> None:
    """Else a tap would go on flushing in the turns of the arm without one."""
    arm = made("on", tmp_path)
    try:
        await_states(arm, {"T"})
        assert len(states(arm)) == 2
        found = arm.turn(WORKLOAD)
        assert (found.rate, found.first, found.steps) == (2.0, 0.5, [0.1])
        await_states(arm, {"T"})
    finally:
        arm.stop()
    assert not any(Path(f"/proc/{each.pid}").exists() for each in arm._processes)


def test_an_arm_that_no_sidecar_heard_of_has_flaws(tmp_path) -> None:
    """The stand-in sends no frames; an arm without a tap has nothing to be heard."""
    arm, off = made("on", tmp_path), made("off", tmp_path)
    try:
        assert "not live" in arm.flaws([Turn(2, 2, 1)])[0]
        assert off.flaws([Turn(2, 2, 1)]) == []
    finally:
        arm.stop()
        off.stop()


def test_a_steered_tap_has_said_that_it_obeys(tmp_path, monkeypatch) -> None:
    """The control lies where the tap looks, and the engine stands still again afterwards."""
    arm = made("on", tmp_path)
    said = iter(["", "other", "mine"])
    asked = []

    def told(url: str) -> dict[str, list[dict[str, str]]]:
        asked.append(url)
        return {"sources": [{"source": SOURCE, "control": next(said)}]}

    monkeypatch.setattr(engines, "_got", told)
    try:
        arm.steer(Control(revision="mine", is_on=False))
        assert control.read(tmp_path / "on" / "control.json").is_on is False
        assert len(asked) == 3
        await_states(arm, {"T"})
    finally:
        arm.stop()


def test_a_tap_that_does_not_obey_is_told(tmp_path) -> None:
    """The stand-in has none."""
    arm = made("on", tmp_path)
    try:
        with pytest.raises(TimeoutError, match="does not obey 'mine'"):
            arm.steer(Control(revision="mine"))
    finally:
        arm.stop()


def test_what_an_arm_took_to_start_and_holds_is_told(tmp_path) -> None:
    """Seconds that it says itself, and the memory of its process group."""
    arm = made("off", tmp_path, is_gpu=True)
    try:
        found = arm.started()
        assert (found.load_seconds, found.device_bytes) == (0.5, 7.0)
        assert 1e6 < found.host_bytes < 1e9
    finally:
        arm.stop()


def test_an_engine_that_does_not_come_up_is_told_with_its_log(tmp_path, monkeypatch) -> None:
    """And leaves no sidecar behind."""
    monkeypatch.setattr(engines, "ARM", "tests.bench.no_such_arm")
    with pytest.raises(RuntimeError, match="No module named"):
        made("on", tmp_path)
