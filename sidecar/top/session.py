"""One run of `sidecar top`: a thread asks once a second, the terminal shows the last answer.

Guarantee: a sidecar that is slow or gone never keeps a key waiting; what was shown stays, with the
words that nothing new comes, why, and since when.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

from rich.console import Console
from rich.live import Live

from sidecar.top.keys import Keys
from sidecar.top.readings import OK, Ask, Choice, Reading, take
from sidecar.top.screen import Contact, Size, draw
from sidecar.top.view import View

SECONDS_BETWEEN_READINGS: Final = 1.0
_SECONDS_FOR_KEYS: Final = 0.25


class Watcher:
    """Asks again and again, in a thread of its own.

    choice: read before each turn. clock: Unix seconds.
    """

    def __init__(
        self,
        ask: Ask,
        url: str,
        choice: Callable[[], Choice],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ask = ask
        self._choice = choice
        self._clock = clock
        self._wake = threading.Event()
        self.contact = Contact(url)
        self.reading: Reading | None = None

    def start(self) -> None:
        """Begin; the thread ends with the process."""
        threading.Thread(target=self._run, daemon=True).start()

    def hurry(self) -> None:
        """Ask again now: something else is wanted."""
        self._wake.set()

    def turn(self) -> None:
        """Ask once."""
        try:
            self.reading = take(self._ask, self._choice())
        except OSError as error:
            since = self.contact.since if self.contact.failed else self._clock()
            self.contact = self.contact._replace(failed=str(error), since=since)
        else:
            self.contact = Contact(self.contact.url)

    def _run(self) -> None:
        while True:
            self.turn()
            self._wake.wait(SECONDS_BETWEEN_READINGS)
            self._wake.clear()


def watch(ask: Ask, url: str, console: Console) -> int:
    """Show until the user quits; 0."""
    view = View()
    watcher = Watcher(ask, url, lambda: view.choice)
    watcher.start()
    shown = watcher.reading
    with Keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while not view.is_over:
            if not view.is_paused:
                shown = watcher.reading
            size = Size(console.width, console.height, _is_plain(console))
            live.update(draw(shown, watcher.contact, view, size, time.time()), refresh=True)
            for key in keys.pressed(_SECONDS_FOR_KEYS):
                signals = () if shown is None else shown.signals
                view.press(key, signals, 0 if shown is None else len(shown.layers.rows))
                watcher.hurry()
    return 0


def once(ask: Ask, url: str, console: Console) -> int:
    """Print one reading: 0 when nobody needs to do anything, else 1. Raises OSError."""
    reading = take(ask, Choice())
    size = Size(console.width, None, _is_plain(console))
    console.print(draw(reading, Contact(url), View(), size, time.time()))
    return 0 if reading.level in OK else 1


def _is_plain(console: Console) -> bool:
    return not console.encoding.lower().startswith("utf")
