"""docs/metrics.md, written from the signal table: the reference cannot disagree with the code."""

from collections.abc import Iterator
from typing import Final

from sidecar.wire.signals import (
    FAMILY_OF,
    FLEET_METRICS,
    GROUPS,
    LAYER_SIGNALS,
    METRICS,
    ROWS_OF,
    SUMMARY_OF,
    Group,
    Kind,
    Metric,
)

# What Prometheus stores of a family, by its kind.
_SUFFIXES: Final = {
    Kind.COUNTER: ("_total",),
    Kind.GAUGE: ("",),
    Kind.SUMMARY: ("_sum", "_count"),
    Kind.HISTOGRAM: ("_bucket", "_sum", "_count"),
    Kind.INFO: ("_info",),
}
_PREFACE: Final = """\
# Metrics

Written by `sidecar metrics` from `sidecar/wire/signals.py`; do not edit by hand.

Counters start again from 0 when their source restarts, as Prometheus expects. A source unheard
for `SIDECAR_STALE_SECONDS` disappears from every family: a flat line always means what it says.

A mean over any range comes from a summary's two counters:

    sum by (layer) (rate(llm_internals_residual_rms_sum[5m]))
      / sum by (layer) (rate(llm_internals_residual_rms_count[5m]))
"""
_FLEET: Final = """\
`sidecar fleet` publishes these, and the `drift_*` families of its channel, `replica`: see
[the fleet job](fleet.md).
"""


def reference() -> str:
    """The reference of all families, in Markdown."""
    entries = [_entry(metric) for metric in METRICS]
    fleet = [_entry(metric) for metric in FLEET_METRICS]
    blocks = [_PREFACE, *_layer_table(), *_group_table(), "\n## Families\n", *entries]
    blocks += ["\n## Families of the fleet job\n", _FLEET, *fleet]
    return "\n".join(blocks)


def _layer_table() -> Iterator[str]:
    yield "## Layer signals\n"
    yield "One value per token row and decoder layer; h is the residual stream after the layer,"
    yield "x before it.\n"
    yield "| signal | formula | family |"
    yield "|---|---|---|"
    for signal in LAYER_SIGNALS:
        yield f"| `{signal.id}` | {_code(signal.formula)} | `{SUMMARY_OF[signal.id].name}` |"


def _group_table() -> Iterator[str]:
    yield "\n## Groups of signals\n"
    yield "Measured elsewhere: one value per row and cell; axes tell cells apart, and are labels."
    yield "Request records hold the same statistics, attention as the mean over heads.\n"
    yield "| group | axes | a row is a | signal | formula | family |"
    yield "|---|---|---|---|---|---|"
    for group in GROUPS.values():
        yield from _group_rows(group)


def _group_rows(group: Group) -> Iterator[str]:
    start = f"| `{group.id}` | {', '.join(map(_code, group.axes))} | {group.rows} |"
    if group.id in ROWS_OF:
        yield f"{start} rows | number of rows | `{ROWS_OF[group.id].name}` |"
    for signal in group.signals:
        metric = FAMILY_OF.get((group.id, signal.id))
        name = f"`{metric.name}`" if metric else "none: in request records alone"
        yield f"{start} `{signal.id}` | {_code(signal.formula)} | {name} |"


def _code(text: str) -> str:
    return "`" + text.replace("|", r"\|") + "`"


def _entry(metric: Metric) -> str:
    series = ", ".join(f"`{metric.name}{suffix}`" for suffix in _SUFFIXES[metric.kind])
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
    unit = f", in {metric.unit}" if metric.unit else ""
    return (
        f"### {metric.name}\n\n{metric.help}\n\n"
        f"- {metric.kind.value}{unit}: {series}\n"
        f"- labels: {labels}\n"
        f"- normal: {metric.normal}\n"
        f"- a change means: {metric.change}\n"
    )
