"""Rules that every dashboard keeps, whatever it shows."""

import re
from itertools import pairwise
from typing import Any, get_args

import pytest

from sidecar.fold.drift.verdict import ChannelState
from sidecar.publish.api.answers import SummaryLevel
from sidecar.wire.signals import BY_ID
from tests.dashboards.committed import (
    NAMES,
    ROOT,
    SELECTOR,
    SERIES,
    VARIABLE,
    all_queries,
    board,
    choices,
    known,
    panels,
    queries,
    variables,
)

OF_THE_TARGET = {"namespace", "pod"}
INTERVALS = {"$__rate_interval", "$__range"}
BUILT_IN = {"__rate_interval", "__range"}
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
RUNBOOK = re.compile(r"/(LLMInternals\w+)\.md$")

each_board = pytest.mark.parametrize("name", NAMES)


@each_board
def test_ids_are_given_once(name: str) -> None:
    """Panels have unique ids and titles; the dashboard has a fixed uid, and no id of a server."""
    whole = board(name)
    ids = [panel["id"] for panel in whole["panels"]]
    titles = [panel["title"] for panel in whole["panels"]]

    assert whole["uid"] == f"llm-internals-{name}"
    assert whole.get("id") is None
    assert len(set(ids)) == len(ids)
    assert [t for t in titles if titles.count(t) > 1] == []
    assert whole["schemaVersion"] <= 41
    assert whole["editable"] is True
    assert "llm-internals" in whole["tags"]


@each_board
def test_a_panel_says_what_it_shows_and_in_which_unit(name: str) -> None:
    """Title, unit, and a description; that of a family is in the words of the table."""
    assert len(board(name)["description"]) > 40
    for panel in panels(name):
        unit = panel["fieldConfig"]["defaults"]["unit"]
        assert panel["title"]
        assert unit, panel["title"]
        assert len(panel["description"]) > 40, panel["title"]
        named = re.findall(r"`llm_internals_(\w+)`", panel["description"])
        for metric in (BY_ID[each] for each in named):
            assert metric.normal in panel["description"]
            assert metric.change in panel["description"]


@each_board
def test_a_panel_describes_what_it_asks_for(name: str) -> None:
    """Of the families in its queries at least one is explained below its title."""
    for panel in panels(name):
        asked = {
            SERIES[each].name
            for target in panel["targets"]
            for each, _ in SELECTOR.findall(target["expr"])
            if each in SERIES
        }
        told = set(re.findall(r"`(llm_internals_\w+)`", panel["description"]))
        assert told <= asked, panel["title"]
        assert told or not asked, panel["title"]


@each_board
def test_no_data_source_is_built_in(name: str) -> None:
    """Every query goes where the variable says."""
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels(name):
        assert panel["datasource"] == chosen
        assert [t["datasource"] for t in panel["targets"]] == [chosen] * len(panel["targets"])
    for note in board(name)["annotations"]["list"]:
        assert note["datasource"] == chosen or note.get("builtIn") == 1
        # Grafana reads the one or the other, by its release.
        assert note.get("expr") == note.get("target", {}).get("expr")
    for variable in variables(name).values():
        assert variable.get("datasource", chosen) == chosen


@each_board
def test_one_number_is_of_this_moment(name: str) -> None:
    """What has ended is not shown as if it still were: neither a verdict nor the time it began."""
    for panel in panels(name):
        if panel["type"] in {"stat", "bargauge", "table"}:
            assert [(t["instant"], t["range"]) for t in panel["targets"]] == [(True, False)]
        else:
            assert {(t["instant"], t["range"]) for t in panel["targets"]} == {(False, True)}


def test_heatmaps_of_layers_draw_what_is_below_zero() -> None:
    """Grafana leaves out cells up to a limit, by default all that are not above zero."""
    maps = [p for name in NAMES for p in panels(name) if p["type"] == "heatmap"]
    around_zero = [p for p in maps if "min" in p["options"]["color"]]

    assert around_zero
    for panel in around_zero:
        colours = panel["options"]["color"]
        assert colours["min"] == -colours["max"] < 0
        assert panel["options"]["filterValues"]["le"] < colours["min"]


@each_board
def test_variables_narrow_each_other_and_offer_all(name: str) -> None:
    """Data source, namespace, model and pod are there; each asks within those before it."""
    found = variables(name)
    assert list(found)[:4] == ["datasource", "namespace", "model", "pod"]
    for each in ("namespace", "model", "pod", "layer"):
        if each in found:
            assert found[each]["multi"] is True
            assert found[each]["includeAll"] is True
    before: set[str] = {"datasource"}
    for each, (selector, _) in choices(name).items():
        asked = {a or b for a, b in VARIABLE.findall(selector)}
        assert asked <= before, each
        before.add(each)
    # Families that do not know the model are narrowed by the pods of that model.
    assert "allValue" not in found["pod"]


@each_board
def test_queries_use_variables_that_the_dashboard_has(name: str) -> None:
    """And obey every one of them that says which target it is."""
    for query in queries(name):
        used = {a or b for a, b in VARIABLE.findall(query.expr)}
        assert used <= {*variables(name), *BUILT_IN}, query.id
        for series, matchers in SELECTOR.findall(query.expr):
            labels = {label for label, _, _ in MATCHER.findall(matchers)}
            assert "namespace" in labels, query.id
            is_fleet = "replica_" in series or 'channel="replica"' in matchers
            assert is_fleet or "pod" in labels, query.id


@each_board
def test_queries_are_about_what_is_published(name: str) -> None:
    """Every series is ours or a known one of vLLM's; its labels are those of the table."""
    for query in queries(name):
        found = SELECTOR.findall(query.expr)
        assert found, query.id
        assert re.findall(r"\b(?:llm_internals_|vllm:)\w+", query.expr) == [
            series for series, _ in found if series != "ALERTS"
        ], f"{query.id}: a selector without labels"
        for series, matchers in found:
            assert known(series), f"{query.id}: {series}"
            if series in SERIES:
                labels = {label for label, _, _ in MATCHER.findall(matchers)}
                assert labels <= {*SERIES[series].labels, *OF_THE_TARGET}, query.id


def test_states_are_those_that_there_are() -> None:
    """A selector of a state that is never published would be quiet for ever."""
    levels = set(get_args(SummaryLevel))
    states = {"drift_state": set(ChannelState), "replica_state": set(ChannelState)}
    states |= {"summary_state": levels, "weights": {"complete"}}
    asked = [
        (query.id, SERIES[series].id, values)
        for query in all_queries()
        for series, matchers in SELECTOR.findall(query.expr)
        for label, _, values in MATCHER.findall(matchers)
        if label == "state"
    ]

    assert {family for _, family, _ in asked} == set(states)
    assert [each for each in asked if not set(each[2].split("|")) <= states[each[1]]] == []


@each_board
def test_rates_are_over_the_right_time(name: str) -> None:
    """A rate over $__rate_interval alone, what is over all of the time shown over $__range."""
    for query in queries(name):
        for function, window in re.findall(r"\b(\w+)\([^()]*\[([^\]]*)\]", query.expr):
            whole = dict.fromkeys(("increase", "max_over_time"), "$__range")
            wanted = {"rate": "$__rate_interval", **whole}
            assert wanted[function] == window, query.id
        counted = query.expr.count("[")
        assert counted == len(re.findall(r"\b(?:rate|increase|max_over_time)\(", query.expr)), (
            query.id
        )


@each_board
def test_nothing_is_made_up_where_there_is_no_data(name: str) -> None:
    """No vector(), absent() or `or 0`: an empty panel is empty."""
    for query in queries(name):
        assert not re.search(r"\b(?:vector|absent|absent_over_time)\(", query.expr), query.id
        assert not re.search(r"\bor\s+(?:on\s*\(\s*\)|\d+\s*(?:$|\)))", query.expr), query.id


@each_board
def test_panels_stand_beside_each_other(name: str) -> None:
    """None lies on another, none reaches out of the grid, and each line of panels is full."""
    cells: dict[tuple[int, int], str] = {}
    for panel in board(name)["panels"]:
        at = panel["gridPos"]
        assert 0 <= at["x"] < at["x"] + at["w"] <= 24, panel["title"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in cells, f"{panel['title']} on {cells[x, y]}"
                cells[x, y] = panel["title"]
    deepest = max(y for _, y in cells)
    assert [(x, y) for y in range(deepest + 1) for x in range(24) if (x, y) not in cells] == []


def test_every_family_is_on_some_dashboard() -> None:
    """A family that nobody looks at is not worth its series."""
    shown = {metric.id for query in all_queries() for metric in query.families}

    assert sorted(set(BY_ID) - shown) == []


def test_links_lead_somewhere() -> None:
    """Runbooks are files of ours, dashboards are ours by their uid."""
    uids = {board(name)["uid"] for name in NAMES}
    urls = [url for name in NAMES for url in _urls(board(name))]
    runbooks = [url for url in urls if url.endswith(".md")]
    filled = [url.replace("${__data.fields.Alert}", "LLMInternalsTapDead") for url in runbooks]

    assert filled
    for url in filled:
        stem = RUNBOOK.search(url)
        assert stem, url
        assert (ROOT / "docs" / "runbooks" / f"{stem[1]}.md").exists(), url
    for url in urls:
        if url.startswith("/d/"):
            assert re.split(r"[/?]", url)[2] in uids


def test_every_alert_has_a_panel_that_leads_to_its_runbook() -> None:
    """Whoever looks at a panel finds what to do; the table of alerts on the overview has all."""
    linked = {
        stem[1]
        for name in NAMES
        for url in _urls(board(name))
        if (stem := RUNBOOK.search(url)) is not None
    }
    pages = {path.stem for path in (ROOT / "docs" / "runbooks").glob("LLM*.md")}

    assert pages - linked == set()


def test_the_first_row_of_the_overview_is_the_answer() -> None:
    """One line of panels under the question, each with one number, before anything else."""
    first, *others = board("overview")["panels"]
    rows = [panel["id"] for panel in others if panel["type"] == "row"]
    answer = [panel for panel in others if panel["id"] < rows[0]]

    assert first["type"] == "row"
    assert "as usual" in first["title"]
    assert answer[0]["title"] == "As usual?"
    assert len({panel["gridPos"]["y"] for panel in answer}) == 1
    assert all(a["id"] < b["id"] for a, b in pairwise(others))


def _urls(whole: Any) -> list[str]:
    if isinstance(whole, dict):
        own = [whole["url"]] if whole.get("url") else []
        return own + [url for each in whole.values() for url in _urls(each)]
    return [url for each in whole for url in _urls(each)] if isinstance(whole, list) else []
