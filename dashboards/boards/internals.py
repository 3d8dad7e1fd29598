"""Internals: what happens inside the model, layer by layer, head group by group, token by token."""

from typing import Any

from dashboards.panels import Ask, about, distribution, layers, lines, number, unit_of
from dashboards.queries import (
    OF_THE_PHASE,
    REST,
    by_adapter,
    increase,
    largest,
    mean,
    quantile,
    rate,
    series,
    share,
    unusual,
)
from dashboards.sdk import Builder
from dashboards.shell import Board, Row

_ALL_LAYERS = {**REST, "layer": ""}
_LOGSUMEXP = f"avg by (adapter) ({series('token_logsumexp_window_mean')})"
_SELECTED = "Left out by default; SIDECAR_METRICS_FILE asks for it."


def _residual(family: str, title: str) -> list[Builder[Any]]:
    """As it is, as it changed, and the layers that were picked."""
    return [
        layers(about(title, family), unit_of(family), mean(family, "layer", **REST), span=8),
        layers(
            about(
                f"{title}, compared with its mean over the time shown",
                family,
                also="Red is above, blue below: 0.1 is 10 %.",
            ),
            "percentunit",
            unusual(family, "layer", **REST),
            span=8,
            around_zero=0.25,
        ),
        lines(
            about(f"{title}, by layer", family),
            unit_of(family),
            [Ask(mean(family, "layer", **REST), "layer {{layer}}")],
            span=8,
            height=10,
        ),
    ]


def _attention(family: str, title: str, unit: str) -> Builder[Any]:
    return layers(
        about(title, family), unit, mean(family, "layer", **OF_THE_PHASE), span=6, height=9
    )


_RESIDUAL = Row(
    "Residual stream",
    (
        *_residual("residual_rms", "Size (RMS)"),
        *_residual("residual_peak_ratio", "Peak over RMS"),
        *_residual("block_influence_ratio", "Block influence"),
    ),
)
_EXTREMES = Row(
    "Extremes",
    (
        *(
            lines(
                about(title, family),
                unit_of(family),
                [Ask(largest(series(family, **_ALL_LAYERS), "pod"), "{{pod}}")],
                span=6,
            )
            for family, title in (
                ("residual_rms_window_max", "Largest RMS"),
                ("residual_peak_window_max_ratio", "Largest peak over RMS"),
                ("block_influence_window_max_ratio", "Largest block influence"),
            )
        ),
        number(
            about("NaN and Inf, by layer", "nonfinite_values"),
            "short",
            Ask(increase(series("nonfinite_values"), "layer"), "layer {{layer}}"),
            span=6,
            height=8,
            steps=((None, "green"), (1e-9, "red")),
        ),
    ),
)
_ATTENTION = Row(
    "Attention, mean over heads of sampled rows",
    (
        _attention("attention_entropy_ratio", "Attention entropy", "percentunit"),
        _attention("attention_effective_tokens", "Effective tokens", "short"),
        _attention("attention_sink_mass_ratio", "Weight on the first tokens", "percentunit"),
        _attention("attention_max_weight_ratio", "Largest weight", "percentunit"),
    ),
)
_CONFIDENCE = Row(
    "Confidence in generated tokens",
    (
        *(
            lines(
                about(title, family),
                unit,
                [Ask(by_adapter(mean(family, "adapter")), "{{adapter}}")],
                span=6,
            )
            for family, title, unit in (
                ("token_entropy_nats", "Token entropy", unit_of("token_entropy_nats")),
                ("token_surprisal_nats", "Surprisal", unit_of("token_surprisal_nats")),
                ("token_top1_probability_ratio", "Likeliest token", "percentunit"),
                ("token_top1_margin_ratio", "Margin to the second", "percentunit"),
            )
        ),
    ),
)
_REQUESTS = Row(
    "Confidence, request by request",
    (
        distribution(
            about("Requests by how sure the model was", "request_confidence_ratio"),
            "percentunit",
            rate(series("request_confidence_ratio", "_bucket"), "le"),
        ),
        lines(
            about("The least sure requests", "request_confidence_ratio"),
            "percentunit",
            [
                Ask(
                    quantile(q, series("request_confidence_ratio", "_bucket")),
                    f"p{100 * q:g}",
                    has_exemplars=True,
                )
                for q in (0.05, 0.25, 0.5)
            ],
            min=0,
            max=1,
        ),
    ),
)
_LOGITS = Row(
    "Logits and your own probes",
    (
        lines(
            about("Log-sum-exp of the logits", "token_logsumexp_window_mean"),
            "none",
            [Ask(by_adapter(_LOGSUMEXP), "{{adapter}}")],
            span=6,
        ),
        lines(
            about("Probe scores", "probe_score_window_mean"),
            "none",
            [Ask(f"avg by (probe) ({series('probe_score_window_mean')})", "{{probe}}")],
            span=6,
        ),
        lines(
            about("Probes: share above a calibration quantile", "probe_exceedances"),
            "percentunit",
            [
                Ask(
                    share(
                        rate(series("probe_exceedances"), "probe", "calibration_quantile"),
                        rate(series("probe_scored_requests"), "probe"),
                        "probe",
                    ),
                    "{{probe}} above {{calibration_quantile}}",
                )
            ],
            span=6,
            min=0,
        ),
        lines(
            about("Probes: requests scored", "probe_scored_requests"),
            "suffix: /s",
            [Ask(rate(series("probe_scored_requests"), "probe"), "{{probe}}")],
            span=6,
            min=0,
        ),
    ),
)
_ROUTERS = Row(
    "Routers of experts (empty for a dense model)",
    (
        layers(
            about("Gate entropy", "router_gate_entropy_ratio"),
            "percentunit",
            mean("router_gate_entropy_ratio", "layer", **OF_THE_PHASE),
            span=6,
        ),
        layers(
            about("Imbalance", "router_imbalance_ratio"),
            "none",
            largest(series("router_imbalance_ratio"), "layer"),
            span=6,
        ),
        layers(
            about("Margin of the last expert chosen", "router_topk_margin_ratio", also=_SELECTED),
            "none",
            mean("router_topk_margin_ratio", "layer", **OF_THE_PHASE),
            span=6,
        ),
        layers(
            about(
                "Share of rows by expert, of all layers shown", "router_expert_rows", also=_SELECTED
            ),
            "percentunit",
            share(rate(series("router_expert_rows"), "expert"), rate(series("router_expert_rows"))),
            span=6,
            legend="{{expert}}",
        ),
    ),
)
BOARD = Board(
    "internals",
    "LLM internals / Inside the model",
    "Every signal of the model's inside over time, by layer. Means are over token rows of one "
    "phase, without the first four positions, which are attention sinks.",
    (_RESIDUAL, _EXTREMES, _ATTENTION, _CONFIDENCE, _REQUESTS, _LOGITS, _ROUTERS),
    variables=("phase", "layer"),
)
