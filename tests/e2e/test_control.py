"""Steering and budget on real servers: what is asked happens, is counted, and disturbs nobody."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.tap.budget import LEVELS
from tests.e2e.frames import Frames
from tests.e2e.harness import ROOT, Stack, wait_for
from tests.e2e.prompts import Prompts

pytestmark = pytest.mark.e2e

NUM_LAYERS = json.loads((ROOT / "sidecar/demo/model/config.json").read_text())["num_hidden_layers"]
NUM_PROMPT, NUM_GENERATED = 300, 9
NUM_ROWS = NUM_PROMPT + NUM_GENERATED - 1  # the last token is never computed
LAST = NUM_LAYERS - 1


class Steered:
    """A server, and what its tap says of it."""

    def __init__(self, stack: Stack, frames: Frames) -> None:
        self.stack = stack
        self.frames = frames
        self.num_rows = 0
        self.num_served = 0

    def control(self, *options: str) -> None:
        """What an operator types; returns once the tap obeys."""
        command = [sys.executable, "-m", "sidecar", "control", *options]
        environ = {**os.environ, "SIDECAR_SOCKET": str(self.stack.socket)}
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=300, check=True
        )
        _, _, revision = done.stdout.partition("\n")[0].partition(": revision ")
        self.frames.wait_for_revision(revision)

    def serve(self, prompt: list[int], **options: Any) -> dict[str, Any]:
        """One completion with nothing of it cached; returns when the tap has told of all rows."""
        self.num_served += 1
        salt = f"salt{self.num_served}"
        reply = self.stack.complete(prompt, NUM_GENERATED, cache_salt=salt, **options)
        self.num_rows += NUM_ROWS
        # The end of a request is told to the worker by the next step, or a short while after.
        self.frames.wait_for_rows(self.num_rows)
        return reply

    def grown(self, prompt: list[int], **options: Any) -> dict[int, int]:
        """Rows that a completion adds to each layer; layers without any left out."""
        before = self.frames.counts()
        self.serve(prompt, **options)
        after = self.frames.counts()
        grown = {layer: count - before.get(layer, 0) for layer, count in after.items()}
        return {layer: count for layer, count in grown.items() if count}

    def compilations(self) -> int:
        """Lines in which vLLM's log speaks of compiling."""
        log = (self.stack.folder / "vllm.log").read_text()
        return sum("ompil" in line for line in log.splitlines())


def steered(stack: Stack) -> Iterator[Steered]:
    try:
        with Frames(stack.socket) as frames:
            stack.start_engine()
            wait_for(lambda: frames.status and frames.status.num_layers, "a first word")
            yield Steered(stack, frames)
    finally:
        stack.stop()


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Steered]:
    """A compiled server whose clients may opt out, and which tells of every graph it makes."""
    environ = {"SIDECAR_ALLOW_OPT_OUT": "1", "TORCH_LOGS": "recompiles"}
    yield from steered(Stack(folder / "steered", sabotage="log_roster", environ=environ))


@pytest.fixture(scope="module")
def prompt(prompts: Prompts) -> list[int]:
    """One prompt, of two prefill chunks."""
    return prompts.cut([NUM_PROMPT], seed=40)[0]


def test_orders_change_between_requests_without_a_new_graph(
    engine: Steered, prompt: list[int]
) -> None:
    """A subset of layers, none, every second step, all: each is obeyed, and tokens are the same."""
    everywhere = dict.fromkeys(range(NUM_LAYERS), NUM_ROWS)
    plain = engine.serve(prompt)["tokens"]
    num_compilations = engine.compilations()
    assert num_compilations > 0
    assert engine.grown(prompt) == everywhere

    engine.control("--layers", f"0,2,{LAST}", "--attention-every", "3")
    assert engine.grown(prompt) == dict.fromkeys((0, 2, LAST), NUM_ROWS)

    engine.control("--off")
    shed = engine.frames.coverage().shed
    assert engine.serve(prompt)["tokens"] == plain
    assert engine.frames.coverage().shed - shed == NUM_ROWS
    assert engine.grown(prompt) == {}

    engine.control("--on", "--layers", "all", "--steps-every", "2")
    shed = engine.frames.coverage().shed
    half = engine.grown(prompt)
    assert set(half) == set(everywhere)
    assert len(set(half.values())) == 1
    assert 0 < half[0] < NUM_ROWS
    assert half[0] + engine.frames.coverage().shed - shed == NUM_ROWS

    engine.control("--clear")
    assert engine.grown(prompt) == everywhere
    assert engine.serve(prompt)["tokens"] == plain
    assert engine.compilations() == num_compilations
    status = engine.frames.status
    assert status is not None
    assert (status.state, status.errors, status.control) == ("live", {}, "")
    assert engine.frames.coverage().lost == 0


def test_a_bad_control_is_told_and_changes_nothing(engine: Steered, prompt: list[int]) -> None:
    """The last good one stays in force; requests are served and measured by it."""
    engine.control("--layers", "1")
    revision = engine.frames.status and engine.frames.status.control
    engine.stack.socket.with_name("control.json").write_text('{"is_on": "no"}')

    def told() -> str | None:
        return engine.frames.status and engine.frames.status.absent.get("control")

    assert "is_on" in wait_for(told, "a refusal")
    assert engine.grown(prompt) == {1: NUM_ROWS}
    assert engine.frames.status is not None
    assert engine.frames.status.control == revision
    assert engine.frames.status.errors == {"control": 1}
    engine.control("--clear")
    assert engine.frames.status.absent.get("control") is None


def test_a_client_may_force_its_request_or_opt_out(engine: Steered, prompt: list[int]) -> None:
    """Forced: the tap knows it for one. Opted out: no record, no row of a layer, but the count."""
    forced = engine.serve(prompt, vllm_xargs={"llm_internals": "all"}, request_id="forced")
    before = engine.frames.coverage()
    assert engine.grown(prompt, vllm_xargs={"llm_internals": "off"}, request_id="out") == {}
    after = engine.frames.coverage()
    assert after.opted_out - before.opted_out == NUM_ROWS
    assert after.observed == before.observed
    plain = engine.serve(prompt, request_id="plain")
    wait_for(lambda: engine.frames.find(plain["id"]), "a record")
    assert engine.frames.find(forced["id"])
    assert not any("out" in record.id for record in engine.frames.records)
    said = [
        line.partition("saboteur: forced ")[2]
        for line in (engine.stack.folder / "vllm.log").read_text().splitlines()
        if "saboteur: forced" in line
    ]
    assert len(said) == 1
    assert said[0].startswith(f"{forced['id']}-0-")


@pytest.fixture(scope="module")
def thrifty(folder: Path) -> Iterator[Steered]:
    """A server whose tap may take next to nothing, and whose minute is short."""
    environ = {"SIDECAR_BUDGET_SHARE": "0.0001"}
    args = ("--enforce-eager",)
    stack = Stack(folder / "thrifty", sabotage="short_minute", args=args, environ=environ)
    yield from steered(stack)


def test_a_tap_over_its_budget_sheds_and_serves_on(thrifty: Steered, prompt: list[int]) -> None:
    """The level rises to its end, shed rows are counted, and the tokens are those of before."""
    plain = thrifty.serve(prompt)["tokens"]

    def worn_out() -> bool:
        assert thrifty.serve(prompt)["tokens"] == plain
        status = thrifty.frames.status
        return status is not None and status.shed_level == len(LEVELS) - 1

    wait_for(worn_out, "the highest level", 300)
    status, before = thrifty.frames.status, thrifty.frames.coverage()
    assert status is not None
    assert status.cost_share > 0.0001
    assert status.state == "live"
    grown = thrifty.grown(prompt)
    after = thrifty.frames.coverage()
    assert set(grown) <= {0, LAST}  # of four layers, a quarter with its ends is two
    assert after.shed > before.shed
    assert sum(grown.values()) <= len(grown) * (NUM_ROWS - (after.shed - before.shed))
    assert after.lost == 0
    assert status.errors == {}
