"""Every query of every dashboard, on a real Prometheus that scraped the real exposition.

Frames are pretended here; `tests/e2e/test_dashboards.py` asks the same of a real vLLM.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from dashboards.panels import PAGE, SUMMARY
from sidecar.publish.fleet.metrics import exposition
from tests.dashboards.asked import (
    ALL,
    MAX_SERIES,
    Answer,
    asked,
    check_answers,
    named,
    options,
    value,
    wait_until_answered,
)
from tests.dashboards.committed import NAMES, Query, all_queries, expr_of, filled_in
from tests.dashboards.pretended import MODEL, TEXT, Pretended, published
from tests.e2e.harness import get_text, wait_for
from tests.monitoring import Job, Prometheus
from tests.publish.fleet.test_app import paged

RULES = Path(__file__).parents[2] / "dashboards" / "rules.yml"
POD = "pod-a"
CHOSEN = {**ALL, "pod": POD}
NUM_LAYERS = 6

# Namespaces of pods, by what the sidecar of each says of itself.
FLEETS = {
    "alike": ("ok", "ok"),
    "learns": ("ok", "collecting"),
    "tickets": ("ticket", "collecting"),
    "blinded": ("ticket", "blind"),
    "pages": ("blind", "page"),
}
ANSWERS = {"alike": "ok", "learns": "collecting", "tickets": "ticket", "blinded": "blind"}
ANSWERS |= {"pages": "page"}


def text_of_pods() -> bytes:
    """The family that the verdict is made of, of each pod in FLEETS."""
    lines = [
        f'llm_internals_summary_state{{namespace="{namespace}",pod="p{pod}",state="{state}"}} '
        f"{int(state == now)}"
        for namespace, told in FLEETS.items()
        for pod, now in enumerate(told)
        for state in SUMMARY
    ]
    return "\n".join([*lines, ""]).encode()


class Shrinking:
    """A namespace of sidecars, of which some go."""

    def __init__(self) -> None:
        self.pods = ["s0", "s1", "s2"]

    def text(self, _: str) -> tuple[str, bytes]:
        """What is scraped of those that are there."""
        lines = [
            f'llm_internals_build_info{{namespace="shrinks",pod="{pod}",version="1"}} 1'
            for pod in self.pods
        ]
        return TEXT, "\n".join([*lines, ""]).encode()


@pytest.fixture(scope="module")
def shrinking() -> Shrinking:
    """Three of them."""
    return Shrinking()


@pytest.fixture(scope="module")
def exporter() -> Iterator[str]:
    """Where the exposition of pretended frames is scraped."""
    told = Pretended()
    with published(told.text) as address:
        yield address
    told.stop()


@pytest.fixture(scope="module")
def prometheus(
    exporter: str, shrinking: Shrinking, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """One that scrapes the exporter, a fleet job that pages, and the pods of the verdict."""
    fleet = exposition(paged().job.get(), openmetrics=False).encode()
    with contextlib.ExitStack() as stack:
        jobs = [
            Job("sidecar", [exporter], {"namespace": "llm", "pod": POD}),
            Job(
                "fleet",
                [stack.enter_context(published(lambda _: (TEXT, fleet)))],
                {"namespace": "llm", "pod": "fleet-0"},
            ),
            Job("pods", [stack.enter_context(published(lambda _: (TEXT, text_of_pods())))]),
            Job("shrinks", [stack.enter_context(published(shrinking.text))]),
        ]
        folder = tmp_path_factory.mktemp("prometheus")
        found = Prometheus(folder, jobs, (RULES,))
        stack.callback(found.stop)
        yield found.start()


@pytest.fixture(scope="module")
def answers(prometheus: Prometheus) -> dict[Query, Answer]:
    """What Prometheus answers to each query about families of ours."""
    ours = [query for query in all_queries() if not _is_about_vllm(query)]
    return wait_until_answered(prometheus, ours, CHOSEN)


def test_every_query_has_data(answers: Mapping[Query, Answer]) -> None:
    """All families of the table are on the dashboards, so all of them were seen here."""
    assert len(answers) > 100
    assert {query.board for query in answers} == set(NAMES)


def test_an_answer_is_no_more_than_a_panel_shows(answers: Mapping[Query, Answer]) -> None:
    """Every query is bounded in series, with six layers well below the limit."""
    check_answers(answers, lambda _, found: str(len(found)) if len(found) > MAX_SERIES else "")


def test_a_legend_names_labels_that_the_answer_has(answers: Mapping[Query, Answer]) -> None:
    """Else lines of different things would be called alike."""

    def missing(query: Query, found: Answer) -> str:
        labels = {label for each in found for label in each["metric"]}
        return " ".join(named(query.legend) - labels)

    check_answers(answers, missing)


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_offers_something(
    name: str, prometheus: Prometheus, answers: Mapping[Query, Answer]
) -> None:
    """Namespaces, models, pods, layers in full, and phases."""
    found = options(prometheus, name, {**CHOSEN, "namespace": "llm"})

    wanted = {"namespace": ["llm", "shrinks"], "model": [MODEL], "pod": [POD]}
    wanted |= {"layer": [str(n) for n in range(NUM_LAYERS)], "phase": ["decode", "prefill"]}
    assert found == {each: wanted[each] for each in found}


def test_the_base_model_has_a_name(answers: Mapping[Query, Answer]) -> None:
    """Its adapter is empty: no label for Prometheus, the bare word in a legend of Grafana."""
    found = [q for q in answers if "{{adapter}}" in q.legend]
    assert found
    for query in found:
        names = {each["metric"].get("adapter", "") for each in answers[query]}
        assert names == {"base model", "support", "other"}, query.id


def test_a_choice_narrows_what_is_shown(
    prometheus: Prometheus, answers: Mapping[Query, Answer]
) -> None:
    """One layer of the internals; nothing of a model or pod that is not there."""
    layered = [q for q in answers if q.board == "internals" and "layer" in named(q.legend)]
    assert layered
    for query in layered:
        found = asked(prometheus, query, {**CHOSEN, "layer": "5"})
        assert {each["metric"]["layer"] for each in found} == {"5"}, query.id
    for query in answers:
        if 'model_name=~"$model"' in query.expr:
            assert asked(prometheus, query, {**CHOSEN, "model": "another"}) == [], query.id
        if 'pod=~"$pod"' in query.expr and "replica" not in query.expr:
            assert asked(prometheus, query, {**CHOSEN, "pod": "another"}) == [], query.id


@pytest.mark.parametrize("namespace", FLEETS)
def test_the_verdict_is_the_worst_that_is_true(namespace: str, prometheus: Prometheus) -> None:
    """Of several pods it is that of the pod that is worst off."""
    chosen = {**ALL, "namespace": namespace, "pod": "p0|p1"}

    assert (
        value(prometheus, expr_of("overview: As usual? A"), chosen) == SUMMARY[ANSWERS[namespace]]
    )


def test_a_fleet_that_pages_is_a_page_of_the_overview(prometheus: Prometheus) -> None:
    """Its job is no pod that serves, and its verdict counts in its namespace all the same."""
    chosen = {**ALL, "namespace": "llm", "pod": "none"}

    assert value(prometheus, expr_of("overview: As usual? A"), chosen) == PAGE


def test_means_are_those_of_the_exporter(prometheus: Prometheus, exporter: str) -> None:
    """The mean of each layer over all time shown is the sum over the count of /metrics."""
    samples = _samples(get_text(f"http://{exporter}/metrics"))
    over_all = {**CHOSEN, "__rate_interval": ALL["__range"]}

    def told() -> dict[str, float]:
        found = prometheus.query(filled_in(expr_of("internals: Size (RMS) A"), over_all))
        return {each["metric"]["layer"]: float(each["value"][1]) for each in found}

    means = wait_for(lambda: len(told()) == NUM_LAYERS and told(), "a mean of each layer", 120.0)
    for layer, mean in means.items():
        labels = (
            f'{{model_name="{MODEL}",engine="0",layer="{layer}",phase="decode",position="rest"}}'
        )
        total = samples[f"llm_internals_residual_rms_sum{labels}"]
        count = samples[f"llm_internals_residual_rms_count{labels}"]
        # What was counted before the first scrape is in /metrics and in no rate.
        assert mean == pytest.approx(total / count, rel=0.1)


def _samples(text: str) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(number) for name, _, number in lines}


def _is_about_vllm(query: Query) -> bool:
    return any(name.startswith("vllm:") for name in query.names)


def test_the_overview_counts_sidecars_that_are_gone(
    prometheus: Prometheus, shrinking: Shrinking
) -> None:
    """None while all are scraped, one when one of three no longer is."""
    expr = expr_of("overview: Sidecars gone A")
    chosen = {**CHOSEN, "namespace": "shrinks", "pod": "s.*"}
    build = filled_in('count(llm_internals_build_info{namespace="$namespace"})', chosen)
    wait_for(lambda: value(prometheus, build, {}) == 3, "all are scraped", 60.0)
    assert value(prometheus, expr, chosen) == 0
    shrinking.pods.remove("s1")

    wait_for(lambda: value(prometheus, expr, chosen) == 1, "one is gone", 60.0)
