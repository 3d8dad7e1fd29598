"""The two text formats of Prometheus, written with labels in the order of the signal table.

The stock encoder sorts labels by name and takes 14 us per series; the families here are its own
`Metric` values, and its parsers read the result (tests/publish/metrics/test_exposition.py).
"""

from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client.core import Metric as Family
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from sidecar.wire.signals import Kind, Metric

END: Final = "# EOF\n"
SUFFIXES: Final = {Kind.COUNTER: "_total", Kind.INFO: "_info"}


def header(metric: Metric, *, openmetrics: bool) -> str:
    """The lines that open a family."""
    return _header(empty(metric), openmetrics=openmetrics)


def empty(metric: Metric) -> Family:
    """The family of `metric`, without samples."""
    return Family(metric.name, metric.help, metric.kind.value, metric.unit)


def write(families: Iterable[Family], *, openmetrics: bool) -> str:
    """Text of `families`; those without samples are left out."""
    line = _line_with_exemplar if openmetrics else _line
    return "".join(
        _header(family, openmetrics=openmetrics) + "".join(map(line, family.samples))
        for family in families
        if family.samples
    )


def label_set(names: Sequence[str], values: Sequence[str]) -> str:
    """Labels in braces; nothing when there are none."""
    pairs = [f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True)]
    return "{" + ",".join(pairs) + "}" if pairs else ""


def number(value: float) -> str:
    """A number as both formats spell it, NaN and infinities included."""
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


def _header(family: Family, *, openmetrics: bool) -> str:
    name, kind, unit = family.name, family.type, ""
    text = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
    if openmetrics:
        text = text.replace('"', r"\"")
        unit = f"# UNIT {name} {family.unit}\n" if family.unit else ""
    else:
        name += SUFFIXES.get(Kind(kind), "")
        kind = "gauge" if kind == Kind.INFO else kind
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n{unit}"


def _line(sample: Sample) -> str:
    labels = label_set(tuple(sample.labels), tuple(sample.labels.values()))
    return f"{sample.name}{labels} {number(sample.value)}\n"


def _line_with_exemplar(sample: Sample) -> str:
    exemplar = sample.exemplar
    if exemplar is None:
        return _line(sample)
    labels = label_set(tuple(exemplar.labels), tuple(exemplar.labels.values()))
    value, seconds = number(exemplar.value), f"{exemplar.timestamp:.3f}"
    return f"{_line(sample)[:-1]} # {labels} {value} {seconds}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
