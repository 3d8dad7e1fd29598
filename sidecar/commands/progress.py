"""How far long work is: a bar on a terminal, a line now and then elsewhere; always on stderr.

Guarantee: what a command prints on stdout is the same with and without it.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TextIO

EVERY_SECONDS: Final = 10.0


@contextmanager
def progress(
    title: str,
    total: int,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[int], None]]:
    """A function to be told how much more is done, of `total`."""
    stream = stream or sys.stderr
    bar = _bar if stream.isatty() and _has_rich() else _lines
    with bar(title, total, stream, clock) as advance:
        yield advance


def _has_rich() -> bool:
    try:
        import rich.progress  # noqa: F401 - asked for only
    except ModuleNotFoundError:
        return False
    return True


@contextmanager
def _bar(
    title: str, total: int, stream: TextIO, _: Callable[[], float]
) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=stream)) as shown:
        task = shown.add_task(title, total=total)
        yield lambda done: shown.advance(task, done)


@contextmanager
def _lines(
    title: str, total: int, stream: TextIO, clock: Callable[[], float]
) -> Iterator[Callable[[int], None]]:
    done, told = 0, clock()

    def advance(more: int) -> None:
        nonlocal done, told
        done += more
        if clock() - told >= EVERY_SECONDS:
            told = clock()
            stream.write(f"{title}: {done} of {total} ({done / max(total, 1):.0%})\n")
            stream.flush()

    yield advance
    stream.write(f"{title}: {done} of {total}, done\n")
