"""docs/performance.md and docs/scale.md say what the stored results say."""

import copy
import json

import pytest

from bench import overhead, performance, scale
from bench.report import RESULTS
from tests.bench.test_overhead import Engines

MACHINE = {"cpu": "a processor", "num_cores": 2, "revision": "abc", "packages": {"numpy": "2"}}
RESULT = {
    "benchmark": "capacity/ingest",
    "command": "python -m bench.capacity --only ingest",
    "seconds": 61.4,
    "seed": 0,
    "machine": MACHINE,
    "load_average": 0.4,
    "title": "Frames",
    "figures": {
        "targets": [
            {"what": "frames/s", "limit": 4000.0, "found": 3999.0, "is_met": False, "unit": ""},
            {"what": "lost", "limit": 0, "found": 28_929, "is_met": False, "unit": ""},
        ]
    },
    "table": ["### Frames", "", "| a |", "|---|", "| 7 |", "", "A note."],
}
FLEET = RESULT | {
    "title": "A fleet",
    "figures": {
        "replica": {
            "series": 1500,
            "scrape_gzip_bytes": 18_000,
            "socket_bytes_a_second": 400_000.0,
            "frames_a_second": 19.0,
            "fold_ms_a_second": 5.0,
            "scrape_ms": 15.0,
        },
        "merge": {"baselines": 1000, "read_seconds": 60.0, "merge_seconds": 20.0},
        "contrast": {"replicas": 250, "window_ms": 300.0},
    },
}


def test_the_pages_hold_what_is_stored() -> None:
    """None was edited by hand; `make performance` writes them."""
    results = performance.stored(RESULTS)
    for name, page in (("performance", performance.page), ("scale", scale.page)):
        text = (performance.DOCS / f"{name}.md").read_text(encoding="utf-8")
        assert text == page(results)


def test_no_stored_result_is_of_a_quick_run() -> None:
    """Those are for a look; the one shape that is called quick says so itself."""
    for name, result in performance.stored(RESULTS).items():
        if name in {each.name for each in performance.PLACES}:
            assert "--quick" not in result.get("command", ""), name


def test_what_was_not_measured_is_said_with_the_command_that_would() -> None:
    """A GPU that could not be had above all."""
    text = performance.page({})
    assert text.count("Not measured yet") == len(performance.PLACES)
    assert "`python -m bench.overhead --shape 8b --arms off,again,on --json" in text
    assert "Not measured yet" in scale.page({})


def test_a_table_stands_with_its_command_its_machine_and_how_busy_that_was() -> None:
    """And a target that was missed is told at the top."""
    text = performance.page({"capacity_ingest": RESULT})
    made = "`python -m bench.capacity --only ingest`: 2 cores of an a processor; numpy 2; load 0.4"
    assert f"{made}; 61 s; seed 0; abc." in text
    assert "| frames/s | >= 4,000 | 3,999 | **missed** |" in text
    assert "| lost | <= 0 | 28,929 | **missed** |" in text
    assert "| 7 |\n\n- A note." in text


@pytest.mark.parametrize(("cpu_ms", "told"), [(53.3, "met"), (140.0, "**missed**")])
def test_the_cpu_of_a_scrape_is_held_against_its_target(cpu_ms, told) -> None:
    """100 ms, at some 50,000 series."""
    health = {"num_series": 50_122, "p50_ms": 3.0, "p99_ms": 16.0, "scrape_cpu_ms": cpu_ms}
    text = performance.page({"scrape_cpu": {"machine": MACHINE, "rows": [], "health": health}})
    assert f"| CPU of a scrape of 50,122 series | <= 100 ms | {cpu_ms:g} ms | {told} |" in text


def test_overhead_is_told_with_its_verdicts(tmp_path) -> None:
    """As the bench itself prints it."""
    path = tmp_path / "result.json"
    overhead.main(["--shape=quick", "--rounds=2", f"--json={path}"], Engines())
    text = performance.page({"overhead_quick_cpu": json.loads(path.read_text())})
    assert "| on | off | decode | 8 |" in text
    assert "tok/s >= 0.98: MISSED" in text


def test_ten_thousand_gpus_are_products_of_what_was_measured() -> None:
    """1,250 pods; each step of the arithmetic is shown."""
    text = scale.page({"fleet": FLEET})
    assert "| series | 1,250 x 1,500 | 1.88 million |" in text
    assert "| samples | 1,875,000 / 15 s | 125,000 a second |" in text
    assert (
        "| merging a baseline, offline | 1,250 / 1,000 x (60.0 s + 20.0 s) | 100 s of CPU |" in text
    )
    assert (
        "| CPU of a sidecar | 5.0 ms/s of folding + 15.0 ms / 15 s of scrapes | 0.60 % of a core |"
        in text
    )
    assert "5 jobs of 250, 300 ms of CPU in a window of 5 minutes | 0.500% of a core" in text


@pytest.mark.parametrize("times", [1, 2])
def test_a_figure_that_changes_changes_the_page(times) -> None:
    """No line of arithmetic is fixed text."""
    more = copy.deepcopy(FLEET)
    more["figures"]["replica"]["series"] *= times
    assert (scale.page({"fleet": more}) == scale.page({"fleet": FLEET})) == (times == 1)
