"""A campaign against one door: inputs until the time or their number is over, or it breaks."""

import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisWarning

from bench.fuzz.doors import Door

_CHUNK: Final = 500
_NUM_PLACES: Final = 4


class Broken(NamedTuple):
    """What broke a door, in its shortest form found, and how."""

    data: bytes
    error: str


class Tally(NamedTuple):
    """What became of the inputs. broken: None where the door held."""

    door: str
    num_inputs: int
    outcomes: Mapping[str, int]
    seconds: float
    broken: Broken | None


def campaign(door: Door, seconds: float, max_inputs: int = 10**12, first_seed: int = 0) -> Tally:
    """Try a door for so long, or with so many inputs; the same seed draws the same ones."""
    began, outcomes, chunk, broken = time.monotonic(), Counter[str](), first_seed, None
    while broken is None and _is_left(outcomes, began, seconds, max_inputs):
        num = min(_CHUNK, max_inputs - sum(outcomes.values()))
        broken = _try(door, num, chunk, outcomes)
        chunk += 1
    elapsed = time.monotonic() - began
    return Tally(door.name, sum(outcomes.values()), dict(outcomes), elapsed, broken)


def _is_left(outcomes: Counter[str], began: float, seconds: float, max_inputs: int) -> bool:
    return sum(outcomes.values()) < max_inputs and time.monotonic() - began < seconds


def _try(door: Door, num: int, chunk: int, outcomes: Counter[str]) -> Broken | None:
    last = b""

    def take(data: bytes) -> None:
        nonlocal last
        last = data
        outcomes[door.take(data)] += 1

    try:
        _driven(door, num, chunk)(take)
    except Exception as error:  # whatever it is, it should not have come out
        return Broken(last, told(error))
    return None


def told(error: Exception) -> str:
    """The error and where it came from; without the input, which may be long."""
    places = [
        each
        for each in traceback.extract_tb(error.__traceback__)
        if "/site-packages/" not in each.filename
    ]
    where = ", ".join(f"{Path(each.filename).name}:{each.lineno}" for each in places[-_NUM_PLACES:])
    return f"{type(error).__name__}: {str(error)[:300]} ({where})"


def _driven(door: Door, num: int, chunk: int) -> Callable[[Callable[[bytes], None]], None]:
    def drive(take: Callable[[bytes], None]) -> None:
        chosen = settings(
            max_examples=num,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HypothesisWarning)  # of inputs too long to print
            seed(chunk)(chosen(given(door.drawn)(take)))()

    return drive
