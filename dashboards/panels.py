"""How an answer is drawn: one function for each form of panel, with the conventions of all.

Guarantees: every panel has a unit and a description, and the description of a family says what is
normal and what a change means, in the words of the table of signals; colours say how bad something
is nowhere but where the detectors or the rules say so; no panel names a data source of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from dashboards.runbooks import url_of
from dashboards.sdk import (
    Builder,
    bargauge,
    common,
    common_model,
    dashboard,
    dashboard_model,
    heatmap,
    heatmap_model,
    prometheus,
    prometheus_model,
    stat,
    statetimeline,
    table,
    timeseries,
)
from sidecar.wire.signals import BY_ID, Metric

P = TypeVar("P", bound=Any)
DATASOURCE: Final = common_model.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, BLUE, YELLOW, ORANGE, RED, GREY = "green", "blue", "yellow", "orange", "red", "text"

# A state, its code in a query, what it is called, and its colour; the worst has the highest code.
AS_USUAL, COLLECTING, TICKET, BLIND, PAGE = 1, 2, 3, 4, 5
STATES: Final = {"armed": AS_USUAL, "collecting": COLLECTING, "ticket": TICKET, "page": PAGE}
SUMMARY: Final = {
    "ok": AS_USUAL,
    "collecting": COLLECTING,
    "ticket": TICKET,
    "blind": BLIND,
    "page": PAGE,
}
STATE_WORDS: Final = {
    AS_USUAL: ("as usual", GREEN),
    COLLECTING: ("learning", BLUE),
    TICKET: ("ticket", ORANGE),
    BLIND: ("blind", "purple"),
    PAGE: ("page", RED),
}
UNITS: Final = {
    "seconds": "s",
    "nats": "suffix: nats",
    "tokens": "short",
    "requests": "short",
    "ratio": "none",
    "": "none",
}
# A heatmap draws a cell for each pixel that it gets, and more than these no eye tells apart.
MAX_COLUMNS: Final = 240
HUGE: Final = 1e18


class Ask(NamedTuple):
    """One query of a panel.

    legend: name of each series, with labels in double braces.
    is_now: only the value of this moment is wanted; one that has ended is not shown as if it were.
    has_exemplars: traces of single requests are drawn too.
    """

    expr: str
    legend: str = ""
    is_now: bool = False
    is_table: bool = False
    has_exemplars: bool = False
    is_buckets: bool = False


class Text(NamedTuple):
    """Words of a panel: title, description, and the runbooks of the alerts about what it shows."""

    title: str
    about: str
    runbooks: tuple[str, ...] = ()


def about(title: str, *families: str, also: str = "", runbooks: Sequence[str] = ()) -> Text:
    """What the table of signals says of these families, and `also`."""
    told = [also] if also else []
    told += [_described(BY_ID[family]) for family in families]
    return Text(title, "\n\n".join(told), tuple(runbooks))


def _described(metric: Metric) -> str:
    normal, change = f"**Normal:** {metric.normal}", f"**A change means:** {metric.change}"
    return "\n\n".join((metric.help, normal, change, f"`{metric.name}`"))


def unit_of(family: str) -> str:
    """Grafana's unit of a family."""
    return UNITS[BY_ID[family].unit]


def lines(
    text: Text, unit: str, asks: Sequence[Ask], span: int = 12, height: int = 8, **options: Any
) -> timeseries.Panel:
    """Lines over time, with a legend below.

    max, min: ends of the axis. is_stacked: areas on one another.
    """
    panel = _common(timeseries.Panel(), text, unit, asks, span, height)
    panel.line_width(1).fill_opacity(0).span_nulls(False)
    panel.show_points(common_model.VisibilityMode.NEVER)
    panel.tooltip(
        common.VizTooltipOptions()
        .mode(common_model.TooltipDisplayMode.MULTI)
        .sort(common_model.SortOrder.DESCENDING)
    )
    panel.legend(
        common.VizLegendOptions()
        .display_mode(common_model.LegendDisplayMode.LIST)
        .placement(common_model.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs([])
    )
    if options.get("is_stacked"):
        panel.fill_opacity(40).stacking(
            common.StackingConfig().mode(common_model.StackingMode.NORMAL).group("A")
        )
    if "limit" in options:
        panel.thresholds(_steps((None, GREEN), (options["limit"], RED)))
        panel.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_model.GraphThresholdsStyleMode.DASHED)
        )
    return _bounded(panel, options)


def number(
    text: Text,
    unit: str,
    ask: Ask,
    span: int = 4,
    height: int = 5,
    *,
    steps: Sequence[tuple[float | None, str]] = ((None, GREY),),
    words: Mapping[int, tuple[str, str]] | None = None,
    no_value: str = "",
    has_background: bool = False,
) -> stat.Panel:
    """The value of this moment, large; `words` in its place where there are some."""
    panel = _common(stat.Panel(), text, unit, [ask._replace(is_now=True)], span, height)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    is_filled = common_model.BigValueColorMode.BACKGROUND
    panel.color_mode(is_filled if has_background else common_model.BigValueColorMode.VALUE)
    panel.graph_mode(common_model.BigValueGraphMode.NONE)
    panel.thresholds(_steps(*steps))
    if words:
        panel.mappings(_mappings(words))
    if no_value:
        panel.no_value(no_value)
    return panel


def bars(
    text: Text, unit: str, ask: Ask, span: int = 8, height: int = 5, limit: float = 1.0
) -> bargauge.Panel:
    """One bar for each series, longest first as the query has them; red from `limit` on."""
    panel = _common(bargauge.Panel(), text, unit, [ask._replace(is_now=True)], span, height)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    panel.orientation(common_model.VizOrientation.HORIZONTAL)
    panel.display_mode(common_model.BarGaugeDisplayMode.BASIC)
    panel.min(0).max(limit * 1.25).thresholds(
        _steps((None, GREEN), (limit / 2, YELLOW), (limit, RED))
    )
    return panel


def layers(
    text: Text,
    unit: str,
    expr: str,
    span: int = 12,
    height: int = 10,
    *,
    around_zero: float | None = None,
    legend: str = "{{layer}}",
) -> heatmap.Panel:
    """Layer by time, one row for each series of `expr`, lowest layer at the bottom.

    around_zero: values from minus this to this, red above and blue below; else from low to high.
    """
    panel = _common(heatmap.Panel(), text, unit, [Ask(expr, legend)], span, height)
    colours = heatmap.HeatmapColorOptions().mode(heatmap_model.HeatmapColorMode.SCHEME).steps(64)
    if around_zero is None:
        colours.scheme("Viridis").reverse(True)
    else:
        colours.scheme("RdBu").reverse(True).min(-around_zero).max(around_zero)
    panel.calculate(False).color(colours).cell_gap(0)
    panel.rows_frame(
        heatmap.RowsHeatmapOptions()
        .layout(common_model.HeatmapCellLayout.AUTO)
        .value(text.title.lower())
    )
    panel.y_axis(heatmap.YAxisConfig().unit("none").axis_label("layer").reverse(False))
    # Else cells of 0 and below would not be drawn, which is half of what is around zero.
    panel.filter_values(heatmap.FilterValueRange().le(-HUGE))
    return _cells(panel, unit)


def distribution(
    text: Text, unit: str, buckets: str, span: int = 12, height: int = 8
) -> heatmap.Panel:
    """Buckets of a classic histogram by time: darker is more requests; traces are diamonds."""
    ask = Ask(buckets, "{{le}}", has_exemplars=True, is_buckets=True)
    panel = _common(heatmap.Panel(), text, unit, [ask], span, height)
    colours = heatmap.HeatmapColorOptions().mode(heatmap_model.HeatmapColorMode.SCHEME).steps(64)
    panel.calculate(False).color(colours.scheme("Viridis").reverse(True)).cell_gap(0)
    panel.y_axis(heatmap.YAxisConfig().unit(unit).axis_label("").reverse(False))
    panel.exemplars_color("rgba(255,120,10,0.9)")
    return _cells(panel, "short")


def states(
    text: Text,
    ask: Ask,
    span: int = 24,
    height: int = 8,
    words: Mapping[int, tuple[str, str]] = STATE_WORDS,
) -> statetimeline.Panel:
    """One bar for each series, coloured by what state it was in."""
    panel = _common(statetimeline.Panel(), text, "none", [ask], span, height)
    panel.mappings(_mappings(words)).merge_values(True).show_value(common_model.VisibilityMode.AUTO)
    panel.thresholds(_steps((None, GREY))).fill_opacity(75).line_width(0).row_height(0.85)
    panel.legend(common.VizLegendOptions().show_legend(False).calcs([]))
    return panel


def rows(
    text: Text,
    expr: str,
    columns: Mapping[str, str],
    span: int = 12,
    height: int = 8,
    *,
    links: Mapping[str, tuple[str, str]] | None = None,
) -> table.Panel:
    """A table with one row for each series.

    columns: heading by label, in this order; `Value` is the number. Labels that are not named are
    not shown. links: title and address by heading.
    """
    ask = Ask(expr, is_now=True, is_table=True)
    panel = _common(table.Panel(), text, "none", [ask], span, height)
    panel.with_transformation(
        dashboard_model.DataTransformerConfig(
            id_val="organize",
            options={
                "indexByName": {label: place for place, label in enumerate(columns)},
                "renameByName": dict(columns),
                "includeByName": dict.fromkeys(columns, True),
            },
        )
    )
    for heading, (title, url) in (links or {}).items():
        value = [{"title": title, "url": url, "targetBlank": True}]
        panel.override_by_name(
            heading, [dashboard_model.DynamicConfigValue(id_val="links", value=value)]
        )
    panel.show_header(True)
    return panel


def _cells(panel: heatmap.Panel, unit: str) -> heatmap.Panel:
    panel.cell_values(heatmap.CellValues().unit(unit)).max_data_points(MAX_COLUMNS)
    panel.show_legend()
    return panel


def _common(panel: P, text: Text, unit: str, asks: Sequence[Ask], span: int, height: int) -> P:
    panel.title(text.title).description(text.about).unit(unit).span(span).height(height)
    panel.datasource(DATASOURCE).targets([*_targets(asks)])
    panel.links([_runbook(alert) for alert in text.runbooks])
    return panel


def _targets(asks: Sequence[Ask]) -> Iterator[Builder[Any]]:
    for place, ask in enumerate(asks):
        query = prometheus.Dataquery().expr(ask.expr).ref_id(chr(ord("A") + place))
        query.datasource(DATASOURCE).editor_mode(prometheus_model.QueryEditorMode.CODE)
        query.legend_format(ask.legend or "__auto").exemplar(ask.has_exemplars)
        query.format(_format(ask))
        yield query.instant() if ask.is_now else query.range()


def _format(ask: Ask) -> prometheus_model.PromQueryFormat:
    formats = prometheus_model.PromQueryFormat
    if ask.is_buckets:
        return formats.HEATMAP
    return formats.TABLE if ask.is_table else formats.TIME_SERIES


def _runbook(alert: str) -> dashboard.DashboardLink:
    link = dashboard.DashboardLink(f"Runbook: {alert}").url(url_of(alert)).target_blank(True)
    return link.type(dashboard_model.DashboardLinkType.LINK)


def _bounded(panel: P, options: Mapping[str, Any]) -> P:
    for name in ("min", "max", "decimals", "no_value"):
        if name in options:
            set_to: Callable[[Any], Any] = getattr(panel, name)
            set_to(options[name])
    return panel


def _steps(*steps: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    made = [dashboard_model.Threshold(value=value, color=colour) for value, colour in steps]
    absolute = dashboard_model.ThresholdsMode.ABSOLUTE
    return dashboard.ThresholdsConfig().mode(absolute).steps(made)


def _mappings(words: Mapping[int, tuple[str, str]]) -> list[Any]:
    results = {
        str(code): dashboard_model.ValueMappingResult(text=word, color=colour, index=place)
        for place, (code, (word, colour)) in enumerate(words.items())
    }
    return [dashboard_model.ValueMap(options=results)]
