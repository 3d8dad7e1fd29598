"""Questions to every route, drawn by schemathesis from /openapi.json, allowed and forbidden ones.

The same questions and the same checks as in tests/publish/api/test_fuzz.py, of which CI asks 20 a
route; here for as long as told.
"""

import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Final

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisWarning

from bench.fuzz.campaign import Broken, Tally, told
from sidecar.publish.app import create_api_app
from tests.publish.api.test_fuzz import MODES, WANTED, questions, state
from tests.publish.listening import listening

NAME: Final = "API"
_CHUNK: Final = 40


def campaign(seconds: float, first_seed: int = 0) -> Tally:
    """Ask all routes in turn, for so long."""
    began, outcomes, broken, turn = time.monotonic(), Counter[str](), None, first_seed
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        served = state(Path(folder))
        served.watch.start()
        try:
            with listening(create_api_app(served)) as url:
                schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
                while broken is None and time.monotonic() - began < seconds:
                    broken = _ask_all(schema, turn, outcomes)
                    turn += 1
        finally:
            served.watch.stop()
    elapsed = time.monotonic() - began
    return Tally(NAME, sum(outcomes.values()), dict(outcomes), elapsed, broken)


def _ask_all(schema: schemathesis.BaseSchema, turn: int, outcomes: Counter[str]) -> Broken | None:
    chosen = settings(
        max_examples=_CHUNK,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    for mode, method, path in questions():
        operation = schema[path][method]

        def ask(case: schemathesis.Case) -> None:
            reply = case.call_and_validate(checks=WANTED, timeout=120)
            outcomes[str(reply.status_code)] += 1

        cases = operation.as_strategy(generation_mode=MODES[mode])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", HypothesisWarning)
                seed(turn)(chosen(given(case=cases)(ask)))()
        except Exception as error:  # whatever it is, a route should not have caused it
            return Broken(f"{mode} {method} {path}".encode(), told(error))
    return None
