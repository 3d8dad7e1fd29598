"""Every target is told, whatever was measured, and none is met that was not."""

import json

import pytest

from bench import overhead, targets
from bench.performance import PLACES
from bench.ratios import MET, MISSED, UNRESOLVED
from bench.targets import LIMITS, NOT_MEASURED, SHAPES, told
from tests.bench.test_overhead import Engines

STEADY = {"ratio": 0.995, "low": 0.99, "high": 1.0}
WIDE = {"ratio": 1.0, "low": 0.9, "high": 1.1}
SLOW = {"ratio": 0.9, "low": 0.85, "high": 0.95}


def row(batch: int, rate: dict[str, float], arm: str = "on") -> dict:
    """One arm over `off` in a decode workload, its p99 as steady as can be."""
    compared = {"rate": rate, "token_p99": {"ratio": 1.0, "low": 1.0, "high": 1.0}}
    return {"arm": arm, "workload": "decode", "batch": batch, "compared": compared}


def of(*rows: dict, device_bytes: float = 1e6) -> dict:
    """A result of `bench.overhead` with a model of 1 GB."""
    start = {
        "arm": "on",
        "reference": "off",
        "load_ratio": 1.05,
        "added_device_bytes": device_bytes,
    }
    return {"rows": rows, "start_ratios": [start], "starts": {"off": {"device_bytes": 1e9}}}


def test_what_was_not_measured_is_told_as_that() -> None:
    """Every file that has targets is there, without a figure; 4,000 frames a second among them."""
    found = list(told({}))
    assert {each.verdict for each in found} == {NOT_MEASURED}
    assert {each.found for each in found} == {""}
    assert ("frames of 20 KB for a second of CPU", ">= 4,000") in {each[:2] for each in found}
    assert ("tokens/s, tap on over off, 8B shape, GPU", ">= 0.99") in {each[:2] for each in found}
    assert {*SHAPES, *LIMITS} <= {each.name for each in PLACES}


@pytest.mark.parametrize(
    ("rates", "found", "verdict"),
    [
        ([STEADY, STEADY], "0.995 (0.990 to 1.000), decode, batch 1", MET),
        ([STEADY, WIDE], "1.000 (0.900 to 1.100), decode, batch 8", UNRESOLVED),
        ([WIDE, SLOW, STEADY], "0.900 (0.850 to 0.950), decode, batch 8", MISSED),
    ],
)
def test_a_target_is_as_good_as_its_worst_batch(rates, found, verdict) -> None:
    """A miss at one of them is a miss, and what is not resolved at one is not met."""
    rows = [row(batch, rate) for batch, rate in zip((1, 8, 32), rates, strict=False)]
    rows.append(row(1, SLOW, arm="eager-off"))  # nothing was promised of it
    line = next(told({"overhead_cpu": of(*rows)}))
    assert (line.limit, line.found, line.verdict) == (">= 0.98", found, verdict)


@pytest.mark.parametrize(("device_bytes", "verdict"), [(1e6, MET), (6e6, MISSED)])
def test_memory_of_the_device_is_held_to_a_share_of_the_model(device_bytes, verdict) -> None:
    """Half a percent."""
    result = of(row(1, STEADY), device_bytes=device_bytes)
    lines = {each.what: each for each in told({"overhead_gpu_8b": result})}
    line = lines["device memory added, share of the model's, 8B shape, GPU"]
    assert (line.limit, line.verdict) == ("<= 0.5%", verdict)
    assert lines["load and compile, 8B shape, GPU"].verdict == MET


def test_what_the_bench_writes_can_be_told(tmp_path) -> None:
    """A run whose tap is slower by a fifth."""
    path = tmp_path / "result.json"
    overhead.main(["--shape=quick", "--rounds=2", f"--json={path}"], Engines())
    lines = list(targets.told({"overhead_quick_cpu": json.loads(path.read_text())}))
    shape = [each.verdict for each in lines if "tiny shape" in each.what]
    assert shape == [MISSED, MISSED, MET]
