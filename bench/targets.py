"""All targets of speed, beside what was found: met, missed, unresolved, or not measured.

Guarantee: each target is told whether it was measured or not, so that none is met by being absent.
A target of ratios is as good as the worst of its workloads and batches.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from bench.arms import ON
from bench.capacity import ingest, memory, sender
from bench.ratios import MET, MISSED, UNRESOLVED, Ratio, verdict
from bench.report import Target, figure
from bench.shapes import LEAST_RATE, MOST_DEVICE_MEMORY, MOST_START, MOST_TOKEN_TIME

NOT_MEASURED: Final = "not measured"
_MOST_SCRAPE_MS: Final = 100.0
_WORST_FIRST: Final = (MISSED, UNRESOLVED, MET)
Result = Mapping[str, Any]


class Told(NamedTuple):
    """One line: what, its limit, what was found, and whether that is enough; in words."""

    what: str
    limit: str
    found: str
    verdict: str


class _Shape(NamedTuple):
    """A run of `bench.overhead` that has targets: its shape, what to call it, and where it ran."""

    shape: str
    name: str
    is_gpu: bool


class _Limit(NamedTuple):
    """A target of a file of figures, in words for when it was not measured."""

    what: str
    sign: str
    limit: float
    unit: str = ""

    def words(self, limit: float) -> str:
        """The limit with its sign and unit."""
        return f"{self.sign} {_with_unit(limit, self.unit)}"


SHAPES: Final[Mapping[str, _Shape]] = {
    "overhead_cpu": _Shape("0.5b", "0.5B shape, CPU", is_gpu=False),
    "overhead_quick_cpu": _Shape("quick", "tiny shape, CPU", is_gpu=False),
    "overhead_gpu_0.6b": _Shape("0.6b", "0.6B shape, GPU", is_gpu=True),
    "overhead_gpu_8b": _Shape("8b", "8B shape, GPU", is_gpu=True),
    "overhead_gpu_70b": _Shape("70b-layers", "80 layers, GPU", is_gpu=True),
}
# In the order in which each file has its targets.
LIMITS: Final[Mapping[str, tuple[_Limit, ...]]] = {
    "capacity_ingest": (
        _Limit(ingest.PER_CPU, ">=", ingest.TARGET),
        _Limit(ingest.AT_PACE, "<=", 0),
    ),
    "capacity_sender": tuple(
        _Limit(f"p99 of a send, sidecar {each}", "<=", sender.LIMIT_US, "us")
        for each in ("up", "slow", "absent")
    ),
    "capacity_memory": (
        _Limit(
            "resident memory at some 50,000 series after 1,000,000 frames",
            "<=",
            memory.LIMIT_MB,
            "MB",
        ),
    ),
    "scrape_cpu": (_Limit("CPU of a scrape of some 50,000 series", "<=", _MOST_SCRAPE_MS, "ms"),),
}


def told(results: Mapping[str, Result]) -> Iterator[Told]:
    """Every target, whatever was measured; results: by the name of their file."""
    for name, shape in SHAPES.items():
        yield from _of_tokens(shape, results.get(name))
    for name, limits in LIMITS.items():
        result = results.get(name)
        if result is None:
            yield from (Told(e.what, e.words(e.limit), "", NOT_MEASURED) for e in limits)
            continue
        yield from (
            _measured(limit, found) for limit, found in zip(limits, _targets(result), strict=True)
        )


def _targets(result: Result) -> list[Result]:
    """As its bench stored them; that of scrapes stores none."""
    if "health" not in result:
        found: list[Result] = result["figures"]["targets"]
        return found
    health = result["health"]
    what = f"CPU of a scrape of {health['num_series']:,} series"
    return [Target.at_most(what, _MOST_SCRAPE_MS, health["scrape_cpu_ms"], "ms")._asdict()]


def _measured(limit: _Limit, found: Result) -> Told:
    told = _with_unit(found["found"], limit.unit)
    return Told(
        found["what"], limit.words(found["limit"]), told, MET if found["is_met"] else MISSED
    )


def _with_unit(number: float, unit: str) -> str:
    return f"{figure(number)} {unit}".rstrip()


def _of_tokens(shape: _Shape, result: Result | None) -> Iterator[Told]:
    least = LEAST_RATE[shape.shape]
    rate = (f"tokens/s, tap on over off, {shape.name}", f">= {least}")
    p99 = (f"p99 of the time per token, {shape.name}", f"<= {MOST_TOKEN_TIME}")
    start = (f"load and compile, {shape.name}", f"<= {MOST_START:.2f}")
    memory = (
        f"device memory added, share of the model's, {shape.name}",
        f"<= {MOST_DEVICE_MEMORY:.1%}",
    )
    if result is None:
        named = [rate, p99, start, *([memory] if shape.is_gpu else [])]
        yield from (Told(*each, "", NOT_MEASURED) for each in named)
        return
    yield Told(*rate, *_worst(result, "rate", least=least))
    yield Told(*p99, *_worst(result, "token_p99", most=MOST_TOKEN_TIME))
    (one,) = (each for each in result["start_ratios"] if each["arm"] == ON)
    yield Told(*start, f"{one['load_ratio']:.2f}", _at_most(one["load_ratio"], MOST_START))
    if shape.is_gpu:
        whole = result["starts"][one["reference"]]["device_bytes"]
        share = one["added_device_bytes"] / whole
        yield Told(*memory, f"{share:.2%}", _at_most(share, MOST_DEVICE_MEMORY))


def _at_most(found: float, limit: float) -> str:
    return MET if found <= limit else MISSED


def _worst(
    result: Result, of: str, *, least: float | None = None, most: float | None = None
) -> tuple[str, str]:
    """The ratio that is furthest from its target, in words, and its verdict."""
    rows = [each for each in result["rows"] if each["arm"] == ON and each["compared"][of]]

    def place(row: Result) -> tuple[int, float]:
        ratio = Ratio(**row["compared"][of])
        badness = ratio.ratio if least is not None else -ratio.ratio
        return _WORST_FIRST.index(verdict(ratio, least=least, most=most)), badness

    worst = min(rows, key=place)
    where = f"{worst['workload']}, batch {worst['batch']}"
    return f"{Ratio(**worst['compared'][of])}, {where}", _WORST_FIRST[place(worst)[0]]
