"""The sidecar inside the test's own process: what the frames say, before anything is published."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sidecar.fold.reducer import Limits, Reducer
from sidecar.fold.requests import Measured
from sidecar.publish.answers import requests_answer
from sidecar.publish.intake import Intake
from sidecar.wire.channel import Receiver
from sidecar.wire.frame import Coverage
from tests.e2e.harness import wait_for

_LIMITS = Limits(stale_ns=30 * 10**9, max_age_ns=10 * 10**9)


class Listener:
    """Reads the frames of every source on a socket, and folds them as the sidecar does."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def requests(self) -> list[dict[str, Any]]:
        """Records of recent finished requests, with their adapter and preemptions."""
        return [_record(each) for each in self._intake.requests(2000)]

    def record(self, completion_id: str, child: int | None = None) -> dict[str, Any]:
        """The record of a request by the id that its client saw; of a child where it had some."""
        prefix = f"{completion_id}-0-" if child is None else f"{child}_{completion_id}-0-"

        def find() -> Any:
            return next((r for r in self.requests() if r["id"].startswith(prefix)), None)

        return wait_for(find, f"a record of {prefix}", 10)

    def coverage(self, source: str = "engine-dp0-pp0-tp0") -> Coverage | None:
        """Running totals of one source, once it has told any."""
        for view in self._intake.get().sources:
            if view.name == source and view.totals is not None:
                return view.totals.coverage
        return None


@contextmanager
def listening(socket: Path) -> Iterator[Listener]:
    """Own `socket` in the sidecar's place."""
    intake = Intake(Receiver(socket), Reducer(_LIMITS))
    intake.start()
    try:
        yield Listener(intake)
    finally:
        intake.stop()


def _record(measured: Measured) -> dict[str, Any]:
    [answer] = requests_answer([measured]).requests
    request = measured.request
    told = {"adapter": request.adapter, "preemptions": request.preemptions}
    return answer.model_dump(mode="json") | told
