"""docs/scale.md: from a simulated fleet (`bench.fleet`) to 10,000 GPUs, step by step."""

from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any, Final

GPUS: Final = 10_000
_GPUS_A_POD: Final = 8
_INTERVAL: Final = 15  # seconds between scrapes
_RETENTION_DAYS: Final = 15
_HEAD: Final = """\
# Scale: 10,000 GPUs

What is measured is of a simulated fleet (`python -m bench.fleet`): every replica's frames are
folded, rendered, merged and contrasted by the shipped code. What follows from it for 10,000 GPUs is
arithmetic, shown. This page is written by `make performance` from the files in
[bench/results](../bench/results).

Each pod has its own sidecar, and nothing stands in the middle: frames never leave the pod. What
grows with the fleet is what Prometheus stores, the baseline that is merged offline, and the job
that contrasts replicas.
"""


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, or what to run first."""
    result = results.get("fleet")
    if result is None:
        missing = "Not measured yet: `python -m bench.fleet --json bench/results/fleet.json` would."
        return f"{_HEAD}\n{missing}\n"
    lines = [line for line in result["table"] if not line.startswith("### ")]
    told = [f"- {line}" if line and not line.startswith("|") else line for line in lines[1:]]
    machine = result["machine"]
    made = f"`{result['command']}`: {result['seconds']:.0f} s on {machine['cpu']}, load "
    made += f"{result['load_average']}, seed {result['seed']}, {machine['revision']}."
    parts = [_HEAD, f"## {result['title']}", "", made, "", *told, "", *_extrapolated(result)]
    return "\n".join(parts) + "\n"


def _extrapolated(result: Mapping[str, Any]) -> Iterator[str]:
    figures = result["figures"]
    one, merge, contrast = (figures[name] for name in ("replica", "merge", "contrast"))
    pods = GPUS // _GPUS_A_POD
    yield f"## {GPUS:,} GPUs: {pods:,} pods of {_GPUS_A_POD}"
    yield ""
    yield "| what | how | comes to |"
    yield "|---|---|---:|"
    rows = [*_stored(pods, one), _traffic(pods, one), _frames(one), _cpu(one)]
    for row in (*rows, _merged(pods, merge), _contrast(pods, contrast)):
        yield f"| {' | '.join(row)} |"
    yield ""
    yield _REMARKS.format(gpus=GPUS, each=_GPUS_A_POD, most=contrast["replicas"])


_REMARKS: Final = """\
- Pods of one GPU instead: {gpus:,} of them. A pod's series hardly depend on its ranks, so series,
  samples and traffic are up to {each} times these.
- Costs of pods add up, and no pod waits for another. The merge takes one baseline after the other:
  its memory is that of the merged one and one more.
- A contrast compares the replicas of one deployment, at most {most} in the job that was measured; a
  larger deployment is several jobs.
- Bytes of a sample on disk are Prometheus' own estimate (its documentation, *Storage*); its memory
  was not measured here. [cardinality.md](cardinality.md) has fewer series."""

Told = tuple[str, str, str]


def _stored(pods: int, one: Mapping[str, Any]) -> Iterator[Told]:
    series = pods * one["series"]
    samples = series / _INTERVAL
    yield "series", f"{pods:,} x {one['series']:,}", f"{series / 1e6:.2f} million"
    yield "samples", f"{series:,} / {_INTERVAL} s", f"{samples:,.0f} a second"
    low, high = (samples * 86_400 * _RETENTION_DAYS * each / 1e12 for each in (1, 2))
    how = f"{samples:,.0f} x 86,400 s x {_RETENTION_DAYS} days x 1 to 2 bytes"
    yield f"disk of {_RETENTION_DAYS} days", how, f"{low:.2f} to {high:.2f} TB"


def _traffic(pods: int, one: Mapping[str, Any]) -> Told:
    num_bytes = one["scrape_gzip_bytes"]
    how = f"{pods:,} x {num_bytes / 1e3:.1f} KB / {_INTERVAL} s"
    return "scrapes, compressed", how, f"{pods * num_bytes / _INTERVAL / 1e6:.2f} MB/s"


def _frames(one: Mapping[str, Any]) -> Told:
    megabytes = one["socket_bytes_a_second"] / 1e6
    how = f"{one['frames_a_second']:.0f} frames/s and {megabytes:.2f} MB/s within every pod"
    return "frames", how, "0 between pods"


def _merged(pods: int, merge: Mapping[str, Any]) -> Told:
    num = merge["baselines"]
    read, merged = merge["read_seconds"], merge["merge_seconds"]
    how = f"{pods:,} / {num:,} x ({read:.1f} s + {merged:.1f} s)"
    return "merging a baseline, offline", how, f"{pods * (read + merged) / num:.0f} s of CPU"


def _cpu(one: Mapping[str, Any]) -> Told:
    folding, scrape = one["fold_ms_a_second"], one["scrape_ms"] / _INTERVAL
    how = f"{folding:.1f} ms/s of folding + {one['scrape_ms']:.1f} ms / {_INTERVAL} s of scrapes"
    return "CPU of a sidecar", how, f"{(folding + scrape) / 10:.2f} % of a core"


def _contrast(pods: int, contrast: Mapping[str, Any]) -> Told:
    jobs = ceil(pods / contrast["replicas"])
    each = contrast["window_ms"]
    how = f"{jobs} jobs of {contrast['replicas']}, {each:.0f} ms of CPU in a window of 5 minutes"
    return "contrast of replicas", how, f"{jobs * each / 300_000:.3%} of a core"
