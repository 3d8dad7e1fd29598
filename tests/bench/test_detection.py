"""The benches of detection: worlds are what they claim, bounds are right, and every piece runs."""

import dataclasses
import importlib
import json

import numpy as np
import pytest
from scipy.stats import kurtosis, poisson, skew

from bench.detection import __main__ as command
from bench.detection import (
    bounds,
    compared,
    delay,
    false_pages,
    rivals,
    shipped,
    worlds,
)
from bench.detection.report import Delay
from bench.report import Section, table
from sidecar.fold.drift.calibrate import DAY_NS
from sidecar.fold.drift.fit import Fit
from sidecar.fold.drift.header import Header
from sidecar.fold.drift.observation import Observation
from sidecar.fold.drift.plan import Survey
from sidecar.fold.drift.schema import Schema
from sidecar.fold.drift.traffic import TrafficChannel
from sidecar.fold.drift.verdict import ChannelState
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout, size

SMALL = false_pages.Size(baseline=480, month=400, streams=6, months=2)


def correlation(scores, lag: int) -> float:
    """Autocorrelation at a lag, over all streams of a world of mean 0 and variance 1."""
    return float((scores[lag:] * scores[:-lag]).mean())


@pytest.mark.parametrize("world", worlds.SCORED)
def test_a_world_is_centred_and_of_unit_variance(world) -> None:
    """One unit is a window-sd, or delays in window-sd would mean nothing."""
    scores = worlds.SCORED[world](np.random.default_rng(0), 4 * worlds.WEEK, 24)
    assert scores.shape == (4 * worlds.WEEK, 24)
    assert scores.mean() == pytest.approx(0.0, abs=0.06)
    assert scores.var() == pytest.approx(1.0, abs=0.1)


def test_worlds_have_the_tails_they_are_named_after() -> None:
    """Excess kurtosis of t5 is 6 and the skewness of a lognormal of sigma 1 is 6.2; iid has none.

    Sample values of such tails fall short, so half is asked for.
    """
    found = {
        name: worlds.SCORED[name](np.random.default_rng(1), 20_000, 8)
        for name in ("iid", "t5", "lognormal")
    }
    assert abs(kurtosis(found["iid"].ravel())) < 0.1
    assert kurtosis(found["t5"].ravel()) > 3
    assert skew(found["lognormal"].ravel()) > 3


@pytest.mark.parametrize(("world", "coefficient"), [("AR(0.9)", 0.9), ("AR(0.98)", 0.98)])
def test_an_autocorrelated_world_forgets_at_its_rate(world, coefficient) -> None:
    """The share that is AR decays by the coefficient; streams share half of it."""
    scores = worlds.SCORED[world](np.random.default_rng(2), 20_000, 24)
    for lag in (1, 12):
        wanted = worlds.AR_SHARE * coefficient**lag
        assert correlation(scores, lag) == pytest.approx(wanted, abs=0.04)


def test_seasons_come_back_after_their_period() -> None:
    """Scores resemble those of a period before, and are the opposite of those of half of one."""
    for world, period in (("diurnal", worlds.DAY), ("weekly", worlds.WEEK)):
        scores = worlds.SCORED[world](np.random.default_rng(3), 2 * worlds.WEEK, 24)
        wanted = (worlds.SEASON**2 / 2) / (1 + worlds.SEASON**2 / 2)
        assert correlation(scores, period) == pytest.approx(wanted, abs=0.04)
        assert correlation(scores, period // 2) == pytest.approx(-wanted, abs=0.04)


def test_replicas_that_come_and_go_leave_lasting_steps() -> None:
    """Windows of one hour resemble each other, and those of a week apart do not."""
    scores = worlds.churned(np.random.default_rng(4), 3 * worlds.WEEK, 24)
    assert correlation(scores, 12) > 0.05
    assert abs(correlation(scores, worlds.WEEK)) < 0.05


def test_the_mix_walks_and_no_stratum_moves() -> None:
    """Shares change by a factor, pooled means follow them, and means within a stratum stay."""
    world = worlds.mixed(np.random.default_rng(5), num_strata=4, num_streams=8)
    days = list(world.days(np.random.default_rng(6), 2 * worlds.DAY))
    num = np.concatenate([day.num for day in days])
    mean = np.concatenate([day.mean for day in days])
    pooled = np.concatenate([worlds.pooled(day) for day in days])
    shares = num / num.sum(1, keepdims=True)
    assert (shares.max(0) / np.maximum(shares.min(0), 1e-3)).max() > 1.3
    half = len(mean) // 2
    moved = np.abs(mean[:half].mean(0) - mean[half:].mean(0))
    assert moved.max() < 0.05
    assert np.abs(pooled[:half].mean(0) - pooled[half:].mean(0)).max() > 2 * moved.max()


@pytest.mark.parametrize(("count", "exposure"), [(0, 120), (1, 160), (7, 3)])
def test_the_upper_rate_is_the_exact_poisson_bound(count, exposure) -> None:
    """At that rate so few events, or fewer, have a chance of 5 %."""
    rate = bounds.upper_rate(count, exposure)
    assert poisson.cdf(count, rate * exposure) == pytest.approx(0.05, abs=1e-9)


def test_one_page_in_160_months_is_at_most_a_thirtieth_a_month() -> None:
    """The figure that the programme of validation states."""
    assert bounds.upper_rate(1, 160) == pytest.approx(0.0297, abs=1e-4)


def test_a_comparison_is_void_when_the_plain_chart_stays_quiet() -> None:
    """19 of 20 months must alarm in each hard world; 18 are too few."""
    assert bounds.void(20, {"t5": 20, "AR(0.9)": 19}) == []
    told = bounds.void(20, {"t5": 20, "AR(0.9)": 18})
    assert told == ["CUSUM on raw z alarmed in 18 of 20 months of AR(0.9) only"]


def test_easy_worlds_void_the_table_and_fail_the_command(monkeypatch, capsys) -> None:
    """With iid in place of the hard worlds no plain chart alarms: VOID is told, exit is 1."""
    easy = dict.fromkeys(worlds.SCORED, worlds.iid)
    monkeypatch.setattr(worlds, "SCORED", easy)
    monkeypatch.setattr(false_pages, "settings", lambda is_quick: SMALL)
    assert command.main(["--quick", "--only", "false-pages"]) == 1
    assert "The comparison is VOID: CUSUM on raw z alarmed in" in capsys.readouterr().out


def test_hard_worlds_do_not_void_it_and_the_figures_are_written(tmp_path, monkeypatch) -> None:
    """Heavy tails and autocorrelation make the plain chart alarm; JSON holds every month."""
    sized = SMALL._replace(month=4000, streams=96, months=1)
    monkeypatch.setattr(false_pages, "settings", lambda is_quick: sized)
    assert command.main(["--quick", "--only", "false-pages", "--results", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "detection_false-pages.json").read_text())
    assert found["figures"]["void"] == []
    assert set(found["figures"]["worlds"]) == {*false_pages.WORLDS, false_pages.POOLED}
    assert found["command"].endswith("--only false-pages --quick")
    assert found["machine"]["packages"].keys() >= {"numpy", "river"}


def test_an_unknown_section_is_refused_by_name(capsys) -> None:
    """The known ones are told."""
    with pytest.raises(SystemExit):
        command.main(["--only", "delays"])
    assert "no section 'delays': use some of false-pages, delay" in capsys.readouterr().err


def test_requests_have_exactly_the_window_means_they_are_drawn_around() -> None:
    """So that all detectors see the same streams."""
    scores = np.random.default_rng(7).standard_normal((5, 3))
    found = rivals.requests_of(scores, np.random.default_rng(8), 60)
    assert found.shape == (5, 60, 3)
    assert np.allclose(found.mean(1) * np.sqrt(60), scores)


def test_tests_of_requests_keep_their_level_and_see_a_large_shift() -> None:
    """KS over 8 streams alarms in about 5 % of windows, and in every one of 3 sd."""
    rng = np.random.default_rng(9)
    reference = rng.standard_normal((6000, 8))
    calm, moved = rng.standard_normal((400, 60, 8)), rng.standard_normal((20, 60, 8)) + 3.0
    assert 0.01 < rivals.kolmogorov_smirnov(reference, calm).mean() < 0.09
    assert rivals.kolmogorov_smirnov(reference, moved).all()
    assert rivals.stability_index(reference, moved).all()


def test_the_stability_index_of_small_windows_is_above_its_limit_by_chance() -> None:
    """With 60 requests and 10 bins the index is 0.15 on average when nothing changed."""
    rng = np.random.default_rng(10)
    alarms = rivals.stability_index(
        rng.standard_normal((6000, 1)), rng.standard_normal((800, 60, 1))
    )
    assert 0.1 < alarms.mean() < 0.5


def test_charts_on_means_see_a_shift_and_the_textbook_wakes_somebody_by_chance() -> None:
    """ADWIN and CUSUM find 2 sd; k = 1/2, h = 5 has a run length of 465 a stream, so pages."""
    rng = np.random.default_rng(11)
    before, after = rng.standard_normal((1000, 4)), rng.standard_normal((300, 4)) + 2.0
    for name, rival in rivals.BY_MEANS.items():
        assert rival(before, after).any(), name
    calm = rng.standard_normal((4000, 4))
    assert 10 < rivals.pages(rivals.textbook(before, calm)) < 120
    assert not rivals.adaptive(before, calm[:300]).any()


def test_a_page_is_a_run_of_alarming_windows() -> None:
    """Nobody is woken again while it goes on."""
    alarms = np.array([1, 1, 0, 0, 1, 0, 1, 1, 1], bool)
    assert rivals.pages(alarms) == 3


def test_every_detector_is_compared_in_every_world() -> None:
    """The whole comparison, on two days and four streams."""
    sized = compared.Size(1, 1, month=300, baseline=480, streams=4, worlds=("iid",))
    section = compared.run(sized)
    assert [row[1] for row in section.rows] == [compared.SHIPPED, *rivals.RIVALS]
    json.dumps(section.figures, allow_nan=False)


def test_delays_grow_as_shifts_shrink() -> None:
    """2 sd in half of the streams is found within 20 windows, and 4 sd sooner."""
    sized = delay.Size(1, 4, baseline=1440, streams=12, shifts=(4.0, 2.0), worlds=("iid",))
    cells = delay.run(sized).figures["worlds"]["iid"]
    assert cells["4 sd, 50 %"]["median"] < cells["2 sd, 50 %"]["median"] <= 20


def test_a_shift_hits_so_many_streams_from_its_onset_on() -> None:
    """And one at least, however small the share."""
    calm = np.zeros((3, 10, 20))
    moved = delay.shifted(calm, np.random.default_rng(12), 2.0, 0.1, onset=4)
    assert (moved[:, :4] == 0).all()
    assert (np.abs(moved[:, 4:]).sum((1, 2)) == 6 * 2 * 2.0).all()
    one = delay.shifted(calm, np.random.default_rng(12), 2.0, 0.0, onset=9)
    assert (np.count_nonzero(one, axis=(1, 2)) == 1).all()


def test_the_bench_pages_where_the_shipped_channel_does() -> None:
    """`shipped.alarms` on D is `TrafficChannel` with every page acknowledged at once."""
    baseline = tiny_baseline(2016)
    rng = np.random.default_rng(13)
    moved = rng.standard_normal((400, baseline.schema.num_streams))
    moved[150:] += 3.0
    alarm = shipped.Alarm.of(baseline.reservoir)
    alarms = shipped.alarms(alarm.charts, alarm.score(moved))
    channel = TrafficChannel(baseline)
    paged = []
    for number, scores in enumerate(moved):
        channel.judge(scores, number * 300 * 10**9, (number + 1) * 300 * 10**9)
        is_page = channel.get(0).state is ChannelState.PAGE
        paged.append(is_page)
        if is_page:
            channel.acknowledge(0)
    assert alarm.eta == channel.eta
    assert not alarm.is_blind
    assert any(paged)
    assert alarms.tolist() == paged


def test_delays_of_runs_are_those_of_each_alone() -> None:
    """Runs side by side do not touch each other; what never pages is infinite."""
    baseline = np.random.default_rng(14).standard_normal((1440, 5))
    alarm = shipped.Alarm.of(baseline)
    runs = np.zeros((3, 60, 5))
    runs[0, 10:, 0], runs[1, 30:, 1] = 3.0, -3.0
    scores = alarm.score(runs)
    found = shipped.delays(alarm.charts, scores, 10)
    alone = [np.flatnonzero(shipped.alarms(alarm.charts, each)) for each in scores]
    assert found.tolist() == [alone[0][0] - 9.0, alone[1][0] - 9.0, np.inf]


def test_a_quantile_among_runs_that_never_ended_is_never() -> None:
    """One miss in five leaves the median, and not the p90."""
    told = Delay.of([4.0, 3.0, 5.0, float("inf"), 2.0])
    assert str(told) == "4 / never, missed 1 of 5"
    assert told.plain() == {"median": 4.0, "p90": None, "missed": 1, "runs": 5}
    assert str(Delay.of([1.0, 2.0, 3.0])) == "2 / 3"


def test_a_section_is_a_table_with_its_notes_below() -> None:
    """As Markdown, for the page."""
    section = Section("Title", ("a", "b"), [["1", "2"]], {}, ["note"])
    assert list(table(section)) == [
        "### Title",
        "",
        "| a | b |",
        "|---|---|",
        "| 1 | 2 |",
        "",
        "note",
    ]


def test_sections_are_modules_that_can_be_set_up_in_both_sizes() -> None:
    """Each name on the command line leads to `settings` and `run`; quick is never the full size."""
    for name in command.SECTIONS.values():
        module = importlib.import_module(f"bench.detection.{name}")
        assert callable(module.run)
        assert module.settings(is_quick=True) != module.settings(is_quick=False)


def tiny_baseline(num_windows: int):
    """A baseline whose reservoir is standard normal; its requests are a few random ones."""
    layout = Layout(layers=[0])
    rng = np.random.default_rng(15)
    values = rng.standard_normal((400, size(layout))).astype(np.float32)
    items = [
        Observation(DAY_NS + i * 10**9, "engine", "chat", "", 20, 4, "", each)
        for i, each in enumerate(values)
    ]
    survey = Survey(Schema.of(layout))
    for item in items:
        survey.update(item)
    fit = Fit(Header(Identity(dtype="bfloat16"), layout), survey.get())
    for item in items:
        fit.update(item)
    baseline = fit.get()
    num_streams = baseline.schema.num_streams
    return dataclasses.replace(
        baseline,
        reservoir=rng.standard_normal((num_windows, num_streams)),
        times_ns=np.arange(num_windows) * 300 * 10**9,
        mix=np.ones((num_windows, len(baseline.strata)), np.int64),
    )
