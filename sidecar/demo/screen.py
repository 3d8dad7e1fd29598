"""The demo's screen: a table of layers above a line of ordinary stats.

Guarantee: on a terminal one table is redrawn in place, elsewhere a plain one is printed every
`SECONDS_BETWEEN_TABLES`; both show every layer that the sidecar knows, and say in words why a
number is missing.
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sidecar.demo.readings import CanaryReading, LayerReading, Reading
from sidecar.demo.traffic import Tally

SECONDS_BETWEEN_TABLES: Final = 5.0
BAR_WIDTH: Final = 20
_UNKNOWN: Final = "-"
_STYLES: Final = {"armed": "green", "ticket": "yellow", "page": "bold red"}


class Screen:
    """Shows readings; a context manager, because a live table must give the terminal back."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._rate = TokenRate()
        self._next = clock()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def show(
        self,
        reading: Reading,
        tally: Tally,
        seconds: float,
        *,
        note: str = "",
        last: bool = False,
    ) -> None:
        """Show a reading taken `seconds` after traffic began, and a note; the last one always."""
        rate = self._rate.update(seconds, reading.serving.generated_tokens)
        drawn = draw(reading, tally, seconds, rate, _bar_mark(self._console), note)
        if self._live:
            self._live.update(drawn, refresh=True)
        elif last or self._clock() >= self._next:
            self._next = self._clock() + SECONDS_BETWEEN_TABLES
            self._console.print(drawn)


class TokenRate:
    """Generated tokens per second between one reading and the next."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None

    def update(self, seconds: float, tokens: float | None) -> float | None:
        """Rate since the last reading; None at the first one, and after a restart."""
        last, self._last = self._last, None if tokens is None else (seconds, tokens)
        if last is None or tokens is None or seconds <= last[0] or tokens < last[1]:
            return None
        return (tokens - last[1]) / (seconds - last[0])


def draw(
    reading: Reading,
    tally: Tally,
    seconds: float,
    tokens_per_second: float | None,
    mark: str,
    note: str = "",
) -> RenderableType:
    """The whole screen for one reading; bars are made of `mark`."""
    serving = reading.serving
    stats = (
        f"TTFT {_milliseconds(serving.time_to_first_token)}   "
        f"TPOT {_milliseconds(serving.time_per_output_token)}   "
        f"{_count(tokens_per_second)} tokens/s   "
        f"running {_count(serving.running)}   waiting {_count(serving.waiting)}"
    )
    requests = f"{seconds:.0f} s   requests: {tally.finished} served, {tally.failed} failed"
    failures = ", ".join(f"{cause} x{number}" for cause, number in tally.failures.items())
    return Group(
        Text(_tap(reading), style="green" if reading.ready else "yellow"),
        _layers(reading.layers, mark),
        Text(stats),
        Text(f"{requests} ({failures})" if failures else requests),
        *([_canary(reading.canary)] if reading.canary else []),
        *([Text(note)] if note else []),
    )


def _canary(canary: CanaryReading) -> Text:
    since = ""
    if canary.since is not None:
        since = f" since {time.strftime('%H:%M:%S', time.localtime(canary.since))}"
    text = f"canary: {canary.state}{since}   {canary.reason}"
    return Text(text, style=_STYLES.get(canary.state, ""))


def _tap(reading: Reading) -> str:
    taps = ", ".join(f"{tap.state} ({tap.source})" for tap in reading.taps) or "not heard yet"
    why = [tap.reason for tap in reading.taps if tap.reason] + list(reading.reasons)
    return f"tap: {taps}" + (f"   not ready: {'; '.join(why)}" if why and not reading.ready else "")


def _layers(layers: tuple[LayerReading, ...], mark: str) -> RenderableType:
    if not layers:
        return Text("no token rows measured yet")
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("layer", "RMS\nprefill", "RMS\ndecode"):
        table.add_column(name, justify="right")
    table.add_column("", no_wrap=True)
    for name in ("peak/RMS\ndecode", "influence\nprefill", "influence\ndecode"):
        table.add_column(name, justify="right")
    largest = max((layer.decode_rms or 0.0 for layer in layers), default=0.0)
    for layer in layers:
        table.add_row(
            str(layer.layer),
            _figures(layer.prefill_rms),
            _figures(layer.decode_rms),
            _bar(layer.decode_rms, largest, mark),
            _figures(layer.decode_peak),
            _figures(layer.prefill_influence),
            _figures(layer.decode_influence),
        )
    return table


def _bar(value: float | None, largest: float, mark: str) -> str:
    filled = round(BAR_WIDTH * value / largest) if value and largest > 0 else 0
    return (mark * filled).ljust(BAR_WIDTH)


def _bar_mark(console: Console) -> str:
    return "█" if console.encoding.lower().startswith("utf") else "#"


def _figures(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:#.3g}".rstrip(".")


def _milliseconds(seconds: float | None) -> str:
    return _UNKNOWN if seconds is None else f"{seconds * 1e3:.0f} ms"


def _count(number: float | None) -> str:
    return _UNKNOWN if number is None else f"{number:.0f}"
