"""What the panels ask of Prometheus: PromQL from the table of signals, so that no name is typed.

Guarantees: a family or label that `sidecar/wire/signals.py` does not have raises KeyError; every
selector obeys the dashboard's variables; every rate is over `$__rate_interval`, so that it is right
at any zoom and scrape interval; a mean is a sum of sums over a sum of counts, never of means.
"""

from collections.abc import Sequence
from typing import Final

from sidecar.wire.signals import BY_ID, FLEET_METRICS, Kind, Metric

INTERVAL: Final = "$__rate_interval"
RANGE: Final = "$__range"
# Alerts keep the labels of their series; that on absence has none, and belongs to every choice.
ALERTS: Final = (
    'ALERTS{alertname=~"LLMInternals.*", alertstate=~"pending|firing", '
    'namespace=~"$namespace|", pod=~"$pod|"}'
)
FIRING: Final = ALERTS.replace("pending|firing", "firing").replace('alertstate=~"', 'alertstate="')
# Rows of the residual stream that may be compared: sinks have norms tens of times larger.
REST: Final = {"phase": '="$phase"', "position": '="rest"'}
OF_THE_PHASE: Final = {"phase": '="$phase"'}

BASE_MODEL: Final = "base model"

_FLEET: Final = frozenset(metric.id for metric in FLEET_METRICS)
_SUFFIX: Final = {Kind.COUNTER: "_total", Kind.INFO: "_info"}


def series(family: str, part: str = "", **matchers: str) -> str:
    """Selector of a family, or of a `part` of it (`_sum`, `_count`, `_bucket`).

    matchers: operator and quoted value by label, such as `state='="page"'`; they replace those that
    the variables would give, and an empty one leaves a label open.
    """
    metric = BY_ID[family]
    asked = {**_of_variables(metric), **matchers}
    for label in asked:
        if label not in metric.labels and label not in {"namespace", "pod"}:
            raise KeyError(f"{metric.name} has no label {label!r}")
    inside = ", ".join(f"{label}{value}" for label, value in asked.items() if value)
    return f"{metric.name}{part or _SUFFIX.get(metric.kind, '')}{{{inside}}}"


def equals(value: str) -> str:
    """A matcher of this value alone."""
    return f'="{value}"'


def vllm(name: str, **matchers: str) -> str:
    """Selector of a family of vLLM's own."""
    asked = {
        "namespace": '=~"$namespace"',
        "pod": '=~"$pod"',
        "model_name": '=~"$model"',
        **matchers,
    }
    return f"vllm:{name}{{{', '.join(f'{label}{value}' for label, value in asked.items())}}}"


def rate(selector: str, *by: str) -> str:
    """Increase per second, added up; by labels."""
    return summed(f"rate({selector}[{INTERVAL}])", *by)


def increase(selector: str, *by: str) -> str:
    """Increase within the time shown, added up; by labels."""
    return summed(f"increase({selector}[{RANGE}])", *by)


def mean(family: str, *by: str, **matchers: str) -> str:
    """Mean over rows of a summary or histogram; by labels."""
    sums, counts = (rate(series(family, part, **matchers), *by) for part in ("_sum", "_count"))
    return f"{sums} / {counts}"


def usual(family: str, *by: str, **matchers: str) -> str:
    """The same mean over all of the time shown, a constant for each `by`."""
    parts = (series(family, part, **matchers) for part in ("_sum", "_count"))
    sums, counts = (summed(f"increase({part}[{RANGE}] @ end())", *by) for part in parts)
    return f"{sums} / {counts}"


def unusual(family: str, *by: str, **matchers: str) -> str:
    """How far the mean is from that of all of the time shown: 0.1 is 10 % above it."""
    now, always = mean(family, *by, **matchers), usual(family, *by, **matchers)
    return f"({now}) / ({always}) - 1"


def quantile(q: float, buckets: str, *by: str) -> str:
    """Quantile of a classic histogram, from the selector of its buckets; by labels."""
    return f"histogram_quantile({q}, {rate(buckets, 'le', *by)})"


def share(top: str, bottom: str, *on: str) -> str:
    """`top / bottom`, where bottom has the labels `on` alone; absent where it is 0."""
    return f"{top} / on ({', '.join(on)}) group_left () ({bottom} > 0)"


def summed(expr: str, *by: str) -> str:
    """Sum; by labels."""
    return _aggregated("sum", expr, by)


def largest(expr: str, *by: str) -> str:
    """Maximum; by labels."""
    return _aggregated("max", expr, by)


def smallest(expr: str, *by: str) -> str:
    """Minimum; by labels."""
    return _aggregated("min", expr, by)


def by_adapter(expr: str) -> str:
    """`expr` with a name for the base model, whose adapter is empty: that is no label at all."""
    return f'label_replace({expr}, "adapter", "{BASE_MODEL}", "adapter", "")'


def coded(family: str, values: dict[str, int], **matchers: str) -> str:
    """The code of the state that each thing is in, beside zeros for those in which it is not.

    values: a positive code by state. Take the largest by what tells the things apart.
    """
    told = (
        f"{code} * {series(family, **{**matchers, 'state': equals(state)})}"
        for state, code in values.items()
    )
    return " or ".join(told)


def _aggregated(function: str, expr: str, by: Sequence[str]) -> str:
    return f"{function} by ({', '.join(by)}) ({expr})" if by else f"{function}({expr})"


def _of_variables(metric: Metric) -> dict[str, str]:
    # The fleet job is one pod beside those that serve, so it is no choice of $pod.
    asked = {"namespace": '=~"$namespace"'}
    if metric.id not in _FLEET:
        asked["pod"] = '=~"$pod"'
    if "model_name" in metric.labels:
        asked["model_name"] = '=~"$model"'
    if "layer" in metric.labels:
        asked["layer"] = '=~"$layer"'
    return asked
