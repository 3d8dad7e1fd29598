"""The signature of a request: each number at the place that its name says."""

import numpy as np
import pytest

from sidecar.tap.signature import evenly, values
from sidecar.tap.tally import Tally
from sidecar.wire.frame import Arrays, Coverage, Request, Table
from sidecar.wire.signals import GROUPS
from sidecar.wire.signature import Layout, entries, size

LAYER_IDS = [4, 5, 9]
FULL = Layout([4, 9], [5], [9], [4], 2, 7, ["tone", "refusal"])


def moments() -> Arrays:
    """Four prefill and two decode rows after the first positions, of the first two layers."""
    made = Arrays.zeros(3)
    rng = np.random.default_rng(0)
    for population, rows in enumerate((4, 4, 1, 2)):
        made.count[population] = rows
        made.sums[population] = rows * rng.uniform(-2, 2, (3, 3, 3))
        made.extremes[population] = rng.uniform(1, 9, (3, 3, 2))
    return made


def request(arrays: Arrays, *tables: Table) -> Request:
    return Request("a", 1, 2, 8, Coverage([4, 4, 1, 2]), arrays.pack(), tables=list(tables))


def named(layout: Layout, asked: Request, sketches=None) -> dict[str, float]:
    """The entries by their names."""
    got = values(layout, LAYER_IDS, asked, sketches)
    assert got.dtype == np.float32
    assert got.shape == (size(layout),)
    return dict(zip(entries(layout), got.tolist(), strict=True))


def table(group: str, axes: list[list[str]], rows: list[tuple[int, list[float]]]) -> Table:
    """What an instrument measured: (cell, values of each signal) rows."""
    made = Tally(group, axes)
    cells = np.array([cell for cell, _ in rows])
    made.add(0 * cells, cells, np.array([each for _, each in rows], np.float32))
    return made.table(last=True)


def test_residual_entries_are_of_rows_after_the_first_positions() -> None:
    """Mean logs of each signal, and the log of the largest RMS, by phase and layer."""
    arrays = moments()
    got = named(Layout([4, 9]), request(arrays))
    for phase, population in (("prefill", 1), ("decode", 3)):
        for layer, place in ((4, 0), (9, 2)):
            means = arrays.sums[population, place, :, 1] / float(arrays.count[population, place])
            largest = arrays.extremes[population, place, 0, 1]
            assert [
                got[f"residual/{phase}/l{layer}/{name}"]
                for name in ("log_rms", "log_rms_max", "log_influence", "log_peak")
            ] == pytest.approx([means[0], np.log(largest), means[2], means[1]], rel=1e-6)


def test_what_was_not_measured_is_nan() -> None:
    """No row of a population, and no table of a group: NaN, and no warning."""
    arrays = moments()
    arrays.count[3], arrays.sums[3], arrays.extremes[3] = 0, 0, np.nan
    got = named(FULL, request(arrays))
    nan = {name for name, value in got.items() if np.isnan(value)}
    assert nan == {name for name in got if not name.startswith("residual/prefill")}


def test_entries_by_layer_are_found_by_label() -> None:
    """Attention and router entries are of the layer and phase that the table names."""
    sampled = [["5", "9"], ["prefill", "decode"]]
    attention = table("attention_mean", sampled, [(0, [0.5, 0.25, 4.0, 0.5]), (3, [0.1] * 4)])
    router = table("router", sampled, [(3, [0.75, 0.5]), (3, [0.25, 0.125]), (0, [9.0, 9.0])])
    got = named(FULL, request(moments(), attention, router))
    assert [
        got[f"attention/prefill/l5/{name}"]
        for name in ("entropy", "logit_sink_mass", "log_effective_tokens")
    ] == pytest.approx([0.5, 0.0, np.log(4.0)])
    assert np.isnan(got["attention/decode/l5/entropy"])
    assert got["router/decode/l9/gate_entropy"] == pytest.approx(0.5)
    logs = (np.log(0.5) + np.log(0.125)) / 2
    assert got["router/decode/l9/log_topk_margin"] == pytest.approx(logs)
    assert np.isnan(got["router/prefill/l9/gate_entropy"])


def test_confidence_is_of_the_one_adapter_that_spoke() -> None:
    """Mean and last entropy, mean margin, and the least log-probability chosen."""
    assert [signal.id for signal in GROUPS["confidence"].signals[:4]] == [
        "entropy",
        "top1_probability",
        "top1_margin",
        "surprisal",
    ]
    rows = [(1, [2.0, 0.5, 0.25, 0.75, 9.0]), (1, [1.0, 0.5, 0.75, 3.0, 9.0])]
    spoken = table("confidence", [["", "legal", "other"]], rows)
    got = named(FULL, request(moments(), spoken))
    assert got["confidence/entropy"] == 1.5
    assert got["confidence/last_entropy"] == 1.0
    assert got["confidence/top1_margin"] == 0.5
    assert got["confidence/min_logprob"] == -3.0
    silent = named(FULL, request(moments(), Tally("confidence", [["", "other"]]).table()))
    assert np.isnan(silent["confidence/entropy"])


def test_sketches_and_probes_stand_at_the_end() -> None:
    """Sketches as they are given; probes by their names, whatever order the table has."""
    scores = table("probe", [["refusal", "tone"]], [(0, [3.0]), (1, [-1.0])])
    sketches = np.arange(4, dtype=np.float32).reshape(1, 2, 2)
    got = named(FULL, request(moments(), scores), sketches)
    assert [got[f"sketch/l4/last_prompt/{i}"] for i in (0, 1)] == [0.0, 1.0]
    assert [got[f"sketch/l4/mean_decode/{i}"] for i in (0, 1)] == [2.0, 3.0]
    assert (got["probe/tone"], got["probe/refusal"]) == (-1.0, 3.0)


def test_an_engine_without_layers_has_an_empty_residual() -> None:
    """A rank that speaks for no layer still has a layout."""
    asked = Request("a", 1, 2, 8, Coverage([0] * 4), Arrays.zeros(0).pack())
    assert values(Layout([]), [], asked, None).shape == (size(Layout([])),)


@pytest.mark.parametrize("num", range(9))
@pytest.mark.parametrize("layers", [[], [3], [3, 4], list(range(10, 17)), list(range(28))])
def test_chosen_layers_are_evenly_spaced(num, layers) -> None:
    """As many as asked for or there are; the first and the last among them, no gap twice another.

    With one alone it is the last, which knows most.
    """
    chosen = evenly(layers, num)
    assert len(chosen) == min(num, len(layers))
    assert chosen == sorted(set(chosen) & set(layers))
    if num == 1:
        assert chosen == layers[-1:]
    elif chosen:
        assert (chosen[0], chosen[-1]) == (layers[0], layers[-1])
        gaps = np.diff(chosen)
        assert not len(gaps) or gaps.max() - gaps.min() <= 1
