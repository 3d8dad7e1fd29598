"""What a timeline can show: every signal that has layers, under one id, with unit and meaning.

Guarantee: derived from `wire.signals`, so that a new signal with layers is offered by itself.
"""

from typing import Final, NamedTuple

from sidecar.fold.timeline import RESIDUAL
from sidecar.wire.signals import FAMILY_OF, GROUPS, LAYER_SIGNALS, SUMMARY_OF, Metric


class Choice(NamedTuple):
    """One signal that a timeline can show.

    id: how it is asked for. group, signal: where `fold.timeline` has it.
    has_positions: whether first positions and the rest are told apart.
    """

    id: str
    group: str
    signal: str
    formula: str
    metric: Metric
    has_positions: bool

    def kind(self, phase: str, position: str) -> tuple[str, str]:
        """The population, as `fold.timeline` names it."""
        return (phase, position if self.has_positions else "")


def _choices() -> dict[str, Choice]:
    made = [
        Choice(each.id, RESIDUAL, each.id, each.formula, SUMMARY_OF[each.id], has_positions=True)
        for each in LAYER_SIGNALS
    ]
    for group in GROUPS.values():
        for signal in group.signals:
            metric = FAMILY_OF.get((group.id, signal.id))
            if metric is not None and group.axes[:2] == ("layer", "phase"):
                name = f"{group.id}_{signal.id}"
                made.append(
                    Choice(name, group.id, signal.id, signal.formula, metric, has_positions=False)
                )
    return {each.id: each for each in made}


CHOICES: Final = _choices()
