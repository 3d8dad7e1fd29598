"""What a run found, as the section of docs/reliability.md."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from bench.ratios import MET, MISSED, UNRESOLVED
from bench.report import Section
from bench.soak.slope import Slope, slope
from bench.soak.soak import LOST_PARTS, WINDOW_SECONDS, Found, Sample, lost_parts

WARM_UP: Final = 0.2  # of the run: by then every bounded store is full
PER_FRAMES: Final = 100_000
LIMIT_MB: Final = 1.0
_MB: Final = 1e6
_CAUSES: Final = ("late", "left_out")
_NUM_KEPT: Final = 120  # samples in the file


def section(found: Found) -> Section:
    """The table, and everything behind it."""
    growth, samples = grown(found), warm(found.samples)
    return Section(
        "Soak: many frames, many hours",
        ("what", "measured"),
        [*_frames(found), *_others(found), *_process(samples, growth)],
        _figures(found, growth),
        _notes(),
    )


def warm(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Those after the warm-up."""
    start = WARM_UP * samples[-1].num_frames
    return [each for each in samples if each.num_frames >= start]


def grown(found: Found) -> Slope:
    """Growth of resident memory after the warm-up, MB per 100,000 frames."""
    samples = warm(found.samples)
    x = [each.num_frames for each in samples]
    return slope(x, [each.rss_bytes / _MB for each in samples]).per(PER_FRAMES)


def verdict(growth: Slope) -> str:
    """Whether memory grows by no more than the limit, as far as the interval tells."""
    if growth.low > LIMIT_MB:
        return MISSED
    return MET if growth.high <= LIMIT_MB else UNRESOLVED


def _frames(found: Found) -> list[tuple[str, str]]:
    sent, received, lost, unaccounted = totals(found)
    return [
        (
            f"frames that {num_ranks(found)} ranks and a front end sent, by their own logs",
            f"{sent:,} in {found.hours:.1f} h of their clock, {found.seconds / 60:.0f} min",
        ),
        ("received + lost and counted", f"{received:,} + {lost:,}"),
        ("unaccounted for", f"{unaccounted:,}"),
    ]


def _others(found: Found) -> list[tuple[str, str]]:
    told, seen = found.told, found.seen
    return [
        (
            "requests finished, spans made, spans at the receiver",
            (
                f"{told['finished_requests_total']:,.0f}, {told['spans_finished_total']:,.0f}, "
                f"{found.spans:,}"
            ),
        ),
        ("parts of requests that reached no span, and counted", _parts_lost(told)),
        (
            "windows of drift judged, false pages",
            f"{told['drift_windows_total']:,.0f}, {told['drift_pages_total']:.0f}",
        ),
        (
            "scrapes, answers of the API, events heard; failed",
            f"{seen['scrapes']:,}, {seen['answers']:,}, {seen['events']:,}; {failed(found):,}",
        ),
    ]


def _parts_lost(told: Mapping[str, float]) -> str:
    causes = {each: told[series] for each in _CAUSES if (series := lost_parts(each)) in told}
    by_cause = ", ".join(f"{num:,.0f} {each}" for each, num in causes.items())
    return f"{told.get(LOST_PARTS, 0.0):,.0f}" + (f" ({by_cause})" if by_cause else "")


def _process(samples: Sequence[Sample], growth: Slope) -> list[tuple[str, str]]:
    rss = [each.rss_bytes / _MB for each in samples]
    return [
        (
            (
                f"growth of resident memory per {PER_FRAMES:,} frames after the warm-up; limit "
                f"{LIMIT_MB:g} MB"
            ),
            (
                f"{growth.value:+.2f} MB (95 % {growth.low:+.2f} to {growth.high:+.2f}): "
                f"{verdict(growth)}"
            ),
        ),
        ("resident memory meanwhile", f"{min(rss):.0f} to {max(rss):.0f} MB"),
        ("open files, first and last third: most", _most([each.num_fds for each in samples])),
        ("threads, likewise", _most([each.num_threads for each in samples])),
    ]


def _most(values: Sequence[int]) -> str:
    third = max(1, len(values) // 3)
    return f"{max(values[:third])} and {max(values[-third:])}"


def totals(found: Found) -> tuple[int, int, int, int]:
    """Frames of all sources: sent, received, lost with a name, unaccounted for."""
    accounts = found.accounts
    return (
        sum(each.sent for each in accounts),
        sum(each.received for each in accounts),
        sum(sum(each.lost.values()) for each in accounts),
        sum(abs(each.unaccounted) for each in accounts),
    )


def num_ranks(found: Found) -> int:
    """Engines among the sources."""
    return sum(each.source.startswith("engine") for each in found.accounts)


def failed(found: Found) -> int:
    """Requests of clients that were not answered."""
    return sum(num for what, num in found.seen.items() if what.startswith("failed"))


def _figures(found: Found, growth: Slope) -> Mapping[str, Any]:
    every = max(1, len(found.samples) // _NUM_KEPT)
    return {
        "hours": found.hours,
        "seconds": found.seconds,
        "accounts": [each._asdict() for each in found.accounts],
        "refused": found.refused,
        "slope_mb_per_100000_frames": growth._asdict(),
        "seen": dict(found.seen),
        "spans_received": found.spans,
        "metric_pushes_received": found.pushes,
        "samples": [list(each) for each in found.samples[::every]],
        "told": {name: value for name, value in found.told.items() if _is_health(name)},
    }


def _is_health(name: str) -> bool:
    about = ("frames_", "span", "trace", "drift_", "event", "lost_", "http_", "metric_pushes")
    return name.startswith(about) and not name.endswith("_bucket")


def _notes() -> Sequence[str]:
    everything = (
        "A real `sidecar serve` with everything on: every family of /metrics, recordings, a "
        f"baseline, windows of {WINDOW_SECONDS} s, spans and metrics to an OTLP receiver, a scan "
        "every ten seconds, four listeners, scrapes and every route of the API. Frames have the "
        "sizes of a model of 80 layers, 64 heads and 8 experts, whose heads eight ranks share."
    )
    clock = (
        "All processes go by one clock, which a conductor moves on as soon as every rank has told "
        "of a second and what it sent was read: the load is as high as the machine allows. "
        "The baseline is too short to arm the traffic channel, which scores every window "
        "nevertheless; no canary runs. A request whose parts come more than two seconds apart, by "
        "this fast clock, is told of in two spans, or a part of it in none: it came late. A part "
        "is left out when the thread that makes spans has no room for it."
    )
    growth = (
        "The slope is least squares over averages of neighbouring samples, after a fifth of the "
        "run, by when every bounded store is full; its interval is Student's."
    )
    return everything, clock, growth
