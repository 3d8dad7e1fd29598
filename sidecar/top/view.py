"""What the user has chosen to see, changed by one key at a time."""

from dataclasses import dataclass, field
from typing import Final

from sidecar.top.readings import Choice
from sidecar.wire.signals import Phase

KEYS: Final = (
    ("q", "quit"),
    ("p", "pause"),
    ("s", "signal"),
    ("f", "phase"),
    ("o", "order"),
    ("j k", "scroll"),
)
_STEPS: Final = {"j": 1, "k": -1, "down": 1, "up": -1, "page down": 10, "page up": -10}


@dataclass
class View:
    """choice: what is asked for. by_deviation: layers furthest from usual first, else by depth.

    first: how many layers are scrolled past. is_paused: nothing changes on the screen.
    """

    choice: Choice = field(default_factory=Choice)
    by_deviation: bool = False
    first: int = 0
    is_paused: bool = False
    is_over: bool = False

    def press(self, key: str, signals: tuple[str, ...] = (), num_layers: int = 0) -> None:
        """Do what `key` says; one that says nothing is passed over.

        signals: ids that can be chosen. num_layers: how far one can scroll.
        """
        if key in {"q", "escape"}:
            self.is_over = True
        elif key in {"p", " "}:
            self.is_paused = not self.is_paused
        elif key in {"s", "S"} and signals:
            self.choice = self.choice._replace(signal=self._next(signals, 1 if key == "s" else -1))
        elif key == "f":
            phases = tuple(Phase)
            after = phases[(phases.index(self.choice.phase) + 1) % len(phases)]
            self.choice = self.choice._replace(phase=after)
        elif key == "o":
            self.by_deviation = not self.by_deviation
            self.first = 0
        elif key in _STEPS:
            self.first = min(max(0, self.first + _STEPS[key]), max(0, num_layers - 1))

    def _next(self, signals: tuple[str, ...], step: int) -> str:
        if self.choice.signal not in signals:
            return signals[0]
        return signals[(signals.index(self.choice.signal) + step) % len(signals)]
