"""The committed dashboards as a test reads them: panels, queries, and what Grafana fills in."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from dashboards import served
from sidecar.wire.signals import FLEET_METRICS, METRICS, Kind, Metric

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "dashboards" / "json"
NAMES = ("overview", "internals", "drift", "serving", "health")

_SUFFIXES = {Kind.COUNTER: ("_total",), Kind.GAUGE: ("",), Kind.INFO: ("_info",)}
_SUFFIXES |= {Kind.SUMMARY: ("_sum", "_count"), Kind.HISTOGRAM: ("_sum", "_count", "_bucket")}
SERIES = {
    metric.name + suffix: metric
    for metric in (*METRICS, *FLEET_METRICS)
    for suffix in _SUFFIXES[metric.kind]
}
# A name before braces: all our selectors have them, functions and keywords have parentheses.
SELECTOR = re.compile(r"([\w:]+)\{([^}]*)\}")
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class Query(NamedTuple):
    """One question to Prometheus. is_now: asked for one moment, as a table does."""

    board: str
    where: str
    expr: str
    legend: str = ""
    is_now: bool = False

    @property
    def names(self) -> set[str]:
        """Names of the series that it selects."""
        return {name for name, _ in SELECTOR.findall(self.expr)}

    @property
    def families(self) -> list[Metric]:
        """Those of them that are ours."""
        return [SERIES[name] for name in sorted(self.names & set(SERIES))]

    @property
    def id(self) -> str:
        """For people."""
        return f"{self.board}: {self.where}"


@cache
def board(name: str) -> dict[str, Any]:
    """A dashboard as committed."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def panels(name: str) -> list[dict[str, Any]]:
    """Its panels, without the headings of rows."""
    return [panel for panel in board(name)["panels"] if panel["type"] != "row"]


def queries(name: str) -> Iterator[Query]:
    """All questions of its panels, and of its annotations."""
    for panel in panels(name):
        for target in panel["targets"]:
            where = f"{panel['title']} {target['refId']}"
            legend = target.get("legendFormat", "")
            yield Query(name, where, target["expr"], legend, target.get("instant", False))
    for note in board(name)["annotations"]["list"]:
        if not note.get("builtIn"):
            yield Query(name, f"annotation {note['name']}", note["target"]["expr"])


def all_queries() -> list[Query]:
    """Those of every dashboard."""
    return [query for name in NAMES for query in queries(name)]


def expr_of(where: str) -> str:
    """The expression of the one query of this id."""
    [query] = [query for query in all_queries() if query.id == where]
    return query.expr


def variables(name: str) -> dict[str, dict[str, Any]]:
    """Its variables by name."""
    return {each["name"]: each for each in board(name)["templating"]["list"]}


def choices(name: str) -> dict[str, tuple[str, str]]:
    """Selector and label of each variable that asks Prometheus."""
    found = {}
    for variable in variables(name).values():
        if variable["type"] == "query":
            [(selector, label)] = re.findall(
                r"^label_values\((.+), (\w+)\)$", variable["query"]["query"]
            )
            found[variable["name"]] = (selector, label)
    return found


def filled_in(expr: str, values: Mapping[str, str]) -> str:
    """`expr` with its variables replaced, as Grafana does before it asks."""
    return VARIABLE.sub(lambda found: values[found[1] or found[2]], expr)


def known(name: str) -> bool:
    """Whether a series is ours, one of vLLM's that we know, or Prometheus' own about alerts."""
    theirs = name.removeprefix("vllm:")
    return name in SERIES or (theirs != name and theirs in served.FAMILIES) or name == "ALERTS"
