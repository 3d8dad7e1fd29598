"""How one replica stands among the others: its evidence so far, and whether it paged.

Guarantee: memory is four arrays [2, L, p], and at most `MAX_CAUSES` causes.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import UNREADABLE, StateError
from sidecar.fold.drift import exported
from sidecar.fold.drift.evidence import BOTH, LAMBDAS, Evidence
from sidecar.fold.drift.odds import Odds
from sidecar.fold.drift.schema import Stream
from sidecar.fold.drift.verdict import MAX_CAUSES, Cause, Side, worst_causes

Floats = NDArray[np.float64]

SIDES: Final[tuple[Side, Side]] = ("high", "low")
_KIND: Final = "standing"
_VERSION: Final = 1


class Standing:
    """One replica.

    odds: what its own scores add to what the others know of chance.
    evidence: that it differs; its run length follows the number of replicas.
    heard_ns: end of the last slot that it was in; 0 for none yet.
    num_judged: windows in which it was compared.
    paged_ns: end of the window that paged; None when none did. causes: what brought the page.
    """

    def __init__(self, num_streams: int) -> None:
        self.odds = Odds(num_streams)
        self.evidence = Evidence((len(BOTH), len(LAMBDAS), num_streams), 1.0)
        self.heard_ns = 0
        self.num_judged = 0
        self.paged_ns: int | None = None
        self.causes: tuple[Cause, ...] = ()

    def update(self, log_e: Floats, start_ns: int, run_length: float) -> None:
        """Take the log e of the window that began at `start_ns`; the limit is `run_length`."""
        self.evidence.run_length = run_length
        self.evidence.update(log_e, start_ns)
        self.num_judged += 1

    def page(self, now_ns: int, causes: tuple[Cause, ...]) -> None:
        """It differs, said by the window that ended at `now_ns`; chance is not what it shows."""
        self.paged_ns, self.causes = now_ns, causes
        self.odds = Odds(len(self.odds.num))

    def zero(self) -> None:
        """Forget the evidence; what is known of chance stays."""
        self.paged_ns, self.causes = None, ()
        self.evidence.zero()

    def worst(self, streams: tuple[Stream, ...]) -> tuple[Cause, ...]:
        """The streams and sides with the most evidence, the largest first."""
        shares, onsets = self.evidence.shares(), self.evidence.onsets()
        largest = np.argsort(-shares, axis=None, kind="stable")[:MAX_CAUSES]
        places = [divmod(each, len(streams)) for each in largest.tolist()]
        return worst_causes(
            _cause(streams[j], SIDES[i], float(shares[i, j]), int(onsets[i, j]))
            for i, j in places
            if shares[i, j] > 0
        )

    def export(self) -> dict[str, Any]:
        """Plain values and bytes."""
        fields = {
            "odds": self.odds.export(),
            "evidence": self.evidence.export(),
            "run_length": self.evidence.run_length,
            "heard_ns": self.heard_ns,
            "num_judged": self.num_judged,
            "paged_ns": self.paged_ns,
            "causes": [list(cause) for cause in self.causes],
        }
        return exported.tagged(_KIND, _VERSION, fields)

    @classmethod
    def restored(cls, plain: object, num_streams: int) -> "Standing":
        """What `export()` told. Raises StateError when it is of something else."""
        made = cls(num_streams)
        held = exported.checked(plain, _KIND, _VERSION)
        made.odds = Odds.restored(held.get("odds"), num_streams)
        made.heard_ns = exported.number(held, "heard_ns")
        made.num_judged = exported.number(held, "num_judged")
        try:
            made.evidence.run_length = float(held["run_length"])
            made.paged_ns = None if held["paged_ns"] is None else int(held["paged_ns"])
            made.causes = tuple(Cause(*cause) for cause in held["causes"])
        except UNREADABLE as error:
            raise StateError(f"no state of a replica: {error!r}; delete the snapshot") from error
        made.evidence.restore(held.get("evidence"))
        return made


def _cause(stream: Stream, side: Side, share: float, since_ns: int) -> Cause:
    return Cause(stream.name, stream.layer, stream.signal, stream.phase, side, share, since_ns)
