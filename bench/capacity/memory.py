"""Memory of a sidecar that publishes the most there is, after very many frames, while scraped.

Everything is on: requests, signatures, tables and layers of the largest model of `bench.scrape`.
"""

from concurrent.futures import ThreadPoolExecutor, wait
from typing import Final, NamedTuple

import httpx

from bench.capacity.server import Server, loading, serving
from bench.report import Section, Target, progress
from sidecar.wire.frame import Source

LIMIT_MB: Final = 250.0
LARGEST: Final = "97,128,256"  # layers, heads, experts: some 50,000 series
_SCRAPE_SECONDS: Final = 5.0
_SOURCE: Final = Source("engine")


class Size(NamedTuple):
    """Frames to take in."""

    frames: int = 1_000_000


class Look(NamedTuple):
    """Frames so far, resident MB, and series of the last scrape."""

    frames: int
    rss_mb: float
    series: int


def settings(*, is_quick: bool) -> Size:
    """The full size, or one of a minute."""
    return Size(20_000) if is_quick else Size()


def run(size: Size) -> Section:
    """Look at the process at each scrape, and tell ten of the looks."""
    with serving(everything=True) as server:
        empty = server.rss_mb()
        looks = _looks(server, size.frames)
    peak = max(looks, key=lambda each: each.rss_mb)
    most = max(each.series for each in looks)
    frames = looks[-1].frames
    target = Target.at_most(
        f"resident memory at {most:,} series after {frames:,} frames", LIMIT_MB, peak.rss_mb, "MB"
    )
    told = [*looks[:: max(1, len(looks) // 10)], looks[-1]]
    return Section(
        f"Memory of a sidecar with {most:,} series",
        ("frames", "resident, MB", "series"),
        [["0", f"{empty:.0f}", "0"]]
        + [[f"{each.frames:,}", f"{each.rss_mb:.0f}", f"{each.series:,}"] for each in told],
        {
            "size": size._asdict(),
            "empty_mb": empty,
            "looks": [each._asdict() for each in looks],
            "targets": [target._asdict()],
        },
        [str(target)],
    )


def _looks(server: Server, num: int) -> list[Look]:
    looks: list[Look] = []
    with ThreadPoolExecutor(1) as pool:
        pushed = pool.submit(_pushed, server, num)
        while not looks or not pushed.done():
            wait([pushed], _SCRAPE_SECONDS)
            looks.append(_look(server))
            progress(f"memory: {looks[-1].frames:,} of {num:,} frames, {looks[-1].rss_mb:.0f} MB")
        pushed.result()
    return [*looks, _look(server)]


def _pushed(server: Server, num: int) -> None:
    with loading("mix", server.socket, LARGEST, str(num), str(_SOURCE.tp)):
        server.await_frames(_SOURCE, num)


def _look(server: Server) -> Look:
    reply = httpx.get(f"{server.url}/metrics", timeout=60, trust_env=False).raise_for_status()
    series = sum(not line.startswith("#") for line in reply.iter_lines())
    return Look(server.counted(_SOURCE)["received"], server.rss_mb(), series)
