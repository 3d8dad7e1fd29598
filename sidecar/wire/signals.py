"""The one table of everything we publish: name, kind, unit, labels, help, what is normal.

Metric names, `# HELP` texts, the JSON API and docs/metrics.md are all derived from this table, so
none of them can disagree. A signal is added here first, then computed in `tap`, then folded.

Three tables: `LAYER_SIGNALS` (one value per token row and decoder layer, measured inside the
model), `GROUPS` (signals measured elsewhere: attention heads, sampled tokens, routers, probes) and
`METRICS` (every Prometheus family, those of the signals included).
"""

from enum import StrEnum
from typing import Final, NamedTuple

PREFIX: Final = "llm_internals_"


class Phase(StrEnum):
    """Which work a token row belongs to. The two populations differ, so they never mix."""

    PREFILL = "prefill"
    DECODE = "decode"


class Position(StrEnum):
    """Position class of a token row.

    The first `NUM_FIRST_POSITIONS` tokens are attention sinks with norms tens of times larger
    (Xiao et al. 2023, arXiv:2309.17453); kept apart, or they dominate every mean.
    """

    FIRST = "first"
    REST = "rest"


NUM_FIRST_POSITIONS: Final = 4

# The population of a row, in wire order: index = 2 * (phase is decode) + (position is rest).
POPULATIONS: Final = tuple((phase, position) for phase in Phase for position in Position)


class LayerSignal(NamedTuple):
    """A non-negative number per token row and layer, published as a sum and a count.

    id: column name, in wire order.
    formula: how one value is computed; h is the residual stream after the layer, x before it.
    """

    id: str
    formula: str


LAYER_SIGNALS: Final = (
    LayerSignal("residual_rms", "sqrt(mean(h^2))"),
    LayerSignal("residual_peak", "max|h| / sqrt(mean(h^2))"),
    LayerSignal("block_influence", "1 - cos(x, h)"),
)


class Transform(StrEnum):
    """What makes the values of a signal additive and comparable: phi in DRIFT's signature."""

    IDENTITY = "identity"
    LOG = "log"
    LOGIT = "logit"


class Signal(NamedTuple):
    """One number per measured row of a group; `formula` says how it is computed."""

    id: str
    formula: str
    transform: Transform


class Group(NamedTuple):
    """Signals that are measured together, over the same cells.

    axes: what tells one cell from another, in wire order; each is a label of the metrics.
    rows: what one counted row is.
    """

    id: str
    axes: tuple[str, ...]
    signals: tuple[Signal, ...]
    rows: str


_ATTENTION: Final = (
    Signal("entropy", "-sum p log p / log n, n positions in sight; 0 at n = 1", Transform.IDENTITY),
    Signal("max_weight", "max p", Transform.LOGIT),
    Signal("effective_tokens", "1 / sum p^2", Transform.LOG),
    Signal(
        "sink_mass", f"sum of p over the first {NUM_FIRST_POSITIONS} positions", Transform.LOGIT
    ),
)
_ROUTER: Final = (
    Signal("gate_entropy", "-sum g log g / log E, g the gate's probabilities", Transform.IDENTITY),
    Signal("topk_margin", "g of the last chosen expert less g of the next", Transform.LOG),
)
_CONFIDENCE: Final = (
    Signal("entropy", "-sum p log p, nats", Transform.LOG),
    Signal("top1_probability", "max p", Transform.LOGIT),
    Signal("top1_margin", "max p less the second largest p", Transform.LOGIT),
    Signal("surprisal", "-log p of the chosen token, nats", Transform.LOG),
    Signal("logsumexp", "log sum exp of the logits", Transform.IDENTITY),
)
_PROBE: Final = (Signal("score", "w . h + b, pooled over the request", Transform.IDENTITY),)

GROUPS: Final = {
    group.id: group
    for group in (
        Group("attention", ("layer", "phase", "head"), _ATTENTION, "sampled query row"),
        # The same of one request: the mean over heads of each sampled row.
        Group("attention_mean", ("layer", "phase"), _ATTENTION, "sampled query row"),
        Group("confidence", ("adapter",), _CONFIDENCE, "generated token"),
        Group("router", ("layer", "phase"), _ROUTER, "token row"),
        # No signals: the counts are what is wanted.
        Group("expert_load", ("layer", "expert"), (), "token row sent to the expert"),
        Group("probe", ("probe",), _PROBE, "finished request"),
        # Finished requests whose score exceeded a calibration quantile of the probe's file.
        # Not `quantile`: Prometheus keeps that label for its summaries.
        Group("probe_exceedance", ("probe", "calibration_quantile"), (), "finished request"),
        Group("requests", ("adapter",), (), "finished request"),
    )
}


class Kind(StrEnum):
    """Prometheus type of a family."""

    COUNTER = "counter"
    GAUGE = "gauge"
    SUMMARY = "summary"
    HISTOGRAM = "histogram"
    INFO = "info"


class Metric(NamedTuple):
    """One Prometheus family.

    name: full name without `_total`, `_sum` and the like, ending in its base unit.
    labels: label names in output order; values are enums, layer numbers or operator-set names.
    normal, change: for the operator: what is usual, and what a change means.
    """

    id: str
    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    help: str
    normal: str
    change: str


_MODEL = ("model_name", "engine")
_LAYER = (*_MODEL, "layer", "phase", "position")
_ATTENTION_HEAD = (*_MODEL, *GROUPS["attention"].axes)
_TOKEN = (*_MODEL, *GROUPS["confidence"].axes)
_ROUTED = (*_MODEL, *GROUPS["router"].axes)
_SCORED = (*_MODEL, *GROUPS["probe"].axes)
_SOURCE = ("source",)


def _metric(
    id: str,
    kind: Kind,
    labels: tuple[str, ...],
    help: str,
    *,
    unit: str = "",
    normal: str = "",
    change: str = "",
) -> Metric:
    return Metric(id, PREFIX + id, kind, unit, labels, help, normal, change)


_LAYER_METRICS = (
    _metric(
        "residual_rms",
        Kind.SUMMARY,
        _LAYER,
        "Root mean square of the residual stream after a decoder layer, over token rows.",
        normal="Grows smoothly with depth; steady over time for one model and traffic mix.",
        change="Growth precedes overflow; a step at one layer points at that layer's weights.",
    ),
    _metric(
        "residual_peak_ratio",
        Kind.SUMMARY,
        _LAYER,
        "Largest absolute residual value divided by the row's RMS, over token rows.",
        unit="ratio",
        normal="Single digits for ordinary rows; far larger for the first positions.",
        change="Growth means massive activations; quantisation and cache compression then hurt.",
    ),
    _metric(
        "block_influence_ratio",
        Kind.SUMMARY,
        _LAYER,
        "1 - cos(layer input, layer output) of the residual stream, over token rows.",
        unit="ratio",
        normal="Largest at the first and last layers, small in the middle.",
        change="Near 0: the layer has stopped contributing. Growth: it rewrites the stream.",
    ),
    _metric(
        "residual_rms_window_max",
        Kind.GAUGE,
        _LAYER,
        "Largest row RMS in the last closed 10 s window.",
        normal="A small multiple of the mean.",
        change="Outliers that the mean hides.",
    ),
    _metric(
        "residual_peak_window_max_ratio",
        Kind.GAUGE,
        _LAYER,
        "Largest row peak ratio in the last closed 10 s window.",
        unit="ratio",
        normal="Steady for one model.",
        change="A jump means a new massive activation.",
    ),
    _metric(
        "block_influence_window_max_ratio",
        Kind.GAUGE,
        _LAYER,
        "Largest row block influence in the last closed 10 s window.",
        unit="ratio",
        normal="Below 1.",
        change="Values near 2 mean that the layer inverted the stream.",
    ),
    _metric(
        "nonfinite_values",
        Kind.COUNTER,
        (*_MODEL, "layer"),
        "NaN and Inf elements seen in the residual stream after a layer.",
        normal="0, always.",
        change="Any increase is an incident: outputs are no longer trustworthy.",
    ),
)

_ATTENTION_METRICS = (
    _metric(
        "attention_entropy_ratio",
        Kind.SUMMARY,
        _ATTENTION_HEAD,
        "Entropy of a head's attention over the log of the tokens it may see, over sampled rows.",
        unit="ratio",
        normal="Steady per head; spread out (near 1) in early layers, concentrated in late ones.",
        change="A head that collapses to 0 or spreads to 1 has changed its work.",
    ),
    _metric(
        "attention_max_weight_ratio",
        Kind.SUMMARY,
        _ATTENTION_HEAD,
        "Largest attention weight of a sampled row.",
        unit="ratio",
        normal="Steady per head.",
        change="Near 1: the head looks at one token only.",
    ),
    _metric(
        "attention_effective_tokens",
        Kind.SUMMARY,
        _ATTENTION_HEAD,
        "Effective number of tokens that a head attends to, 1 / sum of squared weights.",
        unit="tokens",
        normal="Steady per head for one traffic mix; grows with context in spread-out heads.",
        change="A drop: attention concentrates, as on a trigger or a repeated token.",
    ),
    _metric(
        "attention_sink_mass_ratio",
        Kind.SUMMARY,
        _ATTENTION_HEAD,
        "Share of a sampled row's attention that the first positions receive.",
        unit="ratio",
        normal="High in many heads of trained models: the first tokens are attention sinks.",
        change="A drop: the sinks were evicted or overwritten; quality falls soon after.",
    ),
)

_CONFIDENCE_METRICS = (
    _metric(
        "token_entropy_nats",
        Kind.SUMMARY,
        _TOKEN,
        "Entropy of the next-token distribution, over generated tokens.",
        unit="nats",
        normal="Set by the task: low for extraction and code, higher for open text.",
        change="Growth: the model is less sure than it was on this traffic.",
    ),
    _metric(
        "token_top1_probability_ratio",
        Kind.SUMMARY,
        _TOKEN,
        "Probability of the likeliest token, over generated tokens.",
        unit="ratio",
        normal="Set by the task.",
        change="A drop: less sure; near 1 for long: degenerate repetition.",
    ),
    _metric(
        "token_top1_margin_ratio",
        Kind.SUMMARY,
        _TOKEN,
        "Probability of the likeliest token less that of the second, over generated tokens.",
        unit="ratio",
        normal="Set by the task.",
        change="A drop: near ties, which flip with batch size and kernels.",
    ),
    _metric(
        "token_surprisal_nats",
        Kind.SUMMARY,
        _TOKEN,
        "Minus the log-probability of the chosen token, over generated tokens.",
        unit="nats",
        normal="Close to the entropy when sampling at temperature 1, below it when greedy.",
        change="Growth beyond the entropy: tokens are chosen that the model thinks unlikely.",
    ),
    _metric(
        "token_logsumexp_window_mean",
        Kind.GAUGE,
        _TOKEN,
        "Mean log-sum-exp of the logits of generated tokens in the last closed 10 s window; a "
        "gauge, since it may be negative.",
        normal="Steady for one model.",
        change="A step: the output head or the final norm has changed.",
    ),
)

_ROUTER_METRICS = (
    _metric(
        "router_gate_entropy_ratio",
        Kind.SUMMARY,
        _ROUTED,
        "Entropy of a router's probabilities over the log of the number of experts, over rows.",
        unit="ratio",
        normal="Steady per layer.",
        change="Near 0: the router has collapsed; near 1: it no longer chooses.",
    ),
    _metric(
        "router_topk_margin_ratio",
        Kind.SUMMARY,
        _ROUTED,
        "Probability of the last expert chosen less that of the next one, over rows.",
        unit="ratio",
        normal="Small, and steady per layer.",
        change="A drop: choices are near ties, which flip with numeric noise.",
    ),
    _metric(
        "router_expert_rows",
        Kind.COUNTER,
        (*_MODEL, *GROUPS["expert_load"].axes),
        "Token rows that a router sent to an expert.",
        normal="All experts of a layer grow, at rates within a small factor of each other.",
        change="One that stays flat is dead; one that runs ahead is a hot spot.",
    ),
    _metric(
        "router_imbalance_ratio",
        Kind.GAUGE,
        (*_MODEL, "layer"),
        "Rows of a layer's busiest expert over the mean of its experts, in the last closed 10 s "
        "window; 1 is balanced.",
        unit="ratio",
        normal="Between 1 and about 3, higher for few rows.",
        change="Growth: the router collapses onto few experts, or traffic is of one kind.",
    ),
)

_PROBE_METRICS = (
    _metric(
        "probe_score_window_mean",
        Kind.GAUGE,
        _SCORED,
        "Mean score of the requests that finished in the last closed 10 s window; a gauge, since "
        "it may be negative.",
        normal="As on the probe's own calibration data.",
        change="Requests lie more on one side of the probe's direction.",
    ),
    _metric(
        "probe_scored_requests",
        Kind.COUNTER,
        _SCORED,
        "Finished requests that a probe has scored.",
        unit="requests",
        normal="Follows observed_requests.",
        change="Flat while requests finish: the probe's layer is not measured.",
    ),
    _metric(
        "probe_exceedances",
        Kind.COUNTER,
        (*_MODEL, *GROUPS["probe_exceedance"].axes),
        "Finished requests whose score was above a quantile of the probe's calibration data.",
        normal="One less the quantile, as a share of probe_scored_requests.",
        change="Growth of the share: more requests show what the probe looks for.",
    ),
)

_COVERAGE_METRICS = (
    _metric(
        "observed_tokens",
        Kind.COUNTER,
        (*_MODEL, "phase", "position"),
        "Token rows whose internals were measured.",
        unit="tokens",
        normal="Follows prompt and generated tokens.",
        change="Flat while tokens are generated: the tap is dead.",
    ),
    _metric(
        "unobserved_tokens",
        Kind.COUNTER,
        (*_MODEL, "cause"),
        "Token rows that were not measured, by cause: prefix_cached rows are never computed, "
        "lost rows were dropped by the tap under load, shed rows were left out to stay within the "
        "budget or by the operator's control, opted_out rows are of requests that asked for it.",
        unit="tokens",
        normal="prefix_cached follows the cache hit rate; lost and shed are 0.",
        change="lost above 0: the pump cannot keep up; shed above 0: see tap_shed_level.",
    ),
    _metric(
        "recomputed_tokens",
        Kind.COUNTER,
        _MODEL,
        "Token rows computed a second time after a preemption; measured once only.",
        unit="tokens",
        normal="0 unless requests are preempted.",
        change="Follows preemptions.",
    ),
    _metric(
        "rejected_draft_tokens",
        Kind.COUNTER,
        _MODEL,
        "Draft tokens of speculative decoding that were computed and rejected; in no statistic.",
        unit="tokens",
        normal="0 without speculative decoding; else a steady share of generated tokens.",
        change="Growth: the draft model agrees less with the model served.",
    ),
    _metric(
        "observed_requests",
        Kind.COUNTER,
        (*_MODEL, "adapter"),
        "Requests whose internals were measured to their end, by LoRA adapter; an empty adapter "
        "is the base model, other an unlisted one.",
        unit="requests",
        normal="Follows finished requests.",
        change="Flat while requests finish: the tap is dead.",
    ),
    _metric(
        "engine_steps",
        Kind.COUNTER,
        _MODEL,
        "Model forward passes measured by the tap.",
        normal="Grows while requests run.",
        change="Flat while requests run: the tap is dead.",
    ),
)

_SERVING_HISTOGRAMS = (
    _metric(
        "time_to_first_token_seconds",
        Kind.HISTOGRAM,
        _MODEL,
        "Time from arrival to the first generated token (TTFT).",
        unit="seconds",
        normal="Set by prompt length and queueing.",
        change="Growth: queueing or long prompts.",
    ),
    _metric(
        "time_per_output_token_seconds",
        Kind.HISTOGRAM,
        _MODEL,
        "Mean time per generated token after the first, of each finished request (TPOT).",
        unit="seconds",
        normal="Steady at a steady batch size.",
        change="Growth: larger batches, or a slower engine.",
    ),
    _metric(
        "e2e_request_latency_seconds",
        Kind.HISTOGRAM,
        _MODEL,
        "Time from arrival to the end of a finished request.",
        unit="seconds",
        normal="TTFT plus TPOT times generated tokens.",
        change="Read TTFT and TPOT next.",
    ),
    _metric(
        "request_queue_time_seconds",
        Kind.HISTOGRAM,
        _MODEL,
        "Time a finished request waited before it was first scheduled.",
        unit="seconds",
        normal="Near 0 below saturation.",
        change="Growth: the engine is saturated.",
    ),
)

_REQUEST_CONFIDENCE = _metric(
    "request_confidence_ratio",
    Kind.HISTOGRAM,
    _MODEL,
    "Mean probability of the likeliest token over the generated tokens of each finished request.",
    unit="ratio",
    normal="Set by the task; the shape is steady for one traffic mix.",
    change="More requests on the left: some are uncertain, which a mean over all hides.",
)

_SERVING_METRICS = (
    *_SERVING_HISTOGRAMS,
    _REQUEST_CONFIDENCE,
    _metric(
        "prompt_tokens",
        Kind.COUNTER,
        _MODEL,
        "Prompt tokens of requests that produced output.",
        unit="tokens",
        normal="Follows traffic.",
        change="Follows traffic.",
    ),
    _metric(
        "generated_tokens",
        Kind.COUNTER,
        _MODEL,
        "Tokens generated by the engine.",
        unit="tokens",
        normal="Follows traffic.",
        change="Follows traffic.",
    ),
    _metric(
        "cached_tokens",
        Kind.COUNTER,
        _MODEL,
        "Prompt tokens answered from the prefix cache.",
        unit="tokens",
        normal="Set by how much prompts share.",
        change="A drop raises TTFT.",
    ),
    _metric(
        "requests_running",
        Kind.GAUGE,
        _MODEL,
        "Requests in the running batch.",
        normal="At most max_num_seqs.",
        change="Follows load.",
    ),
    _metric(
        "requests_waiting",
        Kind.GAUGE,
        _MODEL,
        "Requests waiting to be scheduled.",
        normal="Near 0 below saturation.",
        change="Growth: the engine is saturated.",
    ),
    _metric(
        "kv_cache_usage_ratio",
        Kind.GAUGE,
        _MODEL,
        "Share of KV-cache blocks in use.",
        unit="ratio",
        normal="Below 0.9.",
        change="Near 1: preemptions follow.",
    ),
    _metric(
        "preempted_requests",
        Kind.COUNTER,
        _MODEL,
        "Times a running request was preempted.",
        unit="requests",
        normal="0.",
        change="The KV cache is too small for the load.",
    ),
    _metric(
        "finished_requests",
        Kind.COUNTER,
        (*_MODEL, "reason"),
        "Finished requests by finish reason; abort counts those whose client hung up, which are "
        "in no latency, since vLLM reports none for them.",
        unit="requests",
        normal="Mostly stop and length.",
        change="error: the engine fails; length: answers are cut off; abort: clients give up.",
    ),
)

_HEALTH_METRICS = (
    _metric(
        "tap_live",
        Kind.GAUGE,
        _SOURCE,
        "1 while every tapped layer is proven to have run in the last measured step, else 0.",
        normal="1.",
        change="0: the numbers of this source are not to be trusted; /readyz says why.",
    ),
    _metric(
        "tap",
        Kind.INFO,
        (*_SOURCE, "state", "reason"),
        "State of a tap (starting, live, dead, refused, disarmed) and the class of its reason.",
        normal='state="live".',
        change="Anything else: see /v1/status for the full reason.",
    ),
    _metric(
        "tap_errors",
        Kind.COUNTER,
        (*_SOURCE, "site"),
        "Exceptions of ours, swallowed inside the engine, by site.",
        normal="0.",
        change="A bug of ours; the site is disarmed after its limit.",
    ),
    _metric(
        "tap_shed_level",
        Kind.GAUGE,
        _SOURCE,
        "How much a tap leaves out to stay within its budget; 0 is nothing.",
        normal="0.",
        change="Above 0: SIDECAR_BUDGET_SHARE is too small for this load and these signals.",
    ),
    _metric(
        "tap_cost_ratio",
        Kind.GAUGE,
        _SOURCE,
        "The tap's own time over the engine's, in the last closed minute.",
        unit="ratio",
        normal="Below SIDECAR_BUDGET_SHARE.",
        change="Above it: the tap sheds, see tap_shed_level.",
    ),
    _metric(
        "tap_absent",
        Kind.INFO,
        (*_SOURCE, "group", "reason"),
        "A group of signals that this engine cannot give, and the class of the reason.",
        normal="None, or what the model does not have, such as a router.",
        change="Signals are missing: see /v1/status for the full reason.",
    ),
    _metric(
        "frames_sent",
        Kind.COUNTER,
        _SOURCE,
        "Frames that a source produced, as told by the source (delivered or not).",
        normal="Grows about once a second.",
        change="Flat: the source has stopped.",
    ),
    _metric(
        "frames_received",
        Kind.COUNTER,
        _SOURCE,
        "Frames received and accepted.",
        normal="Equals frames_sent once the sidecar runs.",
        change="Flat: see frames_lost and frames_refused.",
    ),
    _metric(
        "frames_lost",
        Kind.COUNTER,
        (*_SOURCE, "cause"),
        "Frames of a source that did not arrive: dropped by the sender (no receiver or full "
        "queue), missing in transit, or too old when read.",
        normal="0 while the sidecar runs.",
        change="The sidecar was away or too slow.",
    ),
    _metric(
        "frames_refused",
        Kind.COUNTER,
        ("cause",),
        "Messages refused at the border, by cause; none of them changes any other number.",
        normal="0.",
        change="A version mismatch, a wrong key or a hostile peer.",
    ),
    _metric(
        "frame_age_seconds",
        Kind.HISTOGRAM,
        (),
        "Age of a frame when it was read.",
        unit="seconds",
        normal="Milliseconds.",
        change="Growth: the sidecar is starved of CPU.",
    ),
    _metric(
        "last_frame_timestamp_seconds",
        Kind.GAUGE,
        _SOURCE,
        "Unix time of the last frame of a source.",
        unit="seconds",
        normal="Now.",
        change="An old value: the source is silent.",
    ),
    _metric(
        "sources",
        Kind.GAUGE,
        (),
        "Sources heard within the staleness limit.",
        normal="One per rank and one per front end.",
        change="A drop: a rank vanished.",
    ),
    _metric(
        "series",
        Kind.GAUGE,
        (),
        "Series of layers, heads, experts and the like in the last exposition.",
        normal="Below the cap.",
        change="Grows with layers, heads, experts and populations.",
    ),
    _metric(
        "series_cap",
        Kind.GAUGE,
        (),
        "Most series of layers, heads, experts and the like that one exposition may hold.",
        normal="The configured cap.",
        change="Set by the operator.",
    ),
    _metric(
        "series_dropped",
        Kind.COUNTER,
        (),
        "Series of layers, heads, experts and the like left out because of the cap.",
        normal="0.",
        change="Raise SIDECAR_SERIES_CAP, or measure fewer layers.",
    ),
    _metric(
        "scrape_duration_seconds",
        Kind.HISTOGRAM,
        ("collector",),
        "Time one collector took to render its part of an exposition.",
        unit="seconds",
        normal="Milliseconds.",
        change="Growth: too many series.",
    ),
    _metric(
        "scrape_collector_success",
        Kind.GAUGE,
        ("collector",),
        "1 when the collector rendered its part of the last exposition, 0 when it failed.",
        normal="1.",
        change="0: a bug of ours; the other collectors are still served.",
    ),
    _metric(
        "http_refused",
        Kind.COUNTER,
        ("cause",),
        "HTTP requests refused before any route saw them, by cause.",
        normal="0, or a few of rate.",
        change="token, password: somebody guesses; host, origin: a browser was sent here by a "
        "foreign page; audit: the audit log cannot be written.",
    ),
    _metric(
        "audit_entries",
        Kind.COUNTER,
        (),
        "Entries in the audit log; it outlives the process.",
        normal="Grows by two with each change that an operator makes.",
        change="A fall: the log was cut off or moved aside.",
    ),
    _metric(
        "build",
        Kind.INFO,
        ("version", "schema", "python"),
        "Version of this sidecar, of the wire schema and of Python.",
        normal="One series.",
        change="A deployment.",
    ),
    _metric(
        "engine",
        Kind.INFO,
        (*_SOURCE, "model_name", "engine", "vllm_version", "runner", "dtype", "num_layers"),
        "What the engine said of itself when its tap was armed.",
        normal="One series per source.",
        change="A deployment.",
    ),
)

_SUMMARY_METRICS = (
    _metric(
        "summary_state",
        Kind.GAUGE,
        ("state",),
        "1 for what /v1/status says in one sentence, 0 for the others: ok (as usual), collecting "
        "(nothing judges yet), ticket, blind (telemetry cannot be trusted) or page.",
        normal='state="ok" is 1.',
        change="page: look now; blind: /readyz says why; the sentence is in /v1/status.",
    ),
    _metric(
        "summary_since_timestamp_seconds",
        Kind.GAUGE,
        (),
        "Unix time from which that has been so, as far as it is known; absent where it is not.",
        unit="seconds",
        normal="Since the channels were armed.",
        change="When not ok: compare with deployments and with the traffic at that time.",
    ),
)

_CHANNEL = ("channel",)
_DRIFT_METRICS = (
    _metric(
        "drift_state",
        Kind.GAUGE,
        (*_CHANNEL, "state"),
        "1 for the state in which a configured drift channel is, 0 for the others: collecting, "
        "armed, ticket or page. The last two stay until somebody acknowledges them.",
        normal='state="armed" is 1 for every channel.',
        change="page: look now; ticket: look in working hours; collecting: /v1/drift says why.",
    ),
    _metric(
        "drift_level_ratio",
        Kind.GAUGE,
        _CHANNEL,
        "The largest statistic of a drift channel, as a share of its limit.",
        unit="ratio",
        normal="Below 0.5 most of the time.",
        change="1: the channel alarms; which stream it is stands in drift_stream_level_ratio.",
    ),
    _metric(
        "drift_stream_level_ratio",
        Kind.GAUGE,
        (*_CHANNEL, "stream", "layer", "side"),
        "Statistics of the streams of a drift channel that are nearest to their limit, as shares "
        "of it: 20 per channel at most.",
        unit="ratio",
        normal="Below 0.5 most of the time; which streams these are changes.",
        change="Says where a change is: which layer, which signal, above or below the baseline.",
    ),
    _metric(
        "drift_since_timestamp_seconds",
        Kind.GAUGE,
        _CHANNEL,
        "Unix time from which a drift channel believes that something changed; absent without.",
        unit="seconds",
        normal="Absent.",
        change="Compare with deployments and with changes of the traffic at that time.",
    ),
    _metric(
        "drift_pages",
        Kind.COUNTER,
        _CHANNEL,
        "Pages that a drift channel raised since this sidecar started.",
        unit="pages",
        normal="0; by design one false page in 3 months of traffic, and in 12 of canaries.",
        change="A page: see /v1/drift.",
    ),
    _metric(
        "drift_errors",
        Kind.COUNTER,
        _CHANNEL,
        "Exceptions of a drift channel that were swallowed; the other channels go on.",
        unit="errors",
        normal="0.",
        change="A bug of ours: the channel may judge wrongly or not at all.",
    ),
    _metric(
        "drift_windows",
        Kind.COUNTER,
        ("outcome",),
        "Windows of traffic: scored by the traffic channel, closed but not scored since there is "
        "no baseline for them, or insufficient, having too few requests.",
        unit="windows",
        normal="All scored, one every SIDECAR_WINDOW_SECONDS.",
        change="insufficient: little traffic, or few requests are measured; nothing is judged.",
    ),
    _metric(
        "drift_requests",
        Kind.COUNTER,
        ("outcome",),
        "Finished requests that reached the drift channels: used in a window, canary, late or "
        "early (outside of the open windows), foreign (one layout too many), left_out (no room).",
        unit="requests",
        normal="used and canary only.",
        change="late or early: clocks differ; left_out: a channel is too slow or stuck.",
    ),
    _metric(
        "drift_judged_timestamp_seconds",
        Kind.GAUGE,
        (),
        "Unix time at which the thread that judges drift last finished a turn.",
        unit="seconds",
        normal="Now, but for a second.",
        change="An old value: a channel is stuck, and every drift metric is as old.",
    ),
    _metric(
        "drift",
        Kind.INFO,
        ("preset", "window_seconds"),
        "How drift is judged. The rates of false pages hold for the production preset alone.",
        normal='preset="production".',
        change='preset="demo": short windows for a demonstration; page nobody on them.',
    ),
    _metric(
        "baseline_age_seconds",
        Kind.GAUGE,
        (),
        "Time since the end of what the baseline was made of; absent without a baseline.",
        unit="seconds",
        normal="Weeks.",
        change="Grows until a new baseline is reviewed and loaded; it never adapts by itself.",
    ),
    _metric(
        "baseline",
        Kind.INFO,
        ("digest", "weights_digest", "layout_digest", "release"),
        "The baseline in force: digest of its file, of the weights and the layout it is of, and "
        "the release that wrote it.",
        normal="One series.",
        change="A new baseline was loaded.",
    ),
    _metric(
        "baseline_fetch_success",
        Kind.GAUGE,
        (),
        "1 where the baseline in force is the one that SIDECAR_BASELINE_SOURCE_FILE asks for, 0 "
        "where it could not be fetched or used; absent before the first try, and without that key.",
        normal="1.",
        change="0: the one before stays in force; /v1/baselines and the log say why.",
    ),
    _metric(
        "weights",
        Kind.INFO,
        (*_SOURCE, "digest", "tokenizer_digest", "state"),
        "SHA-256 over the files that an engine loaded its model from; state is hashing, complete "
        "or absent.",
        normal="One digest for all engines of a deployment.",
        change="Other weights are served: a deployment, or tampering.",
    ),
    _metric(
        "canary_rounds",
        Kind.COUNTER,
        ("outcome",),
        "Rounds of known-safe tasks that were sent to the served model, by what became of them.",
        unit="rounds",
        normal="Grows by one every SIDECAR_CANARY_SECONDS.",
        change="Anything but complete: /v1/drift says why.",
    ),
    _metric(
        "canary_layer_deviation_ratio",
        Kind.GAUGE,
        ("layer",),
        "Distance of the last round of known-safe tasks from its reference, in units of the noise "
        "of benign rounds: the median over prompts.",
        unit="ratio",
        normal="About 1.",
        change="Growth from one layer on: the executed model changed there.",
    ),
)

_LIVE_METRICS = (
    _metric(
        "event_clients",
        Kind.GAUGE,
        (),
        "Clients that listen to /v1/events now.",
        normal="As many as pages are open.",
        change="64: no further one is served.",
    ),
    _metric(
        "event_clients_failed",
        Kind.COUNTER,
        ("cause",),
        "Clients of /v1/events by what went wrong: behind (events passed them by, they were told "
        "to read anew), stalled (took nothing for 30 s, hung up on) or refused (one too many).",
        normal="0.",
        change="A slow network or a client that sleeps; ingest is not slowed by it.",
    ),
    _metric(
        "event_errors",
        Kind.COUNTER,
        (),
        "Exceptions of the thread that tells of events that were swallowed.",
        unit="errors",
        normal="0.",
        change="A bug of ours: the live page stands still; see the sidecar's log.",
    ),
    _metric(
        "lost_timeline_readings",
        Kind.COUNTER,
        (),
        "Readings of layers or of serving that found no room in the last ten minutes' columns.",
        unit="readings",
        normal="0.",
        change="More sources than fit; /v1/timeline lacks some, /metrics does not.",
    ),
)

_TRACE_METRICS = (
    _metric(
        "traced_requests",
        Kind.COUNTER,
        ("decision",),
        "Finished requests by what became of them: caller (its caller keeps the trace), ratio "
        "(within SIDECAR_TRACE_RATIO) and anomalous became spans, unsampled did not.",
        unit="requests",
        normal="Follows finished requests; anomalous about one in a thousand with a baseline.",
        change="anomalous grows: look at those spans, each says why it was sent.",
    ),
    _metric(
        "trace_parts_lost",
        Kind.COUNTER,
        ("cause",),
        "Parts of requests that reached no span: left_out (no room before the thread that makes "
        "spans) or late (their request had been told of already).",
        normal="0.",
        change="left_out: the sidecar is starved of CPU; late: frames come over 15 s apart.",
    ),
    _metric(
        "trace_errors",
        Kind.COUNTER,
        (),
        "Exceptions of the thread that makes spans that were swallowed.",
        unit="errors",
        normal="0.",
        change="A bug of ours: requests have no span.",
    ),
    _metric(
        "spans_finished",
        Kind.COUNTER,
        (),
        "Spans made; always spans_sent + spans_dropped + span_queue_size, exactly.",
        normal="Follows traced_requests, and changes of drift verdicts.",
        change="Follows traffic.",
    ),
    _metric(
        "spans_sent",
        Kind.COUNTER,
        (),
        "Spans that the OpenTelemetry receiver took.",
        normal="Follows spans_finished.",
        change="Flat while spans are finished: the receiver is away.",
    ),
    _metric(
        "spans_dropped",
        Kind.COUNTER,
        ("cause",),
        "Spans given up: queue_full (the oldest go first), not_taken (five tries), shutdown.",
        normal="0.",
        change="The receiver is away or too slow, or refuses what we send; serving is not touched.",
    ),
    _metric(
        "span_queue_size",
        Kind.GAUGE,
        (),
        "Spans that wait to be sent, or are on their way.",
        normal="Near 0.",
        change="Growth: the receiver is away or too slow.",
    ),
    _metric(
        "span_queue_capacity",
        Kind.GAUGE,
        (),
        "Most spans that may wait.",
        normal="2048.",
        change="Never.",
    ),
    _metric(
        "span_batches",
        Kind.COUNTER,
        ("outcome",),
        "Tries to send a batch of spans: taken or refused.",
        unit="batches",
        normal="taken only.",
        change="refused: the receiver is away, slow or strict; the sidecar's log says why.",
    ),
    _metric(
        "metric_pushes",
        Kind.COUNTER,
        ("outcome",),
        "Messages of pushed metrics (SIDECAR_OTLP_METRICS_SECONDS): taken, refused by the "
        "receiver, or failed before they were sent.",
        normal="taken only.",
        change="refused: see span_batches; failed: a bug of ours.",
    ),
)

METRICS: Final = (
    *_LAYER_METRICS,
    *_ATTENTION_METRICS,
    *_CONFIDENCE_METRICS,
    *_ROUTER_METRICS,
    *_PROBE_METRICS,
    *_COVERAGE_METRICS,
    *_SERVING_METRICS,
    *_HEALTH_METRICS,
    *_SUMMARY_METRICS,
    *_DRIFT_METRICS,
    *_LIVE_METRICS,
    *_TRACE_METRICS,
)

_REPLICA = ("replica",)

# What `sidecar fleet` publishes beside the drift_* families of its channel, `replica`.
FLEET_METRICS: Final = (
    _metric(
        "replica_state",
        Kind.GAUGE,
        (*_REPLICA, "state"),
        "1 for the state in which a replica is beside the others, 0 for the others: collecting, "
        "armed, ticket or page. A page stays until somebody acknowledges it.",
        normal='state="armed" is 1 for every replica.',
        change="page: this replica differs from the rest of its fleet; look at it now.",
    ),
    _metric(
        "replica_level_ratio",
        Kind.GAUGE,
        _REPLICA,
        "Evidence that a replica differs from the others, as a share of the limit (of logarithms).",
        unit="ratio",
        normal="Below 0.5 most of the time.",
        change="1: it pages; replica_stream_level_ratio says by which layer and signal.",
    ),
    _metric(
        "replica_stream_level_ratio",
        Kind.GAUGE,
        (*_REPLICA, "stream", "layer", "side"),
        "Evidence of single streams of a replica that pages or is worth a ticket, as shares of the "
        "limit: the 20 with the most.",
        unit="ratio",
        normal="Absent.",
        change="Says where a replica differs: which layer, which signal, above or below the rest.",
    ),
    _metric(
        "replica_since_timestamp_seconds",
        Kind.GAUGE,
        _REPLICA,
        "Unix time from which a replica is believed to differ; absent while it does not.",
        unit="seconds",
        normal="Absent.",
        change="Compare with deployments and with events of that host at that time.",
    ),
    _metric(
        "replica_answering",
        Kind.GAUGE,
        _REPLICA,
        "1 when the last answer of an exporter was used, 0 when it was not; /v1/drift says why.",
        normal="1.",
        change="0: this replica is not compared until it answers again.",
    ),
    _metric(
        "replica_discovery_success",
        Kind.GAUGE,
        (),
        "1 when Prometheus last told which exporters there are; else those known before go on.",
        normal="1.",
        change="0: new replicas are not found; /v1/drift says why.",
    ),
    _metric(
        "replica_windows",
        Kind.COUNTER,
        ("outcome",),
        "Windows of replicas by what became of them: judged, insufficient (too few requests or "
        "replicas, or the first one after a gap) or late (more than two windows).",
        unit="windows",
        normal="Nearly all judged.",
        change="insufficient: little traffic, or windows that do not align; late: a slow exporter.",
    ),
    _metric(
        "replica_refused",
        Kind.COUNTER,
        ("cause",),
        "Answers of Prometheus and of exporters, or windows in them, that were not used: "
        "unreachable, slow, oversized, status, decode, schema, value, time or foreign.",
        normal="0.",
        change="Another release, wrong clocks, a host in trouble or a hostile one.",
    ),
    _metric(
        "replica_routing_association_ratio",
        Kind.GAUGE,
        (),
        "How far replicas get different kinds of requests, of the last 12 windows: Cramer's V, "
        "without its bias; 0 is random routing, 1 is kinds of their own.",
        unit="ratio",
        normal="Below 0.05.",
        change="Above it, and beyond chance: routing keeps sessions, and nothing is judged.",
    ),
    _metric(
        "replica_judged_timestamp_seconds",
        Kind.GAUGE,
        (),
        "Unix time of the end of the latest window in which replicas were compared.",
        unit="seconds",
        normal="A few minutes ago.",
        change="An old value: nothing is judged, and /v1/drift says why.",
    ),
    _metric(
        "replica_errors",
        Kind.COUNTER,
        (),
        "Exceptions of the fleet job that were swallowed; the next round is tried.",
        unit="errors",
        normal="0.",
        change="A bug of ours; see its log.",
    ),
)

BY_ID: Final = {metric.id: metric for metric in (*METRICS, *FLEET_METRICS)}

# Which families carry each layer signal: its sums and counts, and its extreme.
SUMMARY_OF: Final = {
    "residual_rms": BY_ID["residual_rms"],
    "residual_peak": BY_ID["residual_peak_ratio"],
    "block_influence": BY_ID["block_influence_ratio"],
}
WINDOW_MAX_OF: Final = {
    "residual_rms": BY_ID["residual_rms_window_max"],
    "residual_peak": BY_ID["residual_peak_window_max_ratio"],
    "block_influence": BY_ID["block_influence_window_max_ratio"],
}

# Which family carries each signal of a group: a summary of its rows; or, where values may be
# negative, so that their sum is no counter, a gauge of the mean over the last closed window.
FAMILY_OF: Final = {
    ("attention", "entropy"): BY_ID["attention_entropy_ratio"],
    ("attention", "max_weight"): BY_ID["attention_max_weight_ratio"],
    ("attention", "effective_tokens"): BY_ID["attention_effective_tokens"],
    ("attention", "sink_mass"): BY_ID["attention_sink_mass_ratio"],
    ("confidence", "entropy"): BY_ID["token_entropy_nats"],
    ("confidence", "top1_probability"): BY_ID["token_top1_probability_ratio"],
    ("confidence", "top1_margin"): BY_ID["token_top1_margin_ratio"],
    ("confidence", "surprisal"): BY_ID["token_surprisal_nats"],
    ("confidence", "logsumexp"): BY_ID["token_logsumexp_window_mean"],
    ("router", "gate_entropy"): BY_ID["router_gate_entropy_ratio"],
    ("router", "topk_margin"): BY_ID["router_topk_margin_ratio"],
    ("probe", "score"): BY_ID["probe_score_window_mean"],
}
# Which counter carries the rows of a group, cell by cell, where they are wanted for themselves.
ROWS_OF: Final = {
    "expert_load": BY_ID["router_expert_rows"],
    "probe": BY_ID["probe_scored_requests"],
    "probe_exceedance": BY_ID["probe_exceedances"],
    "requests": BY_ID["observed_requests"],
}
