"""Text of the families of groups of signals."""

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.fold.reducer import Reducer
from sidecar.publish.metrics.selection import Selection
from sidecar.publish.metrics.tables import TableWriter
from sidecar.wire.frame import Cells, Source, Table, Totals
from sidecar.wire.signals import FAMILY_OF, GROUPS, PREFIX, Kind
from tests import fakes
from tests.fakes import LIMITS, NOW, PHASES, SECOND, FakeSource

EVERYTHING = Selection.everything()


def every_family(name: str) -> bool:
    return True


CAP = 10_000
SERIES = {"confidence": 18, "probe": 2, "probe_exceedance": 2, "router": 24, "attention": 64}
SERIES["expert_load"] = 6 + 2


def engines(*told: tuple[Source, Totals], model_name: str = "tiny") -> Reducer:
    """A reducer that heard each engine's status and tables, a window ago and now."""
    reducer = Reducer(LIMITS)
    for source, body in told:
        engine = FakeSource(source)
        for t_ns in (NOW, NOW + 10 * SECOND):
            for each in (fakes.live(model_name), body):
                reducer.update(engine.frame(each, t_ns), t_ns)
    return reducer


def text_of(reducer: Reducer, writer: TableWriter, num_left: int = CAP) -> str:
    snapshot = reducer.get(NOW + 10 * SECOND)
    return writer.write(snapshot.sources, num_left, every_family, openmetrics=False)


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Each sample by name, without prefix, and label values in order; doubles are an error."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name.removeprefix(PREFIX), *sample.labels.values())
            assert key not in found
            found[key] = sample.value
    return found


def one(*tables: Table, num_left: int = CAP) -> dict[tuple[str, ...], float]:
    reducer = engines((Source("engine"), Totals(list(tables))))
    return samples(text_of(reducer, TableWriter(EVERYTHING), num_left))


def grown(*tables: tuple[Table, Table]) -> dict[tuple[str, ...], float]:
    """What is published when the last closed window turned each first table into the second."""
    engine, reducer = FakeSource(), Reducer(LIMITS)
    before, after = (Totals([pair[k] for pair in tables]) for k in range(2))
    for second, body in ((0, before), (5, after), (10, after)):
        for each in (fakes.live(), body):
            reducer.update(engine.frame(each, NOW + second * SECOND), NOW)
    return samples(text_of(reducer, TableWriter(EVERYTHING)))


@pytest.mark.parametrize(("group", "signal"), [k for k, m in FAMILY_OF.items() if m.unit != ""])
def test_every_summary_is_the_one_that_was_told(group: str, signal: str) -> None:
    """Sum and count of each cell of each signal, to the last bit, under its own labels."""
    axes = [["b", "a"], PHASES, ["7", "0", "x"]][: len(GROUPS[group].axes)]
    counts = np.arange(1, 1 + np.prod([len(labels) for labels in axes]))
    table = fakes.table(group, *axes, count=counts)
    found, cells = one(table), Cells.unpack(table)
    index = [each.id for each in GROUPS[group].signals].index(signal)
    metric = FAMILY_OF[group, signal]
    name = metric.name.removeprefix(PREFIX)

    assert metric.kind is Kind.SUMMARY
    for place in np.ndindex(cells.count.shape):
        at = ("tiny", "0", *(labels[k] for labels, k in zip(axes, place, strict=True)))
        assert found[f"{name}_count", *at] == cells.count[place]
        assert found[f"{name}_sum", *at] == cells.sums[(*place, index, 0)]
    assert len([key for key in found if key[0] == f"{name}_sum"]) == counts.size


def test_a_cell_without_rows_has_no_summary() -> None:
    """A series that never had a row would say 0 / 0."""
    found = one(fakes.table("router", ["0", "1"], PHASES, count=[4, 0, 0, 2]))

    assert {key[3:] for key in found} == {("0", "prefill"), ("1", "decode")}


def test_counts_that_are_wanted_for_themselves_start_at_zero() -> None:
    """A dead expert is news, and the first exceedance an increase."""
    found = one(
        fakes.table("expert_load", ["3"], ["0", "1"], count=[0, 5]),
        fakes.table("probe_exceedance", ["p"], ["0.9", "0.99"], count=[1, 0]),
        fakes.table("probe", ["p"], count=0),
    )

    assert found == {
        ("router_expert_rows_total", "tiny", "0", "3", "0"): 0,
        ("router_expert_rows_total", "tiny", "0", "3", "1"): 5,
        ("probe_exceedances_total", "tiny", "0", "p", "0.9"): 1,
        ("probe_exceedances_total", "tiny", "0", "p", "0.99"): 0,
        ("probe_scored_requests_total", "tiny", "0", "p"): 0,
    }


def test_values_that_may_be_negative_are_means_of_the_last_window() -> None:
    """Their sum is no counter; the mean is over what the window added, whatever came before."""
    before, after = (fakes.table("probe", ["p"], count=n, scale=-n / 4) for n in (8, 12))
    found = grown((before, after))
    total = [Cells.unpack(each).sums[0, 0, 0] for each in (before, after)]

    assert found["probe_score_window_mean", "tiny", "0", "p"] == (total[1] - total[0]) / 4
    assert found["probe_scored_requests_total", "tiny", "0", "p"] == 12


def test_a_mean_beyond_all_numbers_is_left_out() -> None:
    """Sums of a sender gone wrong may differ by more than a float holds."""
    before, after = (fakes.table("probe", ["p"], count=n) for n in (8, 12))
    for table, value in ((before, -1e308), (after, 1e308)):
        table.sums = np.full(3, value, "<f8").tobytes()

    assert not [key for key in grown((before, after)) if "mean" in key[0]]


def test_an_empty_window_has_no_mean_and_no_imbalance() -> None:
    """An idle engine shows no frozen value."""
    tables = [fakes.table("probe", ["p"]), fakes.table("expert_load", ["0"], ["0", "1"])]
    found = one(*tables)

    assert not [key for key in found if "mean" in key[0] or "imbalance" in key[0]]


def test_the_imbalance_is_of_the_last_window_per_layer() -> None:
    """The busiest expert over the mean: 1 is balanced, the number of experts is collapse."""
    axes = (["0", "1", "2"], ["0", "1", "2", "3"])
    before = fakes.table("expert_load", *axes, count=[1000, 0, 0, 0] * 3)
    after = fakes.table("expert_load", *axes, count=[1005, 5, 5, 5, 1000, 0, 8, 0, 1000, 0, 0, 0])
    found = grown((before, after))
    imbalance = {key[3]: value for key, value in found.items() if "imbalance" in key[0]}

    assert imbalance == {"0": 1.0, "1": 4.0}


def test_an_engine_without_status_waits() -> None:
    """Its model's name is not known, and a series must not change its labels."""
    reducer, writer = fakes.reduced(FakeSource().frame(fakes.totals())), TableWriter(EVERYTHING)

    assert writer.write(reducer.get(NOW).sources, CAP, every_family, openmetrics=False) == ""
    assert (writer.num_series, writer.num_dropped) == (0, 0)


def test_ranks_are_joined_by_their_heads() -> None:
    """Each tensor-parallel rank tells its own heads; what two ranks tell is the first one's."""
    ranks = [
        (Source("engine", 0, 0, 0), fakes.totals(1.0, heads=["0", "1"])),
        (Source("engine", 0, 0, 1), fakes.totals(4.0, heads=["1", "2"])),
    ]
    found = samples(text_of(engines(*ranks), TableWriter(EVERYTHING)))
    sums = {
        key[3:]: value for key, value in found.items() if key[0] == "attention_sink_mass_ratio_sum"
    }
    first = Cells.unpack(fakes.totals(1.0).tables[0]).sums[..., 3, 0]

    assert {key[2] for key in sums} == {"0", "1", "2"}
    assert sums["2", "decode", "1"] == first[1, 1, 1]
    assert sums["2", "decode", "2"] > first.max()
    assert len([key for key in found if "imbalance" in key[0] or "expert" in key[0]]) == 6


def test_engines_are_told_apart() -> None:
    """Data-parallel engines measure the same layers of other traffic."""
    both = [(Source("engine", k), fakes.totals(k + 1.0)) for k in range(2)]
    found = samples(text_of(engines(*both), TableWriter(EVERYTHING)))

    assert {key[2] for key in found} == {"0", "1"}


def test_a_label_that_is_sent_twice_is_one_series() -> None:
    """Of a sender's own mistakes too."""
    found = one(fakes.table("confidence", ["a", "a"], count=[3, 5]))

    assert found["token_entropy_nats_count", "tiny", "0", "a"] == 3


def test_labels_cannot_break_out_of_their_quotes() -> None:
    """Adapters and probes are named by people."""
    found = one(fakes.table("confidence", ['a"b\\c\nd{}%s']))

    assert {key[3] for key in found} == {'a"b\\c\nd{}%s'}


@pytest.mark.parametrize("openmetrics", [False, True])
def test_a_family_is_written_once(openmetrics: bool) -> None:
    """Of many engines, all samples of a family stand together under one header."""
    reducer = engines(*((Source("engine", k), fakes.totals()) for k in range(3)))
    snapshot = reducer.get(NOW + 10 * SECOND)
    text = TableWriter(EVERYTHING).write(
        snapshot.sources, CAP, every_family, openmetrics=openmetrics
    )

    assert text.count("# TYPE llm_internals_attention_entropy_ratio summary\n") == 1
    assert text.count("# TYPE ") == len({line for line in text.splitlines() if "# TYPE" in line})
    assert ("# UNIT " in text) is openmetrics


@pytest.mark.parametrize("num_groups", range(7))
def test_the_cap_leaves_out_whole_tables_from_the_end(num_groups: int) -> None:
    """By what a table would take with rows in every cell, small groups first, experts last."""
    fitting = list(SERIES)[:num_groups]
    num_left = sum(SERIES[group] for group in fitting) + 1
    writer = TableWriter(EVERYTHING)
    found = samples(text_of(engines((Source("engine"), fakes.totals())), writer, num_left))
    everything = TableWriter(EVERYTHING)
    text_of(engines((Source("engine"), fakes.totals())), everything)
    words = ("token", "probe_sco", "probe_exc", "router_g", "attention", "router_e")

    assert [any(key[0].startswith(word) for key in found) for word in words] == [
        group in fitting for group in SERIES
    ]
    assert writer.num_series == len(found) <= num_left
    assert writer.num_series + writer.num_dropped == everything.num_series


def test_nothing_after_the_first_table_left_out_is_published() -> None:
    """A small table does not slip into the gap: order decides, not size."""
    wide = fakes.table("confidence", [f"a{k}" for k in range(9)])
    found = one(wide, fakes.table("probe", ["p"]), num_left=80)

    assert found == {}


def test_traffic_does_not_decide_what_is_there() -> None:
    """A table with few rows takes the room of one with all."""
    sparse = fakes.table("router", ["0", "1"], PHASES, count=[4, 0, 0, 0])

    assert one(sparse, num_left=15) == {}
    assert len(one(sparse, num_left=16)) == 4


def test_what_is_dropped_adds_up() -> None:
    """A counter over all expositions."""
    reducer, writer = engines((Source("engine"), fakes.totals())), TableWriter(EVERYTHING)
    text_of(reducer, writer, 0)
    once = writer.num_dropped
    text_of(reducer, writer, 0)

    assert writer.num_dropped == 2 * once > 0


def test_names_are_rendered_once_per_table() -> None:
    """And forgotten with it."""
    reducer, writer = engines((Source("engine"), fakes.totals())), TableWriter(EVERYTHING)
    text_of(reducer, writer)
    rendered = dict(writer._rendered)
    text_of(reducer, writer)
    assert all(writer._rendered[key] is each for key, each in rendered.items())

    text_of(engines((Source("engine"), fakes.totals()), model_name="now"), writer)
    assert {key.model_name for key in writer._rendered} == {"now"}
    assert len(writer._rendered) == 6


def test_many_cells_are_written_in_pieces_without_a_seam() -> None:
    """More rows than one piece holds, none lost and none doubled."""
    experts = [str(k) for k in range(2500)]
    found = one(fakes.table("expert_load", ["0"], experts, count=np.arange(2500)))

    assert found["router_expert_rows_total", "tiny", "0", "0", "2499"] == 2499
    assert sum(found.values()) == 2500 * 2499 / 2
