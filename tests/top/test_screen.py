"""What stands on the screen."""

import io
from typing import Any

import pytest
from rich.console import Console

from sidecar.top.readings import Choice, Reading, take
from sidecar.top.screen import Contact, Size, draw
from sidecar.top.view import View
from tests.top.documents import NOW, URL, Sidecar, answers, channel

WIDE = Size(140)


def reading(told: dict[str, Any] | None = None) -> Reading:
    return take(Sidecar(told), Choice())


def lines(
    shown: Reading | None,
    *,
    contact: Contact | None = None,
    view: View | None = None,
    size: Size = WIDE,
) -> list[str]:
    """The screen as text."""
    console = Console(file=io.StringIO(), width=size.width, color_system=None)
    console.print(draw(shown, contact or Contact(URL), view or View(), size, NOW + 7.0))
    return str(console.file.getvalue()).splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("level", ["ok", "collecting", "ticket", "page", "blind"])
def test_the_sentence_comes_first(level: str) -> None:
    """With its level as a word, for colours are not for everyone."""
    assert f"{level.upper()}  This is how things stand." in lines(reading(answers(level=level)))[1]


def test_a_page_says_in_which_layer_and_why() -> None:
    """The causes stand before the reason; an armed channel tells its reason alone."""
    told = answers()
    told["/v1/drift"]["channels"] = [channel("canary", "page"), channel("traffic", "armed")]
    canary, traffic = [line for line in lines(reading(told)) if "a reason" in line]

    assert "page" in canary
    assert "layer 3 residual_rms 1.8x; a reason" in canary
    assert "layer 3" not in traffic


def test_a_missing_number_is_a_dash() -> None:
    """And a gap in a picture is a space."""
    [waiting] = [line for line in lines(reading()) if line.startswith("waiting")]
    assert waiting.split() == ["waiting", "-", "requests"]


def test_layers_furthest_from_usual_may_come_first() -> None:
    """By depth at first, else by the size of z."""
    by_depth = lines(reading())
    by_deviation = lines(reading(), view=View(by_deviation=True))
    ids = [
        [line.split()[0] for line in text if line[:1].isdigit()]
        for text in (by_depth, by_deviation)
    ]

    assert ids == [["0", "1", "2", "3"], ["3", "2", "1", "0"]]


def test_a_picture_goes_from_the_least_to_the_greatest() -> None:
    """In letters of ASCII where the terminal knows no other."""
    plain = lines(reading(), size=Size(140, None, is_plain=True))
    [row] = [line for line in plain if line.startswith("0 ")]
    picture = row.split()[3]

    assert (picture[0], picture[-1], list(picture)) == ("0", "7", sorted(picture))
    assert "".join(plain).isascii()


def test_no_answer_is_said_with_why_and_since_when() -> None:
    """What was shown before stays, and is called what it is."""
    contact = Contact(URL, "Connection refused", NOW - 5.0)
    before, after = lines(None, contact=contact), lines(reading(), contact=contact)

    assert before[0] == f"NO ANSWER from {URL} for 12 s: Connection refused"
    assert after[0].startswith(before[0] + "; shown is ")
    assert any("residual_rms" in line for line in after)


def test_rows_that_stopped_are_said() -> None:
    """Answers come, and nothing is measured: the picture says for how long."""
    told = answers()
    for column in told["/v1/timeline"]["columns"][-10:]:
        column |= {"rows": 0, "values": None, "z": None}

    assert any("no token row for 10 s" in line for line in lines(reading(told)))
    told["/v1/timeline"]["columns"] = []
    assert "no token row was measured in the last minutes" in lines(reading(told))


def test_a_paused_screen_says_so() -> None:
    """Else one would wait for it."""
    assert lines(reading(), view=View(is_paused=True))[0].endswith("PAUSED")


@pytest.mark.parametrize("height", [24, 40, 60, 120])
@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("num_layers", [4, 80])
def test_it_fits_the_terminal(height: int, width: int, num_layers: int) -> None:
    """Layers give way, the keys at the end never do; scrolled to the end, the last is there."""
    told = answers(num_layers)
    names = ("canary", "traffic", "tail", "integrity")
    told["/v1/drift"]["channels"] = [channel(name, "armed") for name in names]
    lines_told = told["/v1/timeline/lines"]["lines"]
    lines_told |= {f"line {n}": lines_told["tokens"] for n in range(10)}
    shown = reading(told)
    size = Size(width, height)

    text = lines(shown, size=size)
    assert len(text) <= height
    assert text[-1].startswith("q quit")
    scrolled = lines(shown, size=size, view=View(first=num_layers - 1))
    assert any(line.split()[:1] == [str(num_layers - 1)] for line in scrolled)
