"""The screen, drawn into text."""

import io
import time

from rich.console import Console

from sidecar.demo.readings import (
    CanaryReading,
    LayerReading,
    Reading,
    ServingReading,
    TapReading,
)
from sidecar.demo.screen import Screen, TokenRate
from sidecar.demo.traffic import Tally

LAYERS = tuple(LayerReading(n, 1.0 + n, 2.0 + 2 * n, 12.0, 0.5, 0.25) for n in range(4))
LIVE = Reading(
    ready=True,
    reasons=(),
    taps=(TapReading("engine-dp0-pp0-tp0", "live", ""),),
    layers=LAYERS,
    serving=ServingReading(2.0, 1.0, 500.0, 0.0512, 0.0043),
)


def shown(*readings: Reading, terminal: bool = False, step: float = 10.0, note: str = "") -> str:
    """What a screen of 80 columns shows for readings `step` seconds apart."""
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=terminal, color_system=None)
    seconds = 0.0
    with Screen(console, clock=lambda: seconds) as screen:
        for reading in readings:
            screen.show(reading, Tally(), seconds, note=note)
            seconds += step
    return text.getvalue()


def test_the_table_shows_every_layer_within_80_columns() -> None:
    """One row per layer: means by phase, the peak, the influence, and a bar for RMS in decode."""
    text = shown(LIVE)
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines() if line[:5].strip().isdigit()]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert rows[3][1:3] == ["4.00", "8.00"]
    assert rows[3][4:] == ["12.0", "0.500", "0.250"]
    assert len(rows[3][3]) == 4 * len(rows[0][3]) == 20


def test_the_line_of_stats_tells_latency_and_load() -> None:
    """TTFT, TPOT, tokens per second between two readings, running and waiting requests."""
    later = LIVE._replace(serving=LIVE.serving._replace(generated_tokens=1500.0))
    text = shown(LIVE, later)
    assert "TTFT 51 ms   TPOT 4 ms   - tokens/s   running 2   waiting 1" in text
    assert "100 tokens/s" in text


def test_no_rows_yet_is_said_in_words() -> None:
    """Before the first token the screen says so, and why the sidecar is not ready."""
    empty = LIVE._replace(ready=False, reasons=("no frame yet",), taps=(), layers=())
    text = shown(empty)
    assert "tap: not heard yet   not ready: no frame yet" in text
    assert "no token rows measured yet" in text


def test_a_dead_tap_shows_its_reason() -> None:
    """The state of the tap and the full reason stand above the numbers."""
    taps = (TapReading("engine-dp0-pp0-tp0", "dead", "no layer moved: clear the cache"),)
    text = shown(LIVE._replace(ready=False, taps=taps))
    assert "tap: dead (engine-dp0-pp0-tp0)" in text
    assert "no layer moved: clear the cache" in text


def test_the_canary_is_shown_with_its_sentence_and_since_when() -> None:
    """And under it what was done to the model; without a canary, no word of one."""
    page = CanaryReading("page", "the executed model changed: from layer 2 on", 1_790_000_000.0)
    text = shown(LIVE._replace(canary=page), note="tampered with layer 2")
    since = time.strftime("%H:%M:%S", time.localtime(1_790_000_000))
    assert f"canary: page since {since}   the executed model changed: from layer 2 on" in text
    assert text.index("tampered with layer 2") > text.index("canary: page")
    quiet = shown(LIVE._replace(canary=CanaryReading("armed", "as they were learnt")))
    assert "canary: armed   as they were learnt" in quiet
    assert "canary" not in shown(LIVE)


def test_elsewhere_than_on_a_terminal_a_table_is_printed_every_five_seconds() -> None:
    """Ten readings a second apart give two tables, and no control characters."""
    text = shown(*[LIVE] * 10, step=1.0)
    assert text.count("tap: live") == 2
    assert "\x1b" not in text


def test_on_a_terminal_each_reading_is_redrawn() -> None:
    """Every reading replaces the one before it."""
    assert shown(*[LIVE] * 10, terminal=True, step=1.0).count("tap: live") >= 10


def test_a_rate_needs_two_readings_of_one_life() -> None:
    """No rate at first, none across a restart or a gap, else tokens over seconds."""
    rate = TokenRate()
    given = [(0.0, 10.0), (2.0, 30.0), (3.0, 5.0), (4.0, None), (5.0, 9.0), (6.0, 10.0)]
    assert [rate.update(*each) for each in given] == [None, 10.0, None, None, None, 1.0]
