"""Every query of every dashboard on a real Prometheus that scraped a real vLLM and its sidecar.

Asked after the model was tampered with, so that the panels about drift have something to show.
"""

import time
from collections.abc import Mapping

import pytest

from dashboards import served
from dashboards.panels import PAGE
from tests.dashboards.asked import (
    ALL,
    Answer,
    asked,
    check_answers,
    named,
    options,
    value,
    wait_until_answered,
)
from tests.dashboards.committed import NAMES, SERIES, Query, all_queries, expr_of, filled_in
from tests.e2e.harness import wait_for
from tests.e2e.observatory import NAMESPACE, POD, Observatory, Strike

pytestmark = pytest.mark.e2e

CHOSEN = {**ALL, "pod": POD}
PAGED_SECONDS = 600.0  # some 20 on a quiet machine
# What this observatory does not have; tests/dashboards/test_queries.py has data for all of it.
NOT_HERE = {
    "llm_internals_baseline": "no baseline is in force: one takes a week of requests",
    "llm_internals_metric_pushes": "metrics are scraped here, not pushed",
    "llm_internals_probe": "no probe is configured",
    "llm_internals_replica": "there is one replica, and no fleet job",
    "llm_internals_router": "the model is dense",
    "llm_internals_tap_absent": "this engine gives all that a dense model has",
    "llm_internals_tap_errors": "nothing raised an exception",
}


def _is_here(query: Query) -> bool:
    return not any(name.startswith(tuple(NOT_HERE)) for name in query.names)


@pytest.fixture(scope="module")
def paged(observatory: Observatory, tampered: Strike) -> Strike:
    """What was done to the model, once the overview says so."""
    prometheus = observatory.prometheus

    def pages() -> bool:
        found = prometheus.query(filled_in(expr_of("overview: As usual? A"), CHOSEN))
        return [float(each["value"][1]) for each in found] == [PAGE]

    wait_for(pages, "the overview pages", PAGED_SECONDS, every=1.0)
    return tampered


@pytest.fixture(scope="module")
def answers(observatory: Observatory, paged: Strike) -> dict[Query, Answer]:
    """What Prometheus answers to each query about what there is here."""
    asks = [query for query in all_queries() if _is_here(query)]
    return wait_until_answered(observatory.prometheus, asks, CHOSEN)


def test_every_query_has_data(answers: Mapping[Query, Answer]) -> None:
    """All but those about what this observatory does not have, each of which is needed."""
    left_out = [query for query in all_queries() if query not in answers]
    prefixes = {p for p in NOT_HERE for query in left_out for n in query.names if n.startswith(p)}

    assert {query.board for query in answers} == set(NAMES)
    assert prefixes == {p for p in NOT_HERE if any(name.startswith(p) for name in SERIES)}
    assert all(not _is_here(query) for query in left_out)


def test_every_family_of_vllms_own_is_published_by_it(answers: Mapping[Query, Answer]) -> None:
    """The list of those that the dashboards may name is the list of those that they show."""
    shown = {name for query in answers for name in query.names if name.startswith("vllm:")}

    assert shown == {f"vllm:{name}" for name in served.FAMILIES}


def test_a_legend_names_labels_that_the_answer_has(answers: Mapping[Query, Answer]) -> None:
    """Else lines of different things would be called alike."""

    def missing(query: Query, found: Answer) -> str:
        labels = {label for each in found for label in each["metric"]}
        return " ".join(named(query.legend) - labels)

    check_answers(answers, missing)


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_offers_what_is_served(
    name: str, observatory: Observatory, answers: Mapping[Query, Answer]
) -> None:
    """The namespace, model and pod of the observatory, all of its layers, and both phases."""
    num_layers = int(observatory.stack.source()["num_layers"])
    wanted = {"namespace": [NAMESPACE], "model": ["tiny"], "pod": [POD]}
    wanted |= {"layer": sorted(map(str, range(num_layers))), "phase": ["decode", "prefill"]}

    found = options(observatory.prometheus, name, CHOSEN)

    assert found == {each: wanted[each] for each in found}


def test_the_overview_says_since_when_and_in_which_layers(
    observatory: Observatory, answers: Mapping[Query, Answer], paged: Strike
) -> None:
    """The change is dated within the session, and the layers that alarm begin at the struck one."""
    since = value(observatory.prometheus, expr_of("overview: If not: since A"), CHOSEN) / 1000
    [worst] = [q for q in answers if q.id == "overview: If not: in which layers A"]

    def first() -> int | None:
        found = asked(observatory.prometheus, worst, CHOSEN)
        shares = {int(each["metric"]["layer"]): float(each["values"][-1][1]) for each in found}
        return min((layer for layer, share in shares.items() if share >= 1.0), default=None)

    # Layers above the struck one move more, so theirs may alarm a round earlier.
    wait_for(lambda: first() == paged.layer, f"alarms begin at {paged.layer}", PAGED_SECONDS)
    assert 0 < time.time() - since < 3600


def test_numbers_are_those_of_the_exporter(
    observatory: Observatory, answers: Mapping[Query, Answer]
) -> None:
    """Means of layers over all time shown are sums over counts of /metrics."""
    over_all = {**CHOSEN, "__rate_interval": ALL["__range"]}
    found = observatory.prometheus.query(filled_in(expr_of("internals: Size (RMS) A"), over_all))
    samples = observatory.stack.samples()
    assert found
    for each in found:
        labels = f'layer="{each["metric"]["layer"]}",phase="decode",position="rest"}}'
        [total] = [v for k, v in samples.items() if _is(k, "residual_rms_sum", labels)]
        [count] = [v for k, v in samples.items() if _is(k, "residual_rms_count", labels)]
        # The model was changed meanwhile, and those before Prometheus' first scrape are not in it.
        assert float(each["value"][1]) == pytest.approx(total / count, rel=0.1)


def test_tokens_are_those_that_vllm_counts(
    observatory: Observatory, answers: Mapping[Query, Answer]
) -> None:
    """Over all time shown our panel and vLLM's own agree, but for what a scrape more brings."""
    over_all = {**CHOSEN, "__rate_interval": ALL["__range"]}
    ours = value(observatory.prometheus, expr_of("serving: Tokens C"), over_all)
    theirs = value(observatory.prometheus, expr_of("serving: Tokens (vLLM) B"), over_all)

    assert ours > 0
    assert ours == pytest.approx(theirs, rel=0.1)


def _is(sample: str, name: str, labels: str) -> bool:
    return sample.startswith(f"llm_internals_{name}{{") and sample.endswith(labels)
