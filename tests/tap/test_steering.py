"""A running tap obeys: orders change between steps of one compiled graph, and no row is lost."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sidecar.config import TapConfig
from sidecar.tap.engine import EngineTap
from sidecar.tap.guard import Guard
from sidecar.tap.nameplate import Nameplate
from sidecar.tap.rows import Batch
from sidecar.tap.sites import Site
from sidecar.tap.slab import Slab
from sidecar.tap.stream import attach_probe
from sidecar.wire import control
from sidecar.wire.channel import Sender
from sidecar.wire.control import Control
from sidecar.wire.frame import Arrays, Body, Coverage, Layers, Requests, Source, Status
from tests.fakes import SECOND
from tests.tap.test_compiled import compiled, run_first
from tests.tap.toys import Decoder, tokens

NUM_LAYERS = 4
CAPACITY = 16
ROWS = 5


class Engine:
    """A toy with a tap whose pump is turned by hand; compiled unless `is_compiled` is False."""

    def __init__(
        self, folder: Path, guard: Guard, *, is_compiled: bool = True, **options: object
    ) -> None:
        config = TapConfig(socket=folder / "i.sock", budget_share=0.0, **options)
        self.path = config.control_path
        model = Decoder(NUM_LAYERS)
        slab = Slab(NUM_LAYERS, CAPACITY, 8, torch.device("cpu"))
        for index, layer in enumerate(model.layers):
            attach_probe(Site(index, layer), slab.rows[index], guard)
        self.run = model
        if is_compiled:
            self.run, self.compilations = compiled(model, "aot_eager")
        sender = Sender(config.socket, Source("engine"))
        nameplate = Nameplate("toy", "0.32.0", "0.1", "v1", "float32", "abc")
        self.tap = EngineTap(config, nameplate, list(range(NUM_LAYERS)), slab, sender, guard, 4)
        self.num_requests = 0
        run_first(self.run, CAPACITY - 1)
        self.tap.arm(was_warmed_up=True)

    def ask(self, **wishes: object) -> None:
        """Put a control in force, as the next flush does."""
        control.write(self.path, Control(**wishes))
        self.flush()

    def step(self, xargs: dict[str, str] | None = None) -> None:
        """Serve one request of some rows from its beginning to its end."""
        self.num_requests += 1
        name = f"r{self.num_requests}"
        self.tap.roster.enter(name, None, xargs)
        self.run(torch.arange(ROWS), tokens(ROWS, seed=self.num_requests))
        rows = np.array([ROWS])
        self.tap.observe(Batch([name], np.array([0]), rows, rows))
        self.tap.finish([name])

    def flush(self) -> list[Body]:
        """What a flush of the pump would send."""
        self.tap._drain()
        return list(self.tap._bodies())

    def status(self) -> Status:
        return next(body for body in self.flush() if isinstance(body, Status))

    def totals(self) -> tuple[list[int], Coverage]:
        """Rows counted at each layer, and what became of all rows."""
        layers = next(body for body in self.flush() if isinstance(body, Layers))
        counts = Arrays.unpack(layers.moments, NUM_LAYERS).count
        return [int(count) for count in counts.sum(0)], layers.coverage


@pytest.fixture
def engine(tmp_path: Path, guard: Guard) -> Iterator[Engine]:
    with torch.inference_mode():
        yield Engine(tmp_path, guard)
    assert guard.errors == {}


def test_only_the_chosen_layers_are_added_up(engine) -> None:
    """The others stand still, and move again afterwards; nothing is compiled again."""
    engine.step()
    assert engine.totals()[0] == [ROWS] * 4
    engine.ask(layers=[1, 3])
    engine.step()
    assert engine.totals()[0] == [ROWS, 2 * ROWS, ROWS, 2 * ROWS]
    engine.ask(layers=[2])
    engine.step()
    assert engine.totals()[0] == [ROWS, 2 * ROWS, 2 * ROWS, 2 * ROWS]
    engine.ask(layers=[77])
    engine.step()
    control.remove(engine.path)
    engine.flush()
    engine.step()
    counts, coverage = engine.totals()
    assert counts == [2 * ROWS, 3 * ROWS, 3 * ROWS, 3 * ROWS]
    assert (sum(coverage.observed), coverage.shed) == (5 * ROWS, 0)
    assert engine.status().state == "live"
    assert engine.compilations.frame_count == 1


def test_the_kill_switch_sheds_every_row_and_turns_back(engine) -> None:
    """Off: rows are counted as shed, and nothing as lost; on: measured again."""
    engine.ask(is_on=False)
    engine.step()
    engine.step()
    counts, coverage = engine.totals()
    assert (counts, coverage.shed, coverage.lost) == ([0] * 4, 2 * ROWS, 0)
    assert not engine.tap.is_measuring
    engine.ask(is_on=True)
    engine.step()
    counts, coverage = engine.totals()
    assert (counts, coverage.shed, coverage.lost) == ([ROWS] * 4, 2 * ROWS, 0)
    assert engine.compilations.frame_count == 1


def test_a_kill_switch_thrown_before_the_start_lets_no_row_through(tmp_path, guard) -> None:
    """It is read when the engine is warm, not a flush later."""
    control.write(TapConfig(socket=tmp_path / "i.sock").control_path, Control(is_on=False))
    with torch.inference_mode():
        engine = Engine(tmp_path, guard)
        engine.step()
    counts, coverage = engine.totals()
    assert (counts, coverage.shed) == ([0] * 4, ROWS)


def test_the_governor_hears_of_every_step(engine, monkeypatch) -> None:
    """Measured or not: the engine's time is known from them."""
    heard: list[int] = []
    monkeypatch.setattr(engine.tap.governor, "passed", heard.append)
    engine.step()
    engine.ask(is_on=False)
    engine.step()
    engine.flush()
    assert len(heard) == 2
    assert SECOND < heard[0] < heard[1]


def test_every_third_step_is_measured(engine) -> None:
    """And the rows of the others are shed; every row is one or the other."""
    engine.ask(steps_every=3)
    for _ in range(9):
        engine.step()
    counts, coverage = engine.totals()
    assert counts == [3 * ROWS] * 4
    assert (sum(coverage.observed), coverage.shed) == (3 * ROWS, 6 * ROWS)
    assert engine.compilations.frame_count == 1


def test_the_status_tells_what_is_in_force(engine) -> None:
    """The revision; and of a bad file the reason and the number, which disarm nothing."""
    assert engine.status().control == ""
    engine.ask(revision="r7", attention_every=2)
    assert engine.status().control == "r7"
    for number in range(10):
        engine.path.write_text(f'{{"layers": {number}}}')
        engine.flush()
    status = engine.status()
    assert status.control == "r7"
    assert "layers" in status.absent["control"]
    assert status.errors == {"control": 10}
    assert status.state == "live"
    engine.ask(revision="r8")
    status = engine.status()
    assert (status.control, status.absent) == ("r8", {})


@pytest.mark.parametrize("allowed", [True, False])
def test_an_opted_out_request_leaves_its_count_alone(tmp_path, guard, allowed: bool) -> None:
    """Where that is allowed; elsewhere it is measured like any other."""
    with torch.inference_mode():
        engine = Engine(tmp_path, guard, allow_opt_out=allowed)
        engine.step({"llm_internals": "off"})
        engine.step({"llm_internals": "all"})
        engine.step()
    bodies = engine.flush()
    told = [
        request.id for body in bodies if isinstance(body, Requests) for request in body.requests
    ]
    counts, coverage = engine.totals()
    assert told == (["r2", "r3"] if allowed else ["r1", "r2", "r3"])
    assert coverage.opted_out == (ROWS if allowed else 0)
    assert counts == [len(told) * ROWS] * 4
    assert guard.errors == {}


def test_before_the_engine_is_warm_nobody_asks_the_device(tmp_path, guard, monkeypatch) -> None:
    """Graphs are captured then, and a question from another thread would end that."""
    with torch.inference_mode():
        engine = Engine(tmp_path, guard)
    asked = []
    monkeypatch.setattr(engine.tap.governor, "govern", lambda: asked.append(1))
    engine.tap._is_armed = False
    engine.flush()
    assert asked == []
    engine.tap._is_armed = True
    engine.flush()
    assert asked == [1]


def test_a_governor_that_fails_keeps_its_last_orders(engine, guard, monkeypatch) -> None:
    """The flush goes on, and the error is counted."""

    def broken() -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(engine.tap.governor, "govern", broken)
    assert engine.status().errors == {"govern": 1}
    engine.step()
    assert engine.totals()[0] == [ROWS] * 4
    guard.errors.clear()
