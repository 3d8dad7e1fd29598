"""What every dashboard has around its panels: variables, annotations, links, ids.

Guarantees: the variables narrow each other from left to right and always offer All; ids of panels
and of dashboards are fixed, so that a link or an edit of last week still means the same.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from dashboards.panels import DATASOURCE
from dashboards.queries import FIRING, series
from dashboards.sdk import Builder, dashboard, dashboard_model, prometheus

TAG: Final = "llm-internals"
SCHEMA_VERSION: Final = 41  # of Grafana 11 and 12; older ones import it, newer ones migrate it
TRACES: Final = "http://localhost:6006"

_ANY: Final = {"namespace": "", "pod": ""}
_IN_NAMESPACE: Final = {"namespace": '=~"$namespace"', "pod": ""}
_PODS: Final = (
    '{__name__=~"llm_internals_(build|engine)_info", namespace=~"$namespace", model_name=~"$model"}'
)


class Row(NamedTuple):
    """Panels under one heading; their spans fill lines of 24."""

    title: str
    panels: Sequence[Builder[Any]]


class Board(NamedTuple):
    """One dashboard.

    name: of its file, and the end of its uid. variables: those beside datasource to pod.
    """

    name: str
    title: str
    about: str
    rows: Sequence[Row]
    variables: Sequence[str] = ()
    since: str = "now-3h"


def build(board: Board) -> dashboard_model.Dashboard:
    """The whole dashboard, ready to be encoded."""
    made = dashboard.Dashboard(board.title).uid(f"{TAG}-{board.name}").description(board.about)
    made.tags([TAG]).editable().time(board.since, "now").refresh("30s").timezone("browser")
    made.tooltip(dashboard_model.DashboardCursorSync.CROSSHAIR)
    made.variables([*_variables(board.variables)])
    made.annotations([_built_in(), _alerts(), _loads()])
    made.links([*_links()])
    for row in board.rows:
        made.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            made.with_panel(panel)
    whole = made.build()
    whole.schema_version = SCHEMA_VERSION
    for number, placed in enumerate(whole.panels or [], start=1):
        placed.id_val = number
    return whole


def _variables(others: Iterable[str]) -> Iterable[Builder[dashboard_model.VariableModel]]:
    yield (
        dashboard.DatasourceVariable("datasource")
        .label("Data source")
        .type("prometheus")
        .description("The Prometheus that scrapes the sidecars.")
    )
    # Without `all_value`, All of pods is the pods of the model chosen, which families have that do
    # not know the model. Of the others, All is everything, series without that label included:
    # so All of models has the pods of sidecars that hear no engine, too.
    yield _query("namespace", "Namespace", "namespace", series("build", **_ANY)).all_value(".*")
    engines = series("engine", **_IN_NAMESPACE, model_name="")
    yield _query("model", "Model", "model_name", engines).all_value(".*")
    yield _query("pod", "Pod", "pod", _PODS)
    for name in others:
        yield _OTHERS[name]()
    yield (
        dashboard.TextBoxVariable("traces")
        .label("Trace backend")
        .default_value(TRACES)
        .hide(dashboard_model.VariableHide.HIDE_VARIABLE)
        .description("Address that the link Traces leads to; see docs/dashboards.md.")
    )


def _query(name: str, label: str, of: str, selector: str) -> dashboard.QueryVariable:
    wanted = f"label_values({selector}, {of})"
    asked: dict[str, object] = {"query": wanted, "refId": f"variable-{name}"}
    variable = dashboard.QueryVariable(name).label(label).query(asked).definition(wanted)
    variable.datasource(DATASOURCE).multi(True).include_all(True)
    variable.refresh(dashboard_model.VariableRefresh.ON_TIME_RANGE_CHANGED)
    variable.sort(dashboard_model.VariableSort.ALPHABETICAL_ASC)
    return variable.current(dashboard_model.VariableOption(text=["All"], value=["$__all"]))


def _layer() -> dashboard.QueryVariable:
    variable = _query("layer", "Layer", "layer", series("nonfinite_values", layer=""))
    return variable.all_value(".*").sort(dashboard_model.VariableSort.NUMERICAL_ASC)


def _phase() -> dashboard.QueryVariable:
    variable = _query("phase", "Phase", "phase", series("observed_tokens"))
    variable.multi(False).include_all(False).sort(dashboard_model.VariableSort.ALPHABETICAL_ASC)
    return variable.current(dashboard_model.VariableOption(text="decode", value="decode"))


_OTHERS: Final = {"layer": _layer, "phase": _phase}


def _built_in() -> dashboard.AnnotationQuery:
    grafana = DATASOURCE.__class__(type_val="grafana", uid="-- Grafana --")
    made = dashboard.AnnotationQuery().name("Annotations & Alerts").datasource(grafana)
    return made.built_in(1).enable(True).hide(True).icon_color("blue").type("dashboard")


def _alerts() -> dashboard.AnnotationQuery:
    text = "{{severity}} {{channel}} {{source}} {{replica}} {{pod}}"
    return _annotation("Alerts", FIRING, "red", "{{alertname}}", text)


def _loads() -> dashboard.AnnotationQuery:
    loaded = series("weights", state='="complete"')
    new = f"{loaded} unless {loaded} offset 5m"
    return _annotation("Model loaded", new, "blue", "Model loaded", "{{pod}} {{digest}}")


def _annotation(
    name: str, expr: str, colour: str, title: str, text: str
) -> dashboard.AnnotationQuery:
    made = dashboard.AnnotationQuery().name(name).datasource(DATASOURCE).enable(True)
    made.target(prometheus.Dataquery().expr(expr).ref_id("Anno").datasource(DATASOURCE))
    return made.expr(expr).icon_color(colour).title_format(title).text_format(text).step("60s")


def _links() -> Iterable[dashboard.DashboardLink]:
    types = dashboard_model.DashboardLinkType
    others = dashboard.DashboardLink("LLM internals").type(types.DASHBOARDS).tags([TAG])
    yield others.as_dropdown(True).include_vars(True).keep_time(True)
    yield _link("Traces", "${traces}", "Traces of single requests, drifted ones above all")


def _link(title: str, url: str, tooltip: str) -> dashboard.DashboardLink:
    made = dashboard.DashboardLink(title).type(dashboard_model.DashboardLinkType.LINK).url(url)
    return made.icon("external link").tooltip(tooltip).target_blank(True)
