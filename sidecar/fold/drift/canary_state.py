"""The canary channel's state as plain values, and back; StateError for what cannot be it."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from sidecar.errors import UNREADABLE, StateError
from sidecar.fold.drift import exported
from sidecar.fold.drift.canary_judge import KERNELS, Judge, Pace
from sidecar.fold.drift.canary_reference import Reference
from sidecar.fold.drift.canary_rounds import OpenRound, Rounds
from sidecar.fold.drift.canary_streams import CanaryStreams
from sidecar.wire.frame import Identity
from sidecar.wire.signature import Layout

Plain = dict[str, Any]
_COUNTS: Final = ("judged_ns", "num_short", "num_rejected")
_BY_STREAM: Final = ("limit", "score", "before")


@contextmanager
def refusing() -> Iterator[None]:
    """Whatever plain values cannot be is one StateError."""
    try:
        yield
    except StateError:
        raise
    except (*UNREADABLE, msgspec.ValidationError) as error:
        raise StateError(
            f"the canary's state cannot be read ({error!r}); delete the snapshot to learn anew"
        ) from error


def key_of(source: str, identity: Identity | None, layout: Layout) -> str:
    """What a reference is of: a source, its kernel configuration, and a layout of signatures."""
    kernels = [getattr(identity, field) for field in KERNELS] if identity else []
    digest = hashlib.sha256(msgspec.msgpack.encode((kernels, layout))).hexdigest()
    return f"{source}/{digest[:16]}"


def export_judge(key: str, judge: Judge) -> Plain:
    """One judge with everything that it learnt."""
    reference = judge.reference
    return {
        "key": key,
        "source": judge.source,
        "layout": msgspec.to_builtins(judge.streams.layout),
        "identity": None if judge.identity is None else msgspec.to_builtins(judge.identity),
        "adapters": sorted(judge.adapters),
        "note": judge.note,
        "num_tokens": exported.packed(judge.num_tokens),
        "num_first": len(judge.first),
        "first": _stacked(judge),
        "num_benign": len(judge.benign),
        "benign": exported.packed(judge.benign),
        "mean": None if reference is None else exported.packed(reference.mean),
        "floor": None if reference is None else exported.packed(reference.floor),
        "run_length": float(judge.evidence.run_length),
        "evidence": judge.evidence.export(),
        "since_ns": exported.packed(judge.since_ns),
        **{name: exported.packed(getattr(judge, name)) for name in _BY_STREAM},
        **{name: getattr(judge, name) for name in _COUNTS},
    }


def restore_judge(plain: Plain, pace: Pace, num_prompts: int) -> tuple[str, Judge]:
    """The key and the judge of `export_judge`. Raises StateError."""
    streams = CanaryStreams.of(msgspec.convert(plain["layout"], Layout))
    num, width = len(streams.streams), len(streams.places)
    judge = Judge(str(plain["source"]), streams, pace, num_prompts)
    if plain["identity"] is not None:
        judge.identify(msgspec.convert(plain["identity"], Identity))
    judge.adapters = frozenset(str(each) for each in plain["adapters"])
    judge.note = str(plain["note"])
    judge.num_tokens = exported.integers(plain, "num_tokens", (num_prompts,))
    num_first = exported.number(plain, "num_first")
    judge.first = list(exported.floats(plain, "first", (num_first, num_prompts, width)))
    judge.benign = exported.floats(plain, "benign", (exported.number(plain, "num_benign"), num))
    judge.set_ranks()
    if plain["mean"] is not None:
        judge.reference = Reference(
            exported.floats(plain, "mean", (num_prompts, width)),
            exported.floats(plain, "floor", (num_prompts, num)),
        )
    # It depends on how many sources there were; the channel sets it again.
    judge.evidence.run_length = float(plain["run_length"])
    judge.evidence.restore(plain["evidence"])
    judge.since_ns = exported.integers(plain, "since_ns", (num,))
    for name in _BY_STREAM:
        setattr(judge, name, exported.floats(plain, name, (num,)))
    for name in _COUNTS:
        setattr(judge, name, exported.number(plain, name))
    return str(plain["key"]), judge


def export_rounds(rounds: Rounds) -> Plain:
    """Open rounds, and what was closed last."""
    return {
        "ignored": dict(rounds.ignored),
        "closed_ns": dict(rounds.closed_ns),
        "open": [_export_open(each) for held in rounds.open.values() for each in held.values()],
    }


def restore_rounds(plain: Plain, prompts: Sequence[str]) -> Rounds:
    """The rounds of `export_rounds`. Raises StateError."""
    rounds = Rounds(prompts)
    rounds.ignored = Counter({str(k): int(v) for k, v in plain["ignored"].items()})
    rounds.closed_ns = {str(k): int(v) for k, v in plain["closed_ns"].items()}
    for each in plain["open"]:
        opened = _restore_open(each, len(prompts))
        rounds.open.setdefault(opened.source, {})[opened.start_ns] = opened
    return rounds


def _export_open(opened: OpenRound) -> Plain:
    return {
        "source": opened.source,
        "start_ns": opened.start_ns,
        "end_ns": opened.end_ns,
        "layout": msgspec.to_builtins(opened.streams.layout),
        "adapters": sorted(opened.adapters),
        "values": exported.packed(opened.values),
        "num_tokens": exported.packed(opened.num_tokens),
    }


def _restore_open(plain: Plain, num_prompts: int) -> OpenRound:
    streams = CanaryStreams.of(msgspec.convert(plain["layout"], Layout))
    start_ns = exported.number(plain, "start_ns")
    opened = OpenRound(str(plain["source"]), start_ns, streams, num_prompts)
    opened.end_ns = exported.number(plain, "end_ns")
    opened.adapters = {str(each) for each in plain["adapters"]}
    opened.values = exported.floats(plain, "values", (num_prompts, len(streams.places)))
    opened.num_tokens = exported.integers(plain, "num_tokens", (num_prompts,))
    return opened


def _stacked(judge: Judge) -> Plain:
    shape = (len(judge.first), len(judge.num_tokens), len(judge.streams.places))
    stacked: NDArray[np.float64] = np.zeros(shape)
    for place, values in enumerate(judge.first):
        stacked[place] = values
    return exported.packed(stacked)
