"""What was served second by second, over the last ten minutes: latency, tokens and queues.

Guarantees: at most `MAX_TRACKS` pairs of a front end and an engine, with at most `MAX_VALUES`
times to first token of each in one second; what finds no room is counted.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sidecar.fold.columns import COLUMN_NS, MAX_SPREAD, NUM_COLUMNS, Ring, spread
from sidecar.wire.frame import Frame, Serving, Source

MAX_TRACKS: Final = 64
MAX_VALUES: Final = 256
_TOKENS, _PROMPT_TOKENS, _FINISHED = range(3)
_NUM_COUNTS: Final = 3
_RUNNING, _WAITING, _CACHE = range(3)
_NUM_GAUGES: Final = 3
Floats = NDArray[np.float64]


class Served(NamedTuple):
    """Columns of one second, [T] each; NaN where nothing was told.

    first_tokens: seconds that each request waited whose first token came in a column.
    tokens, prompt_tokens, finished: per second. running, waiting: requests. kv_cache_usage: ratio.
    """

    first_tokens: list[list[float]]
    tokens: Floats
    prompt_tokens: Floats
    finished: Floats
    running: Floats
    waiting: Floats
    kv_cache_usage: Floats

    def first_token(self, share: float) -> Floats:
        """[T] the quantile `share` of those waits, between the two nearest of them."""
        return np.array([_quantile(each, share) for each in self.first_tokens], np.float64)


class ServingLines:
    """The columns of all engines, as their front ends tell them."""

    def __init__(self) -> None:
        self.num_left_out = 0  # frames that found no room
        self._tracks: dict[tuple[Source, int], _Track] = {}

    def update(self, frame: Frame) -> None:
        """Take the stats of a frame, if it has any."""
        header, body = frame.header, frame.body
        if not isinstance(body, Serving):
            return
        key = (header.source, body.engine)
        if key not in self._tracks and not self._make_room(header.t_ns):
            self.num_left_out += 1
            return
        self._tracks.setdefault(key, _Track()).update(header.boot, header.t_ns, body)

    def closed(self) -> range:
        """The seconds that are held and grow no more."""
        tracks = list(self._tracks.values())
        latest = max((track.last for track in tracks), default=-1)
        fresh = [track.last for track in tracks if latest - track.last <= MAX_SPREAD]
        first = min((track.first for track in tracks), default=0)
        return range(first, max(first, min(fresh, default=0)))

    def read(self, seconds: range) -> Served:
        """All engines together."""
        shape = (len(seconds), _NUM_COUNTS)
        counts, gauges = np.full(shape, np.nan), np.full((len(seconds), _NUM_GAUGES), np.nan)
        waits: list[list[float]] = [[] for _ in seconds]
        # Of several front ends of one engine, each counts its own; all see the same queue.
        seen: dict[int, Floats] = {}
        for (_, engine), track in self._tracks.items():
            counts = _sum(counts, track.counts.read(seconds).astype(np.float64))
            told = track.gauges.read(seconds).astype(np.float64)
            seen[engine] = np.fmax(seen[engine], told) if engine in seen else told
            for at, second in enumerate(seconds):
                waits[at] += track.first_tokens(second)
        for told in seen.values():
            gauges = _sum(gauges, told)
        cache = [told[:, _CACHE] for told in seen.values()]
        return Served(
            waits,
            counts[:, _TOKENS],
            counts[:, _PROMPT_TOKENS],
            counts[:, _FINISHED],
            gauges[:, _RUNNING],
            gauges[:, _WAITING],
            np.fmax.reduce(cache) if cache else np.full(len(seconds), np.nan),
        )

    def _make_room(self, t_ns: int) -> bool:
        if len(self._tracks) < MAX_TRACKS:
            return True
        oldest = min(self._tracks, key=lambda key: self._tracks[key].t_ns)
        if t_ns - self._tracks[oldest].t_ns <= MAX_SPREAD * COLUMN_NS:
            return False
        del self._tracks[oldest]
        return True


class _Track:
    """One engine, as one front end tells of it."""

    def __init__(self) -> None:
        self.t_ns = 0
        self.counts = Ring((_NUM_COUNTS,), np.nan)
        self.gauges = Ring((_NUM_GAUGES,), np.nan)
        self._first_tokens: dict[int, list[float]] = {}
        self._boot = ""
        self._before: Serving | None = None

    @property
    def last(self) -> int:
        return self.counts.last

    @property
    def first(self) -> int:
        return self.counts.first

    def first_tokens(self, second: int) -> list[float]:
        return self._first_tokens.get(second, [])

    def update(self, boot: str, t_ns: int, body: Serving) -> None:
        before = self._before if boot == self._boot else None
        seconds = spread(self.t_ns if before else t_ns, t_ns)
        for second in seconds:
            counts, gauges = self.counts.open(second), self.gauges.open(second)
            if counts is None or gauges is None:
                continue
            if before is not None:
                counts[:] = np.nan_to_num(counts) + _growth(before, body) / len(seconds)
            gauges[:] = (body.running, body.waiting, body.kv_cache_usage)
        self._wait(seconds[-1], body.time_to_first_token)
        self._boot, self._before, self.t_ns = boot, body, t_ns

    def _wait(self, second: int, values: list[float]) -> None:
        if values:
            held = self._first_tokens.setdefault(second, [])
            held += values[: MAX_VALUES - len(held)]
        while self._first_tokens and next(iter(self._first_tokens)) <= second - NUM_COLUMNS:
            del self._first_tokens[next(iter(self._first_tokens))]


def _growth(before: Serving, now: Serving) -> NDArray[np.float32]:
    grown = (
        now.generated_tokens - before.generated_tokens,
        now.prompt_tokens - before.prompt_tokens,
        len(now.finished),
    )
    return np.maximum(np.array(grown, np.float32), 0)


def _sum(one: Floats, other: Floats) -> Floats:
    """The sum of what is known; NaN where neither is."""
    both: Floats = np.where(np.isnan(one), other, one + np.nan_to_num(other))
    return both


def _quantile(values: list[float], share: float) -> float:
    if not values:
        return float("nan")
    ranked, place = sorted(values), share * (len(values) - 1)
    below = int(place)
    above = ranked[min(below + 1, len(ranked) - 1)]
    return ranked[below] + (place - below) * (above - ranked[below])
