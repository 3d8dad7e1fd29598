"""The soak at a small size, and the arithmetic of its figures."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bench.ratios import MET, MISSED, UNRESOLVED
from bench.report import RESULTS
from bench.soak import __main__ as command
from bench.soak import report
from bench.soak.board import SECOND, START_NS, Board
from bench.soak.slope import Slope, slope
from bench.soak.soak import LOST_PARTS, Account, Found, Sample, Size, lost_parts, soak

MB = 1_000_000


def found(*, leak_bytes: float = 0.0, num: int = 300) -> Found:
    """A run whose memory wavers by 5 MB, and grows by so much per frame."""
    rng = np.random.default_rng(0)
    frames = np.linspace(1000, 1_000_000, num).astype(int).tolist()
    rss = [400 * MB + leak_bytes * n + 5 * MB * rng.standard_normal() for n in frames]
    samples = [Sample(n, int(each), 35, 13) for n, each in zip(frames, rss, strict=True)]
    accounts = [Account("engine-dp0-pp0-tp0", 10, 2, 8, {"dropped": 2})]
    told = dict.fromkeys(
        (
            "finished_requests_total",
            "spans_finished_total",
            "drift_windows_total",
            "drift_pages_total",
        ),
        3.0,
    )
    seen = {"scrapes": 1, "answers": 2, "events": 3, "failed: ReadTimeout": 4}
    return Found(6.5, 1200.0, accounts, 0, samples, seen, told, 3, 2)


@pytest.mark.parametrize("leak_bytes", [0.0, 20.0])
def test_a_leak_is_told_from_wavering(leak_bytes: float) -> None:
    """2 MB per 100,000 frames stand out of samples that waver by 5 MB; none is not seen as one."""
    growth = report.grown(found(leak_bytes=leak_bytes))

    assert growth.low <= leak_bytes / 10 <= growth.high
    assert (growth.low > report.LIMIT_MB) == (leak_bytes > 10)


def by_name(table: Sequence[Sequence[str]], start: str) -> str:
    """The figure of the one row whose name begins so."""
    (told,) = [row[1] for row in table if row[0].startswith(start)]
    return told


@pytest.mark.parametrize(
    ("leak_bytes", "num", "told"),
    [(0.0, 3000, MET), (20.0, 300, MISSED), (10.0, 300, UNRESOLVED)],
)
def test_a_missed_limit_is_called_missed(leak_bytes: float, num: int, told: str) -> None:
    """Beside the figure, and what cannot be told is not called met."""
    rows = report.section(found(leak_bytes=leak_bytes, num=num)).rows

    assert by_name(rows, "growth").endswith(f": {told}")


@pytest.mark.parametrize(("leak_bytes", "status"), [(0.0, 0), (20.0, 1)])
def test_a_leak_fails_the_command(
    leak_bytes: float, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a frame without a name does; the file is written nevertheless."""
    run, written = found(leak_bytes=leak_bytes, num=3000), []
    monkeypatch.setattr(command, "soak", lambda *_: run._replace(accounts=[]))
    monkeypatch.setattr(command.reliability, "write", lambda *told: written.append(told[0]))
    monkeypatch.setattr(command.reliability, "main", lambda: None)
    monkeypatch.setattr("sys.argv", ["soak"])

    assert command.main() == status
    assert written == ["soak"]


def test_the_stored_run_says_whether_its_limit_was_kept() -> None:
    """The page's word follows from the slope in the file."""
    result = json.loads((RESULTS / "soak.json").read_text(encoding="utf-8"))
    growth = Slope(**result["figures"]["slope_mb_per_100000_frames"])
    (line,) = [each for each in result["table"] if each.startswith("| growth")]

    assert line.endswith(f": {report.verdict(growth)} |")


def test_parts_of_requests_that_were_lost_are_told_with_their_cause() -> None:
    """A span that lacks something, or was never made, is in the table."""
    run = found()
    lost = {LOST_PARTS: 7.0, lost_parts("late"): 5.0, lost_parts("left_out"): 2.0}

    rows = report.section(run._replace(told={**run.told, **lost})).rows
    assert by_name(rows, "parts of requests") == "7 (5 late, 2 left_out)"


def test_the_slope_is_that_of_a_line() -> None:
    """Without noise it is exact, and so is its interval."""
    x = np.arange(100.0)

    assert slope(x.tolist(), (7 - 3 * x).tolist()) == pytest.approx((-3, -3, -3))
    with pytest.raises(ValueError, match="run for longer"):
        slope([1.0, 2.0], [1.0, 2.0])


def test_what_comes_before_the_stores_are_full_is_no_growth() -> None:
    """Memory that rises during the warm-up alone gives no slope."""
    run = found()
    early = [each._replace(rss_bytes=MB) for each in run.samples if each.num_frames < 200_000]
    later = run.samples[len(early) :]

    assert report.grown(run._replace(samples=[*early, *later])) == report.grown(run)


def test_frames_without_a_name_are_told() -> None:
    """What was sent is received, lost by a cause, or unaccounted for; too many is no better."""
    short = Account("engine-dp0-pp0-tp0", 10, 1, 7, {"dropped": 1, "stale": 1})
    long = Account("frontend-0", 10, 0, 11, {})
    run = found()._replace(accounts=[short, long])

    assert report.totals(run) == (20, 18, 2, 2)
    assert dict(report.section(run).rows)["unaccounted for"] == "2"
    assert (
        "; 4" in dict(report.section(run).rows)["scrapes, answers of the API, events heard; failed"]
    )


def test_a_clock_is_shared(tmp_path: Path) -> None:
    """What the conductor lets pass is the time of all; a second is over when all ranks say so."""
    conductor, rank = Board(tmp_path / "board", 2), Board(tmp_path / "board")
    conductor.advance()
    rank.tell(1, 1, 7, 2)

    assert (rank.now_ns(), rank.second, rank.is_over) == (START_NS + SECOND, 1, False)
    assert not conductor.is_done(1)
    rank.tell(0, 1, 5, 0)
    conductor.end()
    assert conductor.is_done(1)
    assert (conductor.num_sent, rank.is_over) == (12, True)


def test_a_short_soak_loses_nothing(tmp_path: Path) -> None:
    """A real sidecar, four ranks, minutes of traffic: every frame, request and span has a name."""
    run = soak(Size(num_frames=3_000, num_ranks=4, num_samples=50), tmp_path)
    sent, _, _, unaccounted = report.totals(run)

    assert len(run.accounts) == 5
    assert sent >= 3_000
    assert [each.lost["missing"] for each in run.accounts] == [0] * 5
    assert [each.lost["dropped"] for each in run.accounts] == [
        each.dropped for each in run.accounts
    ]
    assert (unaccounted, run.refused, report.failed(run)) == (0, 0, 0)
    # One whose parts come seconds apart, by the run's fast clock, is told of twice.
    assert run.told["traced_requests_total"] >= run.told["finished_requests_total"] > 100
    assert run.told["spans_finished_total"] == run.spans
    assert run.told["drift_windows_total"] > 0
    assert min(run.seen[each] for each in ("scrapes", "answers", "events")) > 0
    assert lost_parts("late") in run.told
    assert report.section(run).rows
    # One for every request or every second of its clock would be more; answers are too few here.
    half = len(run.samples) // 2
    early, late = run.samples[:half], run.samples[half:]
    assert max(each.num_fds for each in late) <= max(each.num_fds for each in early) + 15
    assert max(each.num_threads for each in late) <= max(each.num_threads for each in early) + 10
