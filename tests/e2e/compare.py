"""How far a request's record is from what it must be."""

from typing import Any

import numpy as np

from tests.e2e.reference import SIGNALS, Rows


def from_reference(record: dict[str, Any], rows: Rows, signal: str, what: str) -> np.ndarray:
    """Measured and expected values of one signal, [n, 2], over all populations and layers.

    what: mean, min, max or log_mean over the rows of a population.
    """
    first = record["coverage"]["prefix_cached"]
    pairs = []
    for name, numbers in rows.populations(record["num_prompt_tokens"], first).items():
        measured = _statistic(record["populations"][name], signal, what)
        values = getattr(rows, signal)[numbers][:, record["layers"]]
        expected = {
            "mean": lambda v: v.mean(0),
            "min": lambda v: v.min(0),
            "max": lambda v: v.max(0),
            "log_mean": lambda v: np.log(v).mean(0),
        }[what](values)
        pairs.append(np.stack([measured, expected], -1))
    assert set(record["populations"]) == set(rows.populations(record["num_prompt_tokens"], first))
    return np.concatenate(pairs)


def between_records(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest relative difference between two records of the same rows."""
    assert one["populations"].keys() == other["populations"].keys()
    worst = 0.0
    for name in one["populations"]:
        mine, theirs = one["populations"][name], other["populations"][name]
        assert mine["rows"] == theirs["rows"]
        for signal in SIGNALS:
            for what in ("mean", "min", "max", "log_mean"):
                a, b = _statistic(mine, signal, what), _statistic(theirs, signal, what)
                # Values near 0 are compared on the scale of their signal.
                scale = np.maximum(np.abs(a), np.median(np.abs(a)))
                worst = max(worst, float(np.max(np.abs(a - b) / scale)))
    return worst


def relative(pairs: np.ndarray) -> np.ndarray:
    """Relative distance of measured from expected."""
    return np.abs(pairs[:, 0] - pairs[:, 1]) / np.abs(pairs[:, 1])


def absolute(pairs: np.ndarray) -> np.ndarray:
    """Absolute distance of measured from expected."""
    return np.abs(pairs[:, 0] - pairs[:, 1])


def _statistic(population: dict[str, Any], signal: str, what: str) -> np.ndarray:
    numbers = population[signal]
    if what in ("min", "max"):
        return np.array(numbers[what])
    total = numbers["sum" if what == "mean" else "log_sum"]
    return np.array(total) / np.array(population["rows"])
