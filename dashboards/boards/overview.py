"""Overview: whether the model behaves as usual, and if not, since when and in which layers."""

from dashboards.panels import (
    GREEN,
    PAGE,
    RED,
    STATE_WORDS,
    STATES,
    SUMMARY,
    TICKET,
    Ask,
    Text,
    about,
    bars,
    layers,
    lines,
    number,
    rows,
    states,
)
from dashboards.queries import (
    ALERTS,
    RANGE,
    coded,
    equals,
    increase,
    largest,
    mean,
    quantile,
    rate,
    series,
    smallest,
    summed,
    unusual,
)
from dashboards.runbooks import url_by_field
from dashboards.shell import Board, Row

_OWN = coded("summary_state", SUMMARY)
# The fleet's verdict comes from a job of its own, which is not among the pods that serve.
_OF_FLEET = {"channel": equals("replica"), "pod": ""}
_REPLICAS = coded("drift_state", {"ticket": TICKET, "page": PAGE}, **_OF_FLEET)
VERDICT = largest(f"{_OWN} or {_REPLICAS}")
_PAGES = ("LLMInternalsTrafficDrift", "LLMInternalsCanaryPage", "LLMInternalsIntegrityPage")
_UNUSUAL = series("summary_state", state='=~"ticket|blind|page"')
_CHANGED = f"{series('summary_since_timestamp_seconds')} and on (job, instance) {_UNUSUAL} == 1"
_DIFFERS = series("drift_since_timestamp_seconds", **_OF_FLEET)
_SINCE = f"1000 * {smallest(f'({_CHANGED}) or {_DIFFERS}')}"
_STREAMS = series("drift_stream_level_ratio", layer='!=""')
_WORST = f"topk(6, {largest(_STREAMS, 'layer', 'pod')})"
_BUILD = series("build")
# Scraped at some time of those shown, and not now: of each pod one series, however often it began.
_GONE = (
    f"count({largest(f'max_over_time({_BUILD}[{RANGE}])', 'namespace', 'pod')}) "
    f"- count({largest(_BUILD, 'namespace', 'pod')})"
)

_ANSWER = Row(
    "Is the model behaving as usual?",
    (
        number(
            about(
                "As usual?",
                "summary_state",
                also="The worst of all pods shown, and of the fleet. **as usual**: what compares "
                "with something known finds nothing. **learning**: nothing judges yet. "
                "**ticket**: look in working hours. **blind**: telemetry is not to be trusted. "
                "**page**: look now. Sidecars that are gone are counted apart.",
                runbooks=("LLMInternalsSidecarGone", "LLMInternalsTapDead"),
            ),
            "none",
            Ask(VERDICT),
            words=STATE_WORDS,
            no_value="no sidecar is scraped",
            has_background=True,
        ),
        number(
            about(
                "If not: since",
                "summary_since_timestamp_seconds",
                "drift_since_timestamp_seconds",
                also="When the change began, as the detectors estimate it; the earliest of all.",
                runbooks=_PAGES,
            ),
            "dateTimeFromNow",
            Ask(_SINCE),
            span=3,
            no_value="no time known",
        ),
        bars(
            about(
                "If not: in which layers",
                "drift_stream_level_ratio",
                also="The layers nearest to an alarm, each of one pod. 100 % is the limit: from "
                "there on a layer alarms.",
            ),
            "percentunit",
            Ask(_WORST, "layer {{layer}} {{pod}}"),
            span=6,
        ),
        number(
            about(
                "Sidecars gone",
                "build",
                also="Those that were scraped within the time shown and are not now: of their pods "
                "nobody says whether the model behaves as usual. After a rollout the pods it "
                "replaced are among them.",
                runbooks=("LLMInternalsSidecarGone",),
            ),
            "none",
            Ask(_GONE),
            span=3,
            steps=((None, GREEN), (1, RED)),
            no_value="all",
        ),
        number(
            about("Taps live", "tap_live", runbooks=("LLMInternalsTapDead",)),
            "percentunit",
            Ask(f"avg({series('tap_live')})"),
            span=2,
            steps=((None, RED), (1, GREEN)),
            no_value="no engine is heard",
        ),
        number(
            about(
                "NaN and Inf", "nonfinite_values", runbooks=("LLMInternalsNonFiniteActivations",)
            ),
            "short",
            Ask(increase(series("nonfinite_values", layer=""))),
            span=3,
            steps=((None, GREEN), (1e-9, RED)),
        ),
        number(
            about("Tokens generated", "generated_tokens"),
            "suffix: /s",
            Ask(rate(series("generated_tokens"))),
            span=3,
        ),
    ),
)

_WHEN = Row(
    "Since when?",
    (
        states(
            about("As usual, by pod", "summary_state"),
            Ask(largest(_OWN, "pod"), "{{pod}}"),
            height=5,
        ),
        states(
            about(
                "What each drift channel says",
                "drift_state",
                also="canary: known-safe prompts. traffic, mix, tail: requests, beside the "
                "baseline. integrity: rules that must never break.",
                runbooks=(*_PAGES, "LLMInternalsDriftTicket"),
            ),
            Ask(largest(coded("drift_state", STATES), "channel", "pod"), "{{channel}} {{pod}}"),
            span=14,
        ),
        rows(
            Text(
                "Alerts",
                "What dashboards/rules.yml has to say now; empty when all is well. The name of "
                "an alert leads to its runbook.",
            ),
            ALERTS,
            {
                "alertname": "Alert",
                "alertstate": "State",
                "severity": "Severity",
                "channel": "Channel",
                "pod": "Pod",
            },
            span=10,
            links={"Alert": ("Runbook", url_by_field("Alert"))},
        ),
    ),
)

_WHERE = Row(
    "In which layers?",
    (
        layers(
            about(
                "Residual stream, compared with its mean over the time shown",
                "residual_rms",
                also="Red is above, blue below: 0.1 is 10 %. A change that began within the time "
                "shown is an edge; widen the time until its beginning is inside.",
            ),
            "percentunit",
            unusual("residual_rms", "layer", phase='="decode"', position='="rest"', layer=""),
            around_zero=0.25,
        ),
        layers(
            about(
                "Canary: distance from its reference",
                "canary_layer_deviation_ratio",
                runbooks=("LLMInternalsCanaryPage", "LLMInternalsCanaryStalled"),
            ),
            "none",
            largest(series("canary_layer_deviation_ratio", layer=""), "layer"),
        ),
    ),
)

_SERVED = Row(
    "How sure, how fast",
    (
        lines(
            about(
                "How sure the model is", "token_top1_probability_ratio", "token_top1_margin_ratio"
            ),
            "percentunit",
            [
                Ask(mean("token_top1_probability_ratio"), "probability of the likeliest token"),
                Ask(mean("token_top1_margin_ratio"), "margin to the second"),
            ],
            span=8,
            min=0,
            max=1,
        ),
        lines(
            about("Time to first token", "time_to_first_token_seconds"),
            "s",
            [
                Ask(
                    quantile(q, series("time_to_first_token_seconds", "_bucket")),
                    f"p{100 * q:g}",
                    has_exemplars=True,
                )
                for q in (0.5, 0.99)
            ],
            span=8,
            min=0,
        ),
        lines(
            about("Load", "requests_running", "requests_waiting"),
            "short",
            [
                Ask(summed(series("requests_running")), "running"),
                Ask(summed(series("requests_waiting")), "waiting"),
            ],
            span=8,
            min=0,
        ),
    ),
)

BOARD = Board(
    "overview",
    "LLM internals / Overview",
    "Is the model behaving as usual, and if not, since when and in which layers? Read it from the "
    "top; the other dashboards of this tag go deeper.",
    (_ANSWER, _WHEN, _WHERE, _SERVED),
)
