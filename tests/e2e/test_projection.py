"""Sketches and probes of a real server: the scores of each request, against transformers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sidecar.tap.pooling import Pooling, Rows
from sidecar.tap.sketch import directions
from sidecar.wire.frame import Cells
from sidecar.wire.signature import entries
from tests.e2e.frames import Frames
from tests.e2e.harness import MODEL, Stack
from tests.e2e.prompts import Prompts
from tests.e2e.reference import streams_of
from tests.tap.pooled import chosen, defined

pytestmark = pytest.mark.e2e

HIDDEN, ALPHA = 224, 0.125
LAYERS = [0, 2, 3]  # evenly spaced over the four of the demo model
SEED, SIZE = 11, 16


class Wanted(NamedTuple):
    """A probe of the test's file."""

    layer: int
    pooling: Pooling
    rows: Rows
    bias: float


PROBES = {
    "last-token": Wanted(3, Pooling.LAST, Rows.ALL, 0.25),
    "mean/prompt": Wanted(0, Pooling.MEAN, Rows.PROMPT, -3.0),
    "max": Wanted(1, Pooling.MAX, Rows.ALL, 0.0),
    "ema": Wanted(2, Pooling.EMA, Rows.ALL, 1.0),
    "ema-generated": Wanted(3, Pooling.EMA, Rows.GENERATED, 0.0),
}


class Served(NamedTuple):
    """A request: the tokens that were computed, and what the engine told of it."""

    tokens: list[int]
    num_prompt: int
    scores: dict[str, float]
    signature: dict[str, float]


def _directions() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {name: torch.randn(HIDDEN, generator=generator) for name in PROBES}


def _score(name: str, stream: torch.Tensor, num_prompt: int) -> float:
    """w . h + b, pooled by the definition over the rows of one request."""
    probe = PROBES[name]
    products = (stream[1 + probe.layer] @ _directions()[name].double()).numpy()[:, None]
    rows = chosen(products, num_prompt, probe.rows)
    return float(defined(rows, probe.pooling, ALPHA)[0]) + probe.bias


def _write(folder: Path, prompts: list[list[int]]) -> Path:
    """The probe file, calibrated at the median of its scores on the bare prompts."""
    streams = [streams_of(MODEL, prompt) for prompt in prompts]
    entries = []
    for name, probe in PROBES.items():
        middle = 0.0
        if probe.rows is not Rows.GENERATED:
            scores = [_score(name, s, len(p)) for s, p in zip(streams, prompts, strict=True)]
            middle = float(np.median(scores))
        told = {"name": name, "tensor": name, "quantiles": {"0.5": middle, "0.99": 1e6}}
        told |= probe._asdict() | ({"alpha": ALPHA} if probe.pooling is Pooling.EMA else {})
        entries.append(told)
    save_file(_directions(), folder / "probes.safetensors")
    head = {"format": "llm-internals-probes", "version": 1, "tensors": "probes.safetensors"}
    path = folder / "probes.json"
    path.write_text(json.dumps({**head, "probes": entries}))
    return path


def _serve(stack: Stack, frames: Frames, prompts: list[list[int]]) -> list[Served]:
    """All at once, so that prefill chunks and decode rows of many requests share their steps."""
    calls: list[dict[str, Any]] = [
        {"prompt": prompt, "max_tokens": 2 + 3 * (number % 6), "cache_salt": f"salt-{number}"}
        for number, prompt in enumerate(prompts)
    ]
    done = stack.complete_all(calls)
    return [_told(frames, prompt, each) for prompt, each in zip(prompts, done, strict=True)]


def _told(frames: Frames, prompt: list[int], done: dict[str, Any]) -> Served:
    request = frames.request(done["id"])
    (table,) = (table for table in request.tables if table.group == "probe")
    cells = Cells.unpack(table)
    assert cells.count.tolist() == [1] * len(PROBES)
    scores = dict(zip(table.axes[0], cells.sums[:, 0, 0].tolist(), strict=True))
    layout, signature = frames.signature(done["id"])
    values = np.frombuffer(signature.values, "<f4").tolist()
    named = dict(zip(entries(layout), values, strict=True))
    # The last token is never fed back.
    return Served(prompt + done["tokens"][:-1], len(prompt), scores, named)


@pytest.fixture(scope="module")
def frames(folder: Path) -> Iterator[Frames]:
    """Listens where the sidecar of the `served` stack would."""
    made = Frames(folder / "probes" / "run" / "ingest.sock")
    yield made
    made.close()


@pytest.fixture(scope="module")
def asked(prompts: Prompts) -> list[list[int]]:
    """Prompts from 1 token to several prefill chunks."""
    return prompts.mixed(20, seed=21)


@pytest.fixture(scope="module")
def probe_file(folder: Path, frames: Frames, asked: list[list[int]]) -> Path:
    """The probe file of the `served` stack."""
    return _write(folder / "probes", asked)


@pytest.fixture(scope="module")
def served(
    folder: Path, frames: Frames, probe_file: Path, asked: list[list[int]]
) -> Iterator[list[Served]]:
    """Requests of a compiled float32 server that has a probe file."""
    environ = {"SIDECAR_PROBE_FILE": str(probe_file), "SIDECAR_SKETCH_LAYERS": "3"}
    environ |= {"SIDECAR_SKETCH_SEED": str(SEED), "SIDECAR_SKETCH_SIZE": str(SIZE)}
    stack = Stack(folder / "probes", dtype="float32", environ=environ)
    try:
        stack.start_engine()
        yield _serve(stack, frames, asked)
    finally:
        stack.stop()


def _worst(measured: list[float], want: list[float]) -> float:
    """Largest relative error; values near 0 are compared on the scale of their probe."""
    a, b = np.array(measured), np.array(want)
    return float(np.max(np.abs(a - b) / np.maximum(np.abs(b), np.median(np.abs(b)))))


def test_scores_are_those_that_transformers_gives(served: list[Served]) -> None:
    """Each pooling at its layer, of 20 requests served at once, is right to 1e-4 relative."""
    streams = [streams_of(MODEL, each.tokens) for each in served]
    for name in PROBES:
        want = [_score(name, s, each.num_prompt) for s, each in zip(streams, served, strict=True)]
        assert _worst([each.scores[name] for each in served], want) < 1e-4


def test_sketches_are_those_that_transformers_gives(served: list[Served]) -> None:
    """Of the last prompt token and of the mean generated one, right to 1e-4 relative."""
    for layer in LAYERS:
        drawn = torch.from_numpy(directions(SEED, layer, SIZE, HIDDEN)).double()
        for each in served:
            products = (streams_of(MODEL, each.tokens)[1 + layer] @ drawn.T).numpy()
            want = {
                "last_prompt": products[each.num_prompt - 1],
                "mean_decode": products[each.num_prompt :].mean(0),
            }
            for sketch, values in want.items():
                found = [each.signature[f"sketch/l{layer}/{sketch}/{i}"] for i in range(SIZE)]
                assert _worst(found, values.tolist()) < 1e-4


def test_signatures_carry_the_scores(served: list[Served]) -> None:
    """The same numbers, as float32."""
    for each in served:
        for name, score in each.scores.items():
            assert each.signature[f"probe/{name}"] == np.float32(score)


def test_totals_count_every_request_once(
    served: list[Served], frames: Frames, probe_file: Path
) -> None:
    """Sums of all scores, and exactly those that exceeded a quantile."""
    scores = np.array([[each.scores[name] for name in PROBES] for each in served])
    table, cells = frames.totals("probe", lambda cells: cells.count.min() == len(served))
    assert table.axes == [list(PROBES)]
    assert cells.count.max() == len(served)
    np.testing.assert_allclose(cells.sums[:, 0, 0], scores.sum(0), rtol=1e-9)

    told = json.loads(probe_file.read_text())["probes"]
    limits = np.array([list(each["quantiles"].values()) for each in told])
    want = (scores[:, :, None] > limits).sum(0)
    assert want[:, 0].min() > 0
    assert want[:, 0].max() < len(served)
    table, cells = frames.totals(
        "probe_exceedance", lambda cells: np.array_equal(cells.count, want)
    )
    assert table.axes == [list(PROBES), ["0.5", "0.99"]]


def test_a_bad_probe_file_is_told_of_and_the_rest_goes_on(folder: Path, prompts: Prompts) -> None:
    """The server serves, its status names what is wrong, and every other signal is there."""
    home = folder / "bad_probes"
    home.mkdir()
    path = home / "probes.json"
    path.write_text(json.dumps({"format": "llm-internals-probes", "version": 1, "probes": []}))
    args = ("--enforce-eager",)
    stack = Stack(home, args=args, environ={"SIDECAR_PROBE_FILE": str(path)})
    frames = Frames(stack.socket)
    try:
        stack.start_engine()
        (prompt,) = prompts.cut([40], seed=3)
        done = stack.complete(prompt, 4)
        request = frames.request(done["id"])
        layout, signature = frames.signature(done["id"])
        status = frames.wait_for_status(lambda status: status.state == "live")
    finally:
        stack.stop()
        frames.close()
    assert status.absent["probe"].startswith(f"probe file {path}: tensors: Field required")
    assert status.errors == {}
    assert sum(request.coverage.observed) == 43
    assert "probe" not in {table.group for table in request.tables}
    assert layout.probes == []
    values = dict(zip(entries(layout), np.frombuffer(signature.values, "<f4"), strict=True))
    sketches = [value for name, value in values.items() if name.startswith("sketch/")]
    assert len(sketches) == 4 * 2 * 16
    assert np.isfinite(sketches).all()
