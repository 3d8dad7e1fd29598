"""How many frames a second one core takes in, by their size, and that none is lost.

Two ways of asking a real sidecar that is held to one core: frames pushed as fast as it takes them,
and frames of the tap's own sender at the target rate, which waits for nobody and drops instead.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from bench.capacity.frames import SIZES, Stream, body_of
from bench.capacity.server import Server, loading, serving
from bench.report import Section, Target, progress
from sidecar.wire.frame import Source

TARGET: Final = 4000.0  # frames of TARGET_KB a second
TARGET_KB: Final = 20
PER_CPU: Final = f"frames of {TARGET_KB} KB for a second of CPU"
AT_PACE: Final = f"frames dropped or lost at {TARGET:,.0f}/s of {TARGET_KB} KB, on one core"
_LEAST_PACE: Final = 0.99  # of the target rate that the sender really kept


class Size(NamedTuple):
    """Frames to push of each size, and seconds at the target rate."""

    frames: int = 40_000
    seconds: float = 15.0


class Pushed(NamedTuple):
    """One row: bytes of a frame, frames, frames a second, CPU of a frame, and what was lost.

    counted: what the sidecar itself says became of them.
    """

    bytes: int
    frames: int
    rate: float
    cpu_us: float
    lost: int
    counted: dict[str, int]

    @property
    def per_core(self) -> float:
        """Frames that a core could take, were nobody else on it."""
        return 1e6 / self.cpu_us


def settings(*, is_quick: bool) -> Size:
    """The full size, or one of seconds."""
    return Size(4_000, 3.0) if is_quick else Size()


def run(size: Size) -> Section:
    """Push each size, then keep to the target rate."""
    with serving(on_one_core=True) as server:
        pushed = [_pushed(server, each, _fewer(each, size.frames)) for each in SIZES]
        paced = _paced(server, int(TARGET * size.seconds))
    return section(size, pushed, paced)


def section(size: Size, pushed: Sequence[Pushed], paced: Mapping[str, Any]) -> Section:
    """One row for each size; both ways are held against the target."""
    targets = _targets(pushed[SIZES.index(TARGET_KB)], paced)
    rows = [
        [
            f"{each.bytes / 1e3:.1f} KB",
            f"{each.rate:,.0f}",
            f"{each.cpu_us:.0f}",
            f"{each.per_core:,.0f}",
            f"{each.lost:,}",
        ]
        for each in pushed
    ]
    return Section(
        "Frames taken in by a sidecar on one core",
        ("frame", "frames/s, sender on another core", "CPU, us", "frames/s of CPU", "lost"),
        rows,
        {
            "size": size._asdict(),
            "pushed": [each._asdict() for each in pushed],
            "paced": dict(paced),
            "targets": [each._asdict() for each in targets],
        },
        [*(str(each) for each in targets), _kept(paced)],
    )


def _targets(at_target: Pushed, paced: Mapping[str, Any]) -> tuple[Target, Target]:
    num_gone = paced["dropped"] + paced["lost"]
    is_paced = paced["sent"] >= _LEAST_PACE * TARGET * paced["seconds"]  # else it says nothing
    return (
        Target.at_least(PER_CPU, TARGET, at_target.per_core),
        Target(AT_PACE, 0, num_gone, is_met=is_paced and num_gone == 0),
    )


def _fewer(kilobytes: int, num: int) -> int:
    return num if kilobytes <= TARGET_KB else num // 5


def _kept(paced: Mapping[str, Any]) -> str:
    return (
        f"At {TARGET:,.0f} frames/s of {TARGET_KB} KB from the tap's sender, which waits for "
        f"nobody: {paced['sent']:,} sent in {paced['seconds']:.0f} s, "
        f"{paced['sent'] / paced['seconds']:,.0f} a second; {paced['dropped']:,} dropped by the "
        f"sender, {paced['lost']:,} lost on the way."
    )


def _pushed(server: Server, kilobytes: int, num: int) -> Pushed:
    progress(f"ingest: {num} frames of {kilobytes} KB")
    source = Source("engine", tp=kilobytes)  # one for each size
    length = len(Stream(source).message(body_of(kilobytes), 1))
    before = server.cpu_seconds()
    with loading("push", server.socket, str(kilobytes), str(num), str(source.tp)) as told:
        found = server.await_frames(source, num)
    cpu = server.cpu_seconds() - before
    rate = num / told["seconds"]
    return Pushed(length, num, rate, 1e6 * cpu / num, num - found["received"], found)


def _paced(server: Server, num: int) -> dict[str, Any]:
    progress(f"ingest: {num} frames at {TARGET:.0f} a second")
    source = Source("engine")
    words = (str(TARGET_KB), str(num), str(source.tp), str(TARGET))
    with loading("pace", server.socket, *words) as told:
        due = told["sent"] - told["dropped"]
        received = server.await_frames(source, due)["received"]
    return told | {"lost": due - received}
