"""What to measure at which step: the operator's wishes and the budget's, made one.

Host-side decisions only: nothing here changes the compiled graph. Orders are replaced whole by the
pump's thread and read by the step path.
"""

from typing import NamedTuple

from sidecar.tap.slab import Selection


class Wish(NamedTuple):
    """What the operator asked to have scanned: the next so many requests; each wish is one `id`."""

    id: str = ""
    num_requests: int = 0


class Orders(NamedTuple):
    """In force until replaced.

    is_on: False is the kill switch: rows are counted as shed, nothing is measured.
    steps_every: every how many steps anything is measured.
    selection: tapped layers that are added up; None for all.
    attention_every: each attention layer is sampled once in so many steps; 0 for never.
    attention_requests: requests sampled in a step at most, forced ones first.
    confidence_every: every how many steps generated tokens are measured; 0 for never.
    shed_level: how far the budget has cut; 0 for not at all.
    revision: of the operator's control that this obeys; "" for none.
    scan: the wish to obey, if it has not been; None while no scan may begin.
    """

    is_on: bool = True
    steps_every: int = 1
    selection: Selection | None = None
    attention_every: int = 16
    attention_requests: int = 8
    confidence_every: int = 1
    shed_level: int = 0
    revision: str = ""
    scan: Wish | None = None

    def measures(self, step: int) -> bool:
        """Whether this step is measured at all."""
        return self.is_on and step % self.steps_every == 0

    def samples_confidence(self, step: int) -> bool:
        """Whether the tokens of this step are measured."""
        every = self.confidence_every
        return self.measures(step) and every > 0 and step % every == 0
