"""docs/metrics.md, written from the signal table: the reference cannot disagree with the code."""

from collections.abc import Iterator
from typing import Final

from sidecar.wire.signals import LAYER_SIGNALS, METRICS, SUMMARY_OF, Kind, Metric

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


def reference() -> str:
    """The reference of all families, in Markdown."""
    blocks = [_PREFACE, *_signal_table(), *(_entry(metric) for metric in METRICS)]
    return "\n".join(blocks)


def _signal_table() -> Iterator[str]:
    yield "## Layer signals\n"
    yield "One value per token row and decoder layer; h is the residual stream after the layer,"
    yield "x before it.\n"
    yield "| signal | formula | family |"
    yield "|---|---|---|"
    for signal in LAYER_SIGNALS:
        formula = signal.formula.replace("|", r"\|")
        yield f"| `{signal.id}` | `{formula}` | `{SUMMARY_OF[signal.id].name}` |"
    yield "\n## Families\n"


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
