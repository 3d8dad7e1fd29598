"""The screen: the sentence first, then what it rests on.

Guarantees: it fits a terminal of 24 lines or more while four channels and two sources are told:
layers are left out first, and counted, then the pictures of the server's lines; a missing number
is a dash, never 0; colour only repeats what a word or number says.
"""

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sidecar.top.readings import Channel, Heard, Layer, Layers, Line, Numbers, Reading
from sidecar.top.view import KEYS, View

UNKNOWN: Final = "-"
QUIET_SECONDS: Final = 5.0
FAR: Final = 3.0  # |z| that is worth a colour; of normal numbers one of 370
_WIDEST: Final = 60  # columns of a picture: a minute
_BESIDE: Final = 36  # columns that stand beside a picture
_LEAST_LAYERS: Final = 1
_ENOUGH_LAYERS: Final = 6  # with fewer, the pictures of the server's lines give way
_LINES_OF_A_TITLE: Final = 3
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_PLAIN: Final = "01234567"
_STYLES: Final = {
    "ok": "green", "armed": "green", "live": "green", "collecting": "cyan", "ticket": "yellow",
    "page": "bold red", "blind": "bold magenta",
}  # fmt: skip


class Size(NamedTuple):
    """Of a terminal; height None prints everything. is_plain: it knows ASCII alone."""

    width: int
    height: int | None = None
    is_plain: bool = False


class Contact(NamedTuple):
    """How the last attempt to ask went.

    url: who was asked. failed: why there was no answer, "" where there was one.
    since: Unix seconds since which there has been none.
    """

    url: str
    failed: str = ""
    since: float | None = None


def draw(
    reading: Reading | None, contact: Contact, view: View, size: Size, now: float
) -> RenderableType:
    """The whole screen; `reading` is the last one there was. now: Unix seconds, of this clock."""
    top: list[RenderableType] = [_contact(reading, contact, view, now)]
    keys = Text("  ".join(f"{key} {what}" for key, what in KEYS), style="dim")
    if reading is None:
        return Group(*top, keys)
    sentence = Text(f"{reading.level.upper()}  {reading.sentence}", _STYLES.get(reading.level, ""))
    top += [sentence, Text(), _channels(reading.channels), Text()]
    ends = [_sources(reading.sources), keys]
    for lines in (_lines(reading.lines, size), _words(reading.lines)):
        bottom = [Text(), lines, Text(), *ends]
        room = _room([*top, *bottom], size)
        if room is None or room >= _ENOUGH_LAYERS:
            break
    shown = None if room is None else max(_LEAST_LAYERS, room)
    return Group(*top, *_layers(reading.layers, view, size, shown), *bottom)


def _room(others: Sequence[RenderableType], size: Size) -> int | None:
    """Layers that there is room for beside everything else; None for any number."""
    if size.height is None:
        return None
    return size.height - sum(_height(each, size.width) for each in others) - _LINES_OF_A_TITLE


def _contact(reading: Reading | None, contact: Contact, view: View, now: float) -> Text:
    if contact.failed:
        since = "" if contact.since is None else f" for {now - contact.since:.0f} s"
        shown = "" if reading is None else f"; shown is {_clock(reading.now)}"
        text = f"NO ANSWER from {contact.url}{since}: {contact.failed}{shown}"
        return Text(text, style="bold red")
    if reading is None:
        return Text(f"asking {contact.url} ...")
    paused = "  PAUSED" if view.is_paused else ""
    return Text(f"{contact.url}  {_clock(reading.now)}{paused}", style="bold")


def _channels(channels: Sequence[Channel]) -> RenderableType:
    if not channels:
        return Text("drift: no channel is configured")
    table = _table("channel", "state", "of limit", "since")
    table.add_column("why", overflow="ellipsis", no_wrap=True, ratio=1)
    table.expand = True
    for each in channels:
        why = f"{', '.join(each.causes)}; {each.reason}" if _is_odd(each) else each.reason
        since = UNKNOWN if each.since is None else _clock(each.since)
        state = Text(each.state, style=_STYLES.get(each.state, ""))
        table.add_row(each.name, state, _figure(each.level), since, Text(why))
    return table


def _is_odd(channel: Channel) -> bool:
    return channel.state in {"ticket", "page"} and bool(channel.causes)


def _layers(layers: Layers, view: View, size: Size, room: int | None) -> list[RenderableType]:
    unit = f" ({layers.unit})" if layers.unit else ""
    against = {"none": "nothing to compare with yet"}.get(
        layers.reference, f"z against {layers.reference}"
    )
    title = f"{layers.choice.signal}{unit}, {layers.choice.phase}; {against}"
    if layers.quiet is None:
        return [Text(title, style="bold"), Text("no token row was measured in the last minutes")]
    if layers.quiet > QUIET_SECONDS:
        title += f"; no token row for {layers.quiet:.0f} s"
    rows = sorted(layers.rows, key=_deviation) if view.by_deviation else list(layers.rows)
    first = min(view.first, max(0, len(rows) - (room or len(rows))))
    shown = rows[first:] if room is None else rows[first : first + room]
    if len(shown) < len(rows):
        title += f"; {len(shown)} of {len(rows)} layers"
    table = _table("layer", "now", "z")
    table.add_column("last minute, left to right", no_wrap=True)
    for row in shown:
        value, z = row.latest
        far = z is not None and abs(z) > FAR
        number = Text(UNKNOWN if z is None else f"{z:+.1f}", style="bold red" if far else "")
        table.add_row(str(row.layer), _figure(value), number, _picture(row.values, size))
    return [Text(title, style="bold"), table]


def _deviation(row: Layer) -> float:
    _, z = row.latest
    return 0.0 if z is None else -abs(z)


def _lines(lines: Sequence[Line], size: Size) -> RenderableType:
    if not lines:
        return Text("serving: nothing was told yet")
    table = _table("server", "now")
    table.add_column("last minute, left to right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for line in lines:
        name, latest = line.name.replace("_", " "), _figure(_latest(line.values))
        table.add_row(name, latest, _picture(line.values, size), line.unit)
    return table


def _words(lines: Sequence[Line]) -> Text:
    """The same without pictures."""
    told = (f"{line.name.replace('_', ' ')} {_figure(_latest(line.values))}" for line in lines)
    return Text(", ".join(told))


def _sources(sources: Sequence[Heard]) -> RenderableType:
    if not sources:
        return Text("sources: none was heard yet", style=_STYLES["blind"])
    table = _table("source", "tap", "heard")
    table.add_column("", overflow="ellipsis", no_wrap=True, ratio=1)
    table.expand = True
    for each in sources:
        age = UNKNOWN if each.age is None else f"{each.age:.0f} s ago"
        state = Text(each.state, style=_STYLES.get(each.state, "yellow"))
        table.add_row(each.name, state, age, Text(each.why))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _height(drawn: RenderableType, width: int) -> int:
    """Lines that it takes; text wraps, rows of tables do not."""
    if isinstance(drawn, Table):
        return drawn.row_count + 1
    return max(1, -(-len(str(drawn)) // width))


def _latest(values: Numbers) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def _picture(values: Numbers, size: Size) -> str:
    """The last seconds between their least and their greatest; a gap is a space."""
    marks = _PLAIN if size.is_plain else _BLOCKS
    shown = values[-max(1, min(_WIDEST, size.width - _BESIDE)) :]
    known = [value for value in shown if value is not None]
    least, span = (min(known), max(known) - min(known)) if known else (0.0, 0.0)
    return "".join(" " if v is None else _mark(v, least, span, marks) for v in shown)


def _mark(value: float, least: float, span: float, marks: str) -> str:
    share = (value - least) / span if span > 0 else 0.5
    return marks[min(len(marks) - 1, int(share * len(marks)))]


def _figure(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3g}"


def _clock(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else time.strftime("%H:%M:%S UTC", time.gmtime(seconds))
