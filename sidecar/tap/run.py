"""A run: successive steps of a steady batch, which are reduced as if they were one.

While the same requests get one token each, step after step, the rows of a request belong to one
group, as the rows of a prompt do. Any other step ends the run: an arrival, an end, a change of what
is to be measured; and so does time, so that nothing waits for long.
"""

from typing import Self

from sidecar.tap.aside import Place, most_steps
from sidecar.tap.rows import Batch, Plan
from sidecar.tap.slab import Selection


class Run:
    """What the steps of a run have in common, and how many there are.

    place: of the last of them, in what was put aside, once there is one.
    passed: Unix times of all, ns.
    failed: sites whose rows could not be put aside.
    """

    def __init__(self, plan: Plan, selection: Selection | None, most: int) -> None:
        self.selection = selection
        self.place = Place(len(plan.groups), most, 0)
        self.passed: list[int] = []
        self.failed: set[str] = set()
        self._plan = plan
        self._batch: Batch | None = None

    @classmethod
    def begin(cls, plan: Plan, selection: Selection | None, limit: int) -> Self | None:
        """None when there is no room for two steps of so many rows, or no two are allowed."""
        most = min(limit, most_steps(len(plan.groups)))
        return cls(plan, selection, most) if most > 1 else None

    def takes(self, plan: Plan, selection: Selection | None) -> bool:
        """Whether the step of `plan`, which is one of a steady batch, continues this run."""
        # Plans of a steady batch share their arrays, step after step.
        return plan.groups is self._plan.groups and selection is self.selection

    @property
    def next_place(self) -> Place:
        """Where the rows of the next step are to be put."""
        return self.place._replace(num_steps=self.place.num_steps + 1)

    def add(self, batch: Batch, plan: Plan, t_ns: int) -> None:
        """Count the next step, whose rows were put aside."""
        self.place = self.next_place
        self._plan, self._batch = plan, batch
        self.passed.append(t_ns)

    def is_over(self, hold_ns: int) -> bool:
        """Whether there is no room for another step, or the first has waited long enough."""
        return (
            self.place.num_steps == self.place.most or self.passed[-1] - self.passed[0] >= hold_ns
        )

    def whole(self) -> tuple[Batch, Plan]:
        """The last batch, and all steps as one plan. Raises LookupError when there is no step."""
        if self._batch is None:
            raise LookupError("the run has no step")
        return self._batch, self._plan.repeated(self.place.num_steps)
