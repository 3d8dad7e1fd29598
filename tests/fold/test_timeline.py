"""Layers second by second: what grew between two frames, in the second it grew in."""

import numpy as np
import pytest

from sidecar.fold import timeline
from sidecar.fold.columns import COLUMN_NS, NUM_COLUMNS
from sidecar.fold.timeline import CONFIDENCE, RESIDUAL, Picture, Timelines
from sidecar.fold.usual import MIN_COLUMNS
from sidecar.wire.frame import Arrays, Body, Coverage, Layers, Source, Totals
from sidecar.wire.signals import LAYER_SIGNALS
from tests.fakes import ENGINE, NOW, PHASES, SECOND, FakeSource, table

DECODE_REST = ("decode", "rest")
_, _, _, DECODE = range(4)  # populations


def totals(rows: int, value: float, first_layer: int = 0) -> Layers:
    """Running totals of two layers: `rows` decode rows in all, of `value` each in layer 0."""
    made = Arrays.zeros(2)
    made.count[DECODE] = rows
    for layer, scale in enumerate((1.0, 2.0)):
        v = np.full(3, value * scale)
        made.sums[DECODE, layer] = rows * np.stack([v, np.log(v), np.log(v) ** 2], -1)
    layers = [first_layer, first_layer + 1]
    return Layers(layers, 1, 1, Coverage([0, 0, 0, rows]), made.pack())


class Told:
    """Timelines that hear one source; times in seconds after NOW."""

    def __init__(self, max_bytes: int = timeline.MAX_BYTES) -> None:
        self.timelines = Timelines(max_bytes)
        self.sources: dict[str, FakeSource] = {}

    def hear(self, body: Body, seconds: float, source: Source = ENGINE, boot: str = "one") -> None:
        key = source.name + boot
        fake = self.sources.setdefault(key, FakeSource(source, f"boot-{boot}"))
        self.timelines.update(fake.frame(body, NOW + int(seconds * SECOND)))

    def see(self, *sources: Source, after: float = -1, signal: str = "residual_rms") -> Picture:
        after_ns = NOW + int(after * SECOND)
        chosen = sources or (ENGINE,)
        return self.timelines.picture(chosen, RESIDUAL, signal, DECODE_REST, after_ns)


def test_a_column_is_what_grew_in_its_second() -> None:
    """Rows and means of that second alone; the first frame only tells where growth begins."""
    told = Told()
    for second, (rows, value) in enumerate([(100, 4.0), (102, 4.0), (102, 4.0), (106, 4.0)]):
        told.hear(totals(rows, value), second + 0.5)
    told.hear(totals(110, 4.0), 4.5)
    picture = told.see()

    assert picture.layers == (0, 1)
    assert picture.t_ns == tuple(NOW + k * SECOND for k in range(4))
    assert picture.rows[:, 0].tolist() == [0, 2, 0, 4]
    np.testing.assert_allclose(picture.values[[1, 3]], [[4.0, 8.0]] * 2, rtol=1e-6)
    np.testing.assert_allclose(picture.phi[1], np.log([4.0, 8.0]), rtol=1e-6)
    assert np.isnan(picture.values[[0, 2]]).all()


def test_the_second_that_still_grows_is_not_told() -> None:
    """So that a client that asks for what is new never holds half a column."""
    told = Told()
    for seconds in (0.1, 1.1, 1.9):
        told.hear(totals(round(10 * seconds), 1.0), seconds)
    assert told.see().t_ns == (NOW,)
    told.hear(totals(30, 1.0), 2.0)

    assert told.see(after=0).t_ns == (NOW + SECOND,)
    assert told.see(after=0).rows[0, 0] == 18
    assert told.see(after=1).t_ns == ()


def test_a_second_between_two_frames_shares_their_growth() -> None:
    """A flush every 1.003 s now and then leaves a second out; the engine did not stop then."""
    told = Told()
    for seconds, rows in ((0.99, 0), (2.01, 10), (3.5, 10)):
        told.hear(totals(rows, 1.0), seconds)

    assert told.see().rows[:, 0].tolist() == [0, 5, 5]


def test_after_a_long_silence_growth_belongs_to_the_end() -> None:
    """Frames that were lost for a minute do not paint a minute."""
    told = Told()
    for seconds, rows in ((0, 0), (60, 10), (61, 10)):
        told.hear(totals(rows, 1.0), seconds)
    rows = told.see().rows[:, 0]

    assert rows[-1] == 10
    assert rows.sum() == 10


def test_a_restarted_source_begins_anew_without_forgetting() -> None:
    """Totals of a new life, be they less or more, are no growth, and what was is kept."""
    told = Told()
    for seconds, rows in ((0, 0), (1, 6), (2, 6)):
        told.hear(totals(rows, 1.0), seconds)
    for seconds, rows in ((3, 2), (4, 5), (5, 5)):
        told.hear(totals(rows, 1.0), seconds, boot="two")
    for seconds, rows in ((6, 50), (7, 51), (8, 51)):
        told.hear(totals(rows, 1.0), seconds, boot="three")

    assert told.see().rows[:, 0].tolist() == [0, 6, 0, 0, 3, 0, 0, 1]


def test_stages_of_one_engine_are_one_picture() -> None:
    """Layers of both, in the order of their ids; each for itself when asked so."""
    told, stages = Told(), [Source("engine", 0, k) for k in range(2)]
    for seconds in range(4):
        for first, stage in zip((2, 0), stages, strict=True):
            told.hear(totals(4 * seconds, 1.0, first), seconds, stage)
    both = told.see(*stages)

    assert told.timelines.sources() == stages
    assert both.layers == (0, 1, 2, 3)
    np.testing.assert_allclose(both.values[1], [1, 2, 1, 2], rtol=1e-6)
    assert told.see(stages[0]).layers == (2, 3)


def test_a_source_that_fell_silent_does_not_hold_the_others_up() -> None:
    """While it may still speak its seconds are waited for; after that they are empty."""
    told, stages = Told(), [Source("engine", 0, k) for k in range(2)]
    for seconds in range(5):
        told.hear(totals(seconds, 1.0), seconds, stages[0])
        told.hear(totals(seconds, 1.0, 2), seconds, stages[1])
    for seconds in range(5, 9):
        told.hear(totals(seconds, 1.0), seconds, stages[0])
    assert told.see(*stages).t_ns[-1] == NOW + 3 * SECOND
    for seconds in range(9, 30):
        told.hear(totals(seconds, 1.0), seconds, stages[0])

    assert told.see(*stages).t_ns[-1] == NOW + 28 * SECOND
    assert np.isnan(told.see(*stages).values[-1, 2:]).all()


def test_the_start_is_what_was_usual_at_first() -> None:
    """Layer by layer, of the columns that had rows; a new life has a start of its own."""
    told = Told()
    rng = np.random.default_rng(3)
    rows, logs = 0, []
    sums = Arrays.zeros(1)
    for second in range(MIN_COLUMNS + 20):
        value = float(np.exp(rng.normal()))
        rows, logs = rows + 2, [*logs, np.log(value)]
        sums.count[DECODE] = rows
        sums.sums[DECODE, :, :, :2] += 2 * np.array([value, np.log(value)])
        told.hear(Layers([0], 1, 1, Coverage([0, 0, 0, rows]), sums.pack()), second)
    start = told.see().start

    np.testing.assert_allclose(start.mean, np.mean(logs[1:-1]), rtol=1e-5)
    np.testing.assert_allclose(start.sd, np.std(logs[1:-1], ddof=1), rtol=1e-5)
    for seconds in (900, 901):
        told.hear(Layers([0], 1, 1, Coverage([0] * 4), sums.pack()), seconds, boot="two")
    assert not told.see().start.is_known


def test_heads_of_a_layer_are_one_row_of_the_picture() -> None:
    """The mean over sampled rows and heads, also when ranks or tables hold heads of their own."""
    told, ranks = Told(), [Source("engine", 0, 0, k) for k in range(2)]
    made = [
        table("attention", ["3"], PHASES, [str(head)], count=8, scale=scale)
        for head, scale in ((0, 1.0), (1, 1.0), (2, 4.0))
    ]
    nothing = [table("attention", ["3"], PHASES, [str(head)], count=0) for head in range(3)]
    for tables, seconds in ((nothing, 0), (made, 1), (made, 2)):
        told.hear(Totals(tables[:2]), seconds, ranks[0])
        told.hear(Totals(tables[2:]), seconds, ranks[1])
    picture = told.timelines.picture(ranks, "attention", "entropy", ("decode", ""))
    # What `fakes.table` puts into the cell of decode: the 13th number of its sums.
    one = (1 + 12 / 256) / 8

    assert picture.layers == (3,)
    assert picture.rows[1, 0] == 24
    assert picture.values[1, 0] == pytest.approx((one + one + 4 * one) / 3)
    overall = told.timelines.overall(
        ranks,
        "attention",
        "decode",
        range(picture.t_ns[1] // SECOND, picture.t_ns[1] // SECOND + 1),
    )
    assert overall["entropy"].tolist() == pytest.approx([(one + one + 4 * one) / 3])


def test_confidence_has_no_layers_but_a_line() -> None:
    """Over all adapters; it is in no picture's list of sources."""
    told = Told()
    for count, seconds in ((0, 0), (8, 1), (8, 2)):
        told.hear(Totals([table("confidence", ["", "x"], count=count)]), seconds)
    second = NOW // COLUMN_NS + 1
    line = told.timelines.overall([ENGINE], CONFIDENCE, "decode", range(second, second + 1))

    assert told.timelines.sources() == []
    assert line["entropy"].tolist() == pytest.approx([(1 + 1 + 15 / 256) / 16])


def test_ten_minutes_are_held() -> None:
    """The columns before them are gone."""
    told = Told()
    for seconds in range(NUM_COLUMNS + 50):
        told.hear(totals(seconds, 1.0), seconds)
    picture = told.see()

    assert len(picture.t_ns) == NUM_COLUMNS - 1
    assert picture.t_ns[-1] == NOW + (NUM_COLUMNS + 48) * SECOND


def test_what_finds_no_room_is_counted_until_a_silent_source_makes_room() -> None:
    """Sources that speak keep their place."""
    one = timeline.Shape(
        RESIDUAL, ((), (), (), ()), (0, 1), tuple(each.id for each in LAYER_SIGNALS)
    ).num_bytes
    told, late = Told(max_bytes=one), Source("engine", 1)
    told.hear(totals(1, 1.0), 0)
    told.hear(totals(1, 1.0), 1, late)
    assert told.timelines.num_left_out == 1
    assert told.timelines.sources() == [ENGINE]
    told.hear(totals(1, 1.0), 60, late)

    assert told.timelines.sources() == [late]
    assert told.timelines.num_left_out == 1


@pytest.mark.parametrize(
    "axes",
    [(["three"], PHASES, ["0"]), (["3"], ["dream"], ["0"]), (["٣"], PHASES, ["0"])],
)
def test_labels_that_mean_nothing_are_passed_over(axes: tuple[list[str], ...]) -> None:
    """A layer is a number and a phase one of ours."""
    told = Told()
    told.hear(Totals([table("attention", *axes)]), 0)

    assert told.timelines.sources() == []
