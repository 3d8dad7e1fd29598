"""The one table of everything we publish."""

import re

import pytest

from sidecar.wire.signals import (
    BY_ID,
    FAMILY_OF,
    FLEET_METRICS,
    GROUPS,
    LAYER_SIGNALS,
    METRICS,
    POPULATIONS,
    ROWS_OF,
    SUMMARY_OF,
    WINDOW_MAX_OF,
    Kind,
    Metric,
    Phase,
    Position,
)

EVERYTHING = (*METRICS, *FLEET_METRICS)
each_metric = pytest.mark.parametrize("metric", EVERYTHING, ids=lambda metric: metric.id)


def test_ids_and_names_are_unique() -> None:
    """No two families can be mistaken for each other."""
    assert len(EVERYTHING) == len({metric.id for metric in EVERYTHING}) == len(BY_ID)
    assert len(EVERYTHING) == len({metric.name for metric in EVERYTHING})


@each_metric
def test_a_name_is_a_legal_one_in_our_namespace(metric: Metric) -> None:
    """Prefix, lower case, no suffix that Prometheus adds itself."""
    assert re.fullmatch(r"llm_internals_[a-z0-9_]+", metric.name)
    assert not re.search(r"_(total|sum|count|bucket|info|created)$", metric.name)


@each_metric
def test_a_name_ends_in_its_unit(metric: Metric) -> None:
    """OpenMetrics forbids a UNIT line otherwise."""
    assert metric.name.endswith(metric.unit)


@each_metric
def test_labels_are_legal_and_distinct(metric: Metric) -> None:
    """No label is doubled, reserved, or one that Prometheus adds itself."""
    assert len(metric.labels) == len(set(metric.labels))
    for label in metric.labels:
        assert re.fullmatch(r"[a-z][a-z_]*", label)
        assert label not in ("le", "quantile", "job", "instance")


@each_metric
def test_an_operator_is_told_what_to_make_of_it(metric: Metric) -> None:
    """Help, what is normal and what a change means are sentences."""
    for text in (metric.help, metric.normal, metric.change):
        assert text.endswith((".", ")"))
        assert "\n" not in text


def test_every_layer_signal_has_its_families() -> None:
    """A signal that is measured is published, as sum and count and as an extreme."""
    ids = {signal.id for signal in LAYER_SIGNALS}

    assert set(SUMMARY_OF) == set(WINDOW_MAX_OF) == ids
    assert {metric.kind for metric in SUMMARY_OF.values()} == {Kind.SUMMARY}
    assert {metric.kind for metric in WINDOW_MAX_OF.values()} == {Kind.GAUGE}


def test_every_signal_of_a_group_has_its_family() -> None:
    """Attention's mean over heads is of requests alone; of what has no signals, rows count."""
    published = [group for group in GROUPS.values() if group.id != "attention_mean"]

    assert set(FAMILY_OF) == {(group.id, each.id) for group in published for each in group.signals}
    assert set(ROWS_OF) >= {group.id for group in published if not group.signals}
    assert {metric.kind for metric in ROWS_OF.values()} == {Kind.COUNTER}


def test_a_family_has_the_axes_of_its_group_as_labels() -> None:
    """In wire order, after the model and the engine."""
    families = [(group, metric) for (group, _), metric in FAMILY_OF.items()]
    for group, metric in (*families, *ROWS_OF.items()):
        assert metric.labels == ("model_name", "engine", *GROUPS[group].axes)


def test_a_value_that_may_be_negative_is_no_summary() -> None:
    """Its sum can fall, and Prometheus would take that for a restart."""
    kinds = {signal: metric.kind for (_, signal), metric in FAMILY_OF.items()}
    gauges = {signal for signal, kind in kinds.items() if kind is Kind.GAUGE}

    assert gauges == {"logsumexp", "score"}
    assert set(kinds.values()) == {Kind.GAUGE, Kind.SUMMARY}


def test_populations_stand_in_wire_order() -> None:
    """Index = 2 * (phase is decode) + (position is rest)."""
    for index, (phase, position) in enumerate(POPULATIONS):
        assert index == 2 * (phase is Phase.DECODE) + (position is Position.REST)
