"""The arms of the comparison: what each is configured with, and whether it did all of that.

`off` has no tap, and `again` is the same once more, in a process of its own: what engines that are
alike differ by, which more turns of the same two cannot show. `on` has the default settings,
`everything` measures all that can be measured in every step. `eager-off` and `eager-on` are `off`
and `on` without torch.compile and CUDA graphs. `hooks` is the technique that others observe models
by, re-implemented by us: eager, and a hook on each layer that copies its output to the CPU. The
tapped ones have no budget, so that nothing is left out; an arm that left anything out all the same
is found by `flaws`, and its figure is void.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import save_file

from sidecar.config import TapConfig
from sidecar.publish.metrics.collectors import UNOBSERVED

OFF, AGAIN, ON, EVERYTHING = "off", "again", "on", "everything"
EAGER_OFF, EAGER_ON, HOOKS = "eager-off", "eager-on", "hooks"
# What each arm is compared with. Only a compiled engine without a tap is what others would run.
REFERENCE: Final = {
    AGAIN: OFF,
    ON: OFF,
    EVERYTHING: OFF,
    EAGER_OFF: OFF,
    EAGER_ON: EAGER_OFF,
    HOOKS: OFF,
}
ARMS: Final = (OFF, *REFERENCE)
TAPPED: Final = (ON, EVERYTHING, EAGER_ON)

SOURCE: Final = "engine-dp0-pp0-tp0"
ENOUGH: Final = 0.99  # of what is sampled: a step that finds no free memory is not, and not counted
_POOLINGS: Final[tuple[dict[str, Any], ...]] = (
    {"pooling": "last", "rows": "prompt"},
    {"pooling": "mean"},
    {"pooling": "max"},
    {"pooling": "ema", "alpha": 0.1},
)


@dataclass(frozen=True)
class Turn:
    """Measured decode work: `times` that each of `batch` requests was given `tokens` tokens."""

    batch: int
    tokens: int
    times: int


def settings(name: str, folder: Path, num_layers: int, hidden_size: int) -> dict[str, str]:
    """Environment of the arm `name`; what it reads is written into `folder`."""
    if name not in TAPPED:
        return {"SIDECAR_TAP": "0"}
    tapped = {"SIDECAR_TAP": "1", "SIDECAR_BUDGET_SHARE": "0"}
    if name != EVERYTHING:
        return tapped
    probes = write_probes(folder, num_layers, hidden_size)
    return tapped | {
        "SIDECAR_ATTENTION_EVERY": "1",
        "SIDECAR_CONFIDENCE_EVERY": "1",
        "SIDECAR_SIGNATURES": "1",
        "SIDECAR_PROBE_FILE": str(probes),
    }


def how(name: str) -> str:
    """How the engine of the arm runs its model: compiled, eager or hooks."""
    if name == HOOKS:
        return "hooks"
    return "eager" if name in (EAGER_OFF, EAGER_ON) else "compiled"


def write_probes(folder: Path, num_layers: int, hidden_size: int) -> Path:
    """Write a probe file of one random probe per pooling, at layers evenly spaced."""
    rng = np.random.default_rng(0)
    layers = np.linspace(0, num_layers - 1, len(_POOLINGS)).round().astype(int).tolist()
    names = [each["pooling"] for each in _POOLINGS]
    directions = {name: rng.standard_normal(hidden_size).astype(np.float32) for name in names}
    save_file(directions, folder / "probes.safetensors")
    told = {
        "format": "llm-internals-probes",
        "version": 1,
        "tensors": "probes.safetensors",
        "probes": [
            {"name": name, "tensor": name, "layer": layer, **pooling}
            for name, layer, pooling in zip(names, layers, _POOLINGS, strict=True)
        ],
    }
    path = folder / "probes.json"
    path.write_text(json.dumps(told))
    return path


def flaws(name: str, status: Any, signals: Any, turns: list[Turn]) -> list[str]:
    """Why the tapped arm `name` did not measure everything; empty when it did.

    status, signals: what the sidecar's API answers. turns: the work that it must have seen.
    """
    found = _status_flaws(status) + _coverage_flaws(status, turns)
    found += [f"{signals['num_left_out']} cells left out"] if signals["num_left_out"] else []
    shares = sampled(name, signals, turns)
    found += [f"{group}: {share:.3f} of it" for group, share in shares.items() if share < ENOUGH]
    if name == EVERYTHING:
        scored = {each["labels"]["probe"] for each in _cells(signals, "probe")}
        if len(scored) < len(_POOLINGS):
            found.append(f"probes: only {sorted(scored)}")
    return found


def sampled(name: str, signals: Any, turns: list[Turn]) -> dict[str, float]:
    """Rows that were measured over rows to be measured, by group; what is not timed comes on top.

    Of attention only `everything` says how many they are, over its layers and their heads.
    """
    decoded = sum(turn.times * turn.batch * turn.tokens for turn in turns)
    rows = sum(each["rows"] for each in _cells(signals, "confidence"))
    shares = {"confidence": rows / decoded}
    if name == EVERYTHING:
        config = TapConfig()
        most = config.attention_requests
        due = sum(turn.times * min(turn.batch, most) * turn.tokens for turn in turns)
        cells = [
            each for each in _cells(signals, "attention") if each["labels"]["phase"] == "decode"
        ]
        heads = {each["labels"]["head"] for each in cells}
        wanted = due * config.attention_layers * max(1, len(heads))
        shares["attention"] = sum(each["rows"] for each in cells) / wanted
    return shares


def _status_flaws(status: Any) -> list[str]:
    source = next((each for each in status["sources"] if each["source"] == SOURCE), None)
    if source is None or source["state"] != "live":
        return [f"{SOURCE} is not live: {source and source['state']}"]
    found = [f"shed level {source['shed_level']}"] if source["shed_level"] else []
    found += [f"errors: {source['errors']}"] if source["errors"] else []
    return found + ([f"dead layers: {source['dead_layers']}"] if source["dead_layers"] else [])


def _coverage_flaws(status: Any, turns: list[Turn]) -> list[str]:
    coverage = next((each for each in status["coverage"] if each["source"] == SOURCE), None)
    if coverage is None:
        return ["no coverage"]
    found = [f"{cause}: {coverage[cause]} rows" for cause in UNOBSERVED if coverage[cause]]
    decoded = sum(coverage["observed"]["decode"].values())
    expected = sum(turn.times * turn.batch * turn.tokens for turn in turns)
    if decoded < expected:
        found.append(f"{decoded} decode rows of {expected}")
    return found


def _cells(signals: Any, group: str) -> list[Any]:
    return [each for each in signals["cells"] if each["group"] == group]
