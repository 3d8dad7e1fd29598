"""Asks a real Prometheus what the dashboards ask, as Grafana would fill it in."""

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tests.dashboards.committed import Query, choices, filled_in
from tests.e2e.harness import wait_for
from tests.monitoring import Prometheus

# All of everything, as the variables have it; a pod has to be named.
ALL = {
    "namespace": ".*",
    "model": ".*",
    "layer": ".*",
    "phase": "decode",
    "__rate_interval": "20s",
    "__range": "900s",
}
DATA_SECONDS = 180.0  # windows close every ten seconds, and a busy machine takes its time
MAX_SERIES = 400  # of one query: more lines no panel shows
Answer = list[dict[str, Any]]


def asked(prometheus: Prometheus, query: Query, values: Mapping[str, str]) -> Answer:
    """Every series of the answer, of this moment or of the last minutes, as its panel asks."""
    expr = filled_in(query.expr, values)
    if query.is_now:
        return [
            {"metric": each["metric"], "values": [each["value"]]} for each in prometheus.query(expr)
        ]
    return prometheus.query_range(expr, seconds=900.0, step=5.0)


def wait_until_answered(
    prometheus: Prometheus, queries: Iterable[Query], values: Mapping[str, str]
) -> dict[Query, Answer]:
    """The answer of each query, once all have a finite number; else fails with those that do not.

    Also fails on an error of Prometheus, such as of a query that is no PromQL.
    """
    answers: dict[Query, Answer] = {}
    left = list(queries)

    def all_answered() -> bool:
        for query in list(left):
            found = asked(prometheus, query, values)
            if any(has_number(each) for each in found):
                answers[query] = found
                left.remove(query)
        return not left

    deadline = time.monotonic() + DATA_SECONDS
    while not all_answered():
        assert time.monotonic() < deadline, _complaint(left, values)
        time.sleep(1.0)
    return answers


def _complaint(left: list[Query], values: Mapping[str, str]) -> str:
    return "no data for\n" + "\n".join(f"{q.id}: {filled_in(q.expr, values)}" for q in left)


def has_number(series: Mapping[str, Any]) -> bool:
    """Whether any sample of it is finite."""
    return any(math.isfinite(float(text)) for _, text in series["values"])


def named(legend: str) -> set[str]:
    """Labels that a legend names."""
    return set(re.findall(r"{{(\w+)}}", legend))


def options(prometheus: Prometheus, board: str, values: Mapping[str, str]) -> dict[str, list[str]]:
    """What each variable of a dashboard offers."""
    found = {}
    for name, (selector, label) in choices(board).items():
        match = {"match[]": filled_in(selector, values)}
        found[name] = prometheus.ask(f"label/{label}/values", **match)
    return found


def value(prometheus: Prometheus, expr: str, values: Mapping[str, str]) -> float:
    """The one number of an expression now; waits until there is one."""

    def one() -> Answer:
        return prometheus.query(filled_in(expr, values))

    [found] = wait_for(one, expr, DATA_SECONDS, every=0.5)
    return float(found["value"][1])


def check_answers(answers: Mapping[Query, Answer], check: Callable[[Query, Answer], str]) -> None:
    """Fail with every complaint that `check` has of an answer; "" is none."""
    complaints = [f"{q.id}: {said}" for q, found in answers.items() if (said := check(q, found))]
    assert not complaints, "\n".join(complaints)
