"""How rare a false alarm has to be, and how much reference that takes; in windows of 5 minutes.

The default is DRIFT.md's budget: a false page of traffic in 3 months, of each other channel in 12
months. Rates are per deployment: where each of N replicas runs its own detectors, every run length
is multiplied by N (`of_replicas`).
"""

from typing import Final, NamedTuple, Self

MONTH: Final = 8640  # windows: 30 days
WEEK: Final = 2016


class Policy(NamedTuple):
    """Run lengths are mean numbers of windows between two false alarms.

    run_length: of pages of the traffic channel.
    contrast_run_length: of pages of the tail, canary and replica channels, each.
    ticket_run_length: of tickets.
    min_windows: of a baseline that may page. min_ticket_windows: of one that may raise tickets.
    label: said with every verdict, where this is not the default.
    """

    run_length: float = 3 * MONTH
    contrast_run_length: float = 12 * MONTH
    ticket_run_length: float = WEEK
    min_windows: int = WEEK
    min_ticket_windows: int = 864
    label: str = ""

    @classmethod
    def demo(cls) -> Self:
        """Armed by 40 windows, with no rate of false pages that anyone could state."""
        return cls(WEEK, WEEK, 288, 40, 20, "demo preset, not a stated rate")

    def of_replicas(self, num_replicas: int) -> Self:
        """The same rates for a deployment of so many replicas, each with its own detectors."""
        return self._replace(
            run_length=self.run_length * num_replicas,
            contrast_run_length=self.contrast_run_length * num_replicas,
            ticket_run_length=self.ticket_run_length * num_replicas,
        )

    def said(self, reason: str) -> str:
        """`reason`, with the label where there is one."""
        return f"{reason} ({self.label})" if self.label else reason
