"""Progress: lines where nobody watches, a bar where somebody does, always beside the result."""

import io

from sidecar.commands.progress import EVERY_SECONDS, progress


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_now_and_then_where_nobody_watches() -> None:
    """Not one per step; the last one says that it is done."""
    stream, clock = io.StringIO(), Clock()
    with progress("fit", 200, stream, clock) as advance:
        for _ in range(100):
            clock.seconds += EVERY_SECONDS / 40
            advance(2)

    lines = stream.getvalue().splitlines()
    assert lines == [
        *("fit: 80 of 200 (40%)", "fit: 160 of 200 (80%)"),
        "fit: 200 of 200, done",
    ]


def test_a_bar_on_a_terminal() -> None:
    """With how many are done."""
    stream = Terminal()
    with progress("fit", 200, stream) as advance:
        advance(200)

    assert "fit" in stream.getvalue()
    assert "200/200" in stream.getvalue()


def test_nothing_to_do_is_no_error() -> None:
    """A total of 0 divides nothing."""
    stream, clock = io.StringIO(), Clock()
    with progress("fit", 0, stream, clock) as advance:
        clock.seconds += 2 * EVERY_SECONDS
        advance(0)

    assert stream.getvalue() == "fit: 0 of 0 (0%)\nfit: 0 of 0, done\n"
