"""Drift: what each channel says and why, the canary, the baseline, and replicas compared."""

from dashboards.panels import GREEN, GREY, RED, STATES, Ask, about, layers, lines, number, states
from dashboards.panels import rows as table
from dashboards.queries import coded, increase, largest, rate, series, smallest, summed
from dashboards.shell import Board, Row

_PAGES = ("LLMInternalsTrafficDrift", "LLMInternalsCanaryPage", "LLMInternalsIntegrityPage")
_TICKETS = ("LLMInternalsDriftTicket", "LLMInternalsChannelNotArmed")
_INTERNALS = "/d/llm-internals-internals?var-layer=${__data.fields.Layer}&${__url_time_range}"
_STREAMS = "drift_stream_level_ratio"
_TOLD_BY = ("channel", "stream", "layer", "side", "pod")
_NEAREST = f"sort_desc(topk(20, {largest(series(_STREAMS), *_TOLD_BY)}))"
_DIFFERS = smallest(series("replica_since_timestamp_seconds"), "replica")

_CHANNELS = Row(
    "Channels",
    (
        states(
            about("State", "drift_state", runbooks=(*_PAGES, *_TICKETS)),
            Ask(largest(coded("drift_state", STATES), "channel", "pod"), "{{channel}} {{pod}}"),
            span=12,
        ),
        lines(
            about("Evidence, as a share of the limit", "drift_level_ratio"),
            "percentunit",
            [Ask(largest(series("drift_level_ratio"), "channel", "pod"), "{{channel}} {{pod}}")],
            min=0,
            limit=1.0,
        ),
    ),
)
_STREAM = Row(
    "Which layers, which signals",
    (
        layers(
            about("Evidence by layer", _STREAMS, also="The nearest stream of each layer."),
            "percentunit",
            largest(series(_STREAMS, layer='!=""'), "layer"),
        ),
        table(
            about(
                "Streams nearest to an alarm",
                _STREAMS,
                also="A stream is one signal of one layer, phase and moment; side says whether it "
                "is above or below what is usual.",
            ),
            _NEAREST,
            {
                "stream": "Stream",
                "layer": "Layer",
                "side": "Side",
                "Value": "Share of the limit",
                "channel": "Channel",
                "pod": "Pod",
            },
            height=10,
            links={"Layer": ("Inside the model, this layer", _INTERNALS)},
        ),
    ),
)
_CANARY = Row(
    "Canary: known-safe prompts",
    (
        layers(
            about(
                "Distance from the reference, by layer",
                "canary_layer_deviation_ratio",
                runbooks=("LLMInternalsCanaryPage",),
            ),
            "none",
            largest(series("canary_layer_deviation_ratio"), "layer"),
        ),
        lines(
            about("Rounds", "canary_rounds", runbooks=("LLMInternalsCanaryStalled",)),
            "short",
            [Ask(increase(series("canary_rounds"), "outcome"), "{{outcome}}")],
            span=6,
            height=10,
            min=0,
        ),
        table(
            about("What is served", "weights"),
            series("weights"),
            {"pod": "Pod", "source": "Source", "state": "State", "digest": "Weights"},
            span=6,
            height=10,
        ),
    ),
)
_TRAFFIC = Row(
    "Traffic: windows beside the baseline",
    (
        lines(
            about("Windows", "drift_windows"),
            "short",
            [Ask(increase(series("drift_windows"), "outcome"), "{{outcome}}")],
            span=5,
            min=0,
        ),
        lines(
            about("Requests", "drift_requests", runbooks=("LLMInternalsDriftRequestsLeftOut",)),
            "suffix: /s",
            [Ask(rate(series("drift_requests"), "outcome"), "{{outcome}}")],
            span=5,
            min=0,
        ),
        table(
            about("Baseline", "baseline", runbooks=("LLMInternalsBaselineMissing",)),
            series("baseline"),
            {"pod": "Pod", "digest": "Baseline", "weights_digest": "Weights", "release": "Of"},
            span=6,
        ),
        number(
            about("Age of the baseline", "baseline_age_seconds"),
            "s",
            Ask(largest(series("baseline_age_seconds"))),
            height=8,
            no_value="no baseline",
        ),
        number(
            about(
                "Fetched as asked",
                "baseline_fetch_success",
                runbooks=("LLMInternalsBaselineNotFetched",),
            ),
            "none",
            Ask(smallest(series("baseline_fetch_success"))),
            height=8,
            words={1: ("yes", GREEN), 0: ("no", RED)},
            no_value="none is fetched",
        ),
    ),
)
_JUDGING = Row(
    "Whether drift is judged at all",
    (
        number(
            about("Preset", "drift"),
            "none",
            Ask(summed(series("drift"), "preset"), "{{preset}}"),
            span=6,
        ),
        number(
            about(
                "Last judged",
                "drift_judged_timestamp_seconds",
                runbooks=("LLMInternalsDriftJudgingStuck",),
            ),
            "s",
            Ask(f"time() - min({series('drift_judged_timestamp_seconds')})"),
            span=6,
            steps=((None, GREEN), (60, RED)),
        ),
        number(
            about("Pages raised", "drift_pages", runbooks=_PAGES),
            "short",
            Ask(summed(series("drift_pages"), "channel"), "{{channel}}"),
            span=6,
            steps=((None, GREY), (1, RED)),
        ),
        number(
            about("Exceptions", "drift_errors", runbooks=("LLMInternalsDriftChannelFailing",)),
            "short",
            Ask(summed(series("drift_errors"), "channel"), "{{channel}}"),
            span=6,
            steps=((None, GREEN), (1, RED)),
        ),
    ),
)
_REPLICAS = Row(
    "Replicas beside each other (sidecar fleet)",
    (
        states(
            about("Replicas", "replica_state", runbooks=("LLMInternalsReplicaDiffers",)),
            Ask(largest(coded("replica_state", STATES), "replica"), "{{replica}}"),
            span=12,
        ),
        lines(
            about("Evidence of replicas, as a share of the limit", "replica_level_ratio"),
            "percentunit",
            [Ask(largest(series("replica_level_ratio"), "replica"), "{{replica}}")],
            min=0,
            limit=1.0,
        ),
        table(
            about("Streams in which a replica differs", "replica_stream_level_ratio"),
            f"sort_desc({series('replica_stream_level_ratio')})",
            {
                "replica": "Replica",
                "stream": "Stream",
                "layer": "Layer",
                "side": "Side",
                "Value": "Share of the limit",
            },
        ),
        number(
            about("Differs since", "replica_since_timestamp_seconds"),
            "dateTimeFromNow",
            Ask(f"1000 * {_DIFFERS}", "{{replica}}"),
            height=8,
            no_value="none differs",
        ),
        states(
            about("Answering", "replica_answering", runbooks=("LLMInternalsReplicaNotAnswering",)),
            Ask(largest(series("replica_answering"), "replica"), "{{replica}}"),
            span=8,
            words={1: ("answers", GREEN), 0: ("does not", RED)},
        ),
        lines(
            about("Windows compared", "replica_windows"),
            "short",
            [Ask(increase(series("replica_windows"), "outcome"), "{{outcome}}")],
            span=6,
            min=0,
        ),
        lines(
            about("Answers refused", "replica_refused"),
            "short",
            [Ask(increase(series("replica_refused"), "cause"), "{{cause}}")],
            span=6,
            min=0,
        ),
        number(
            about("Routing: 0 is by chance", "replica_routing_association_ratio"),
            "none",
            Ask(largest(series("replica_routing_association_ratio"))),
            height=8,
            steps=((None, GREEN), (0.05, RED)),
        ),
        number(
            about("Last compared", "replica_judged_timestamp_seconds"),
            "s",
            Ask(f"time() - max({series('replica_judged_timestamp_seconds')})"),
            height=8,
        ),
        number(
            about(
                "The fleet job itself",
                "replica_discovery_success",
                "replica_errors",
                runbooks=("LLMInternalsReplicaDiscoveryFailing", "LLMInternalsFleetJobGone"),
            ),
            "none",
            Ask(
                f"min({series('replica_discovery_success')}) - "
                f"clamp_max(max({series('replica_errors')}), 1)"
            ),
            height=8,
            words={1: ("works", GREEN), 0: ("fails", RED), -1: ("fails", RED)},
        ),
    ),
)
BOARD = Board(
    "drift",
    "LLM internals / Drift",
    "What each drift channel says, since when, in which layers and signals; the canary; the "
    "baseline; replicas beside each other. The states are those that the detectors latched.",
    (_CHANNELS, _STREAM, _CANARY, _TRAFFIC, _JUDGING, _REPLICAS),
    variables=("layer",),
    since="now-6h",
)
