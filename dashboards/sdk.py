"""The one door to grafana-foundation-sdk.

Dashboards are written in the classic JSON, which every Grafana from 10 on imports; the package
prefers the newer form and says so by a warning at import, which is no news here.
"""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.builders import (
        bargauge,
        common,
        dashboard,
        heatmap,
        prometheus,
        stat,
        statetimeline,
        table,
        timeseries,
    )
    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models import common as common_model
    from grafana_foundation_sdk.models import dashboard as dashboard_model
    from grafana_foundation_sdk.models import heatmap as heatmap_model
    from grafana_foundation_sdk.models import prometheus as prometheus_model

__all__ = [
    "Builder",
    "JSONEncoder",
    "bargauge",
    "common",
    "common_model",
    "dashboard",
    "dashboard_model",
    "heatmap",
    "heatmap_model",
    "prometheus",
    "prometheus_model",
    "stat",
    "statetimeline",
    "table",
    "timeseries",
]
