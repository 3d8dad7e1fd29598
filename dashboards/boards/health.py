"""Sidecar health: whether what the other dashboards show is to be trusted, and what it costs."""

from dashboards.panels import GREEN, GREY, RED, Ask, about, lines, number, states, unit_of
from dashboards.panels import rows as table
from dashboards.queries import (
    by_adapter,
    increase,
    largest,
    mean,
    quantile,
    rate,
    series,
    share,
    smallest,
    summed,
)
from dashboards.shell import Board, Row

_SOURCE = ("source", "pod")
_NAMED = "{{source}} {{pod}}"
_TAPS = Row(
    "Taps",
    (
        states(
            about("Live", "tap_live", runbooks=("LLMInternalsTapDead",)),
            Ask(smallest(series("tap_live"), *_SOURCE), _NAMED),
            span=8,
            words={1: ("live", GREEN), 0: ("dead", RED)},
        ),
        table(
            about("State and reason", "tap", runbooks=("LLMInternalsNoEngineHeard",)),
            series("tap"),
            {"pod": "Pod", "source": "Source", "state": "State", "reason": "Reason"},
            span=8,
        ),
        table(
            about("What this engine cannot give", "tap_absent"),
            series("tap_absent"),
            {"pod": "Pod", "source": "Source", "group": "Group", "reason": "Reason"},
            span=8,
        ),
        lines(
            about("The tap's own time", "tap_cost_ratio"),
            "percentunit",
            [Ask(largest(series("tap_cost_ratio"), *_SOURCE), _NAMED)],
            span=8,
            min=0,
        ),
        lines(
            about("What is left out", "tap_shed_level", runbooks=("LLMInternalsTapShedding",)),
            "none",
            [Ask(largest(series("tap_shed_level"), *_SOURCE), _NAMED)],
            span=8,
            min=0,
        ),
        lines(
            about("Exceptions swallowed", "tap_errors", runbooks=("LLMInternalsTapErrors",)),
            "short",
            [Ask(increase(series("tap_errors"), "source", "site"), "{{source}} {{site}}")],
            span=8,
            min=0,
        ),
    ),
)
_COVERAGE = Row(
    "How much is measured",
    (
        lines(
            about("Token rows", "observed_tokens", runbooks=("LLMInternalsServedNotObserved",)),
            "suffix: /s",
            [Ask(rate(series("observed_tokens"), "phase", "position"), "{{phase}} {{position}}")],
            span=8,
            min=0,
        ),
        lines(
            about("Token rows not measured", "unobserved_tokens"),
            "suffix: /s",
            [Ask(rate(series("unobserved_tokens"), "cause"), "{{cause}}")],
            span=8,
            min=0,
        ),
        lines(
            about("Not of use", "recomputed_tokens", "rejected_draft_tokens"),
            "suffix: /s",
            [
                Ask(rate(series("recomputed_tokens")), "computed again"),
                Ask(rate(series("rejected_draft_tokens")), "rejected drafts"),
            ],
            span=8,
            min=0,
        ),
        lines(
            about("Steps", "engine_steps"),
            "suffix: /s",
            [Ask(rate(series("engine_steps"), "pod"), "{{pod}}")],
            span=8,
            min=0,
        ),
        lines(
            about("Requests measured to their end", "observed_requests"),
            "suffix: /s",
            [Ask(by_adapter(rate(series("observed_requests"), "adapter")), "{{adapter}}")],
            span=8,
            min=0,
        ),
        lines(
            about(
                "Share of finished requests that were measured",
                "observed_requests",
                "finished_requests",
            ),
            "percentunit",
            [
                Ask(
                    share(
                        rate(series("observed_requests"), "pod"),
                        rate(series("finished_requests"), "pod"),
                        "pod",
                    ),
                    "{{pod}}",
                )
            ],
            span=8,
            min=0,
        ),
    ),
)
_FRAMES = Row(
    "Frames between the engine and the sidecar",
    (
        lines(
            about("Frames", "frames_sent", "frames_received"),
            "suffix: /s",
            [
                Ask(rate(series("frames_sent"), *_SOURCE), f"sent {_NAMED}"),
                Ask(rate(series("frames_received"), *_SOURCE), f"received {_NAMED}"),
            ],
            span=8,
            min=0,
        ),
        lines(
            about("Lost", "frames_lost", runbooks=("LLMInternalsFramesLost",)),
            "suffix: /s",
            [Ask(rate(series("frames_lost"), "source", "cause"), "{{source}} {{cause}}")],
            span=8,
            min=0,
        ),
        lines(
            about(
                "Refused",
                "frames_refused",
                runbooks=("LLMInternalsFramesRefusedSchema", "LLMInternalsFramesRefusedMac"),
            ),
            "suffix: /s",
            [Ask(rate(series("frames_refused"), "cause"), "{{cause}}")],
            span=8,
            min=0,
        ),
        lines(
            about("Age of a frame when read", "frame_age_seconds"),
            unit_of("frame_age_seconds"),
            [
                Ask(quantile(q, series("frame_age_seconds", "_bucket")), f"p{100 * q:g}")
                for q in (0.5, 0.99)
            ],
            span=8,
            min=0,
        ),
        lines(
            about("Last frame, ago", "last_frame_timestamp_seconds"),
            "s",
            [
                Ask(
                    f"time() - {largest(series('last_frame_timestamp_seconds'), *_SOURCE)}",
                    _NAMED,
                )
            ],
            span=8,
            min=0,
        ),
        number(
            about("Sources", "sources"),
            "none",
            Ask(summed(series("sources"), "pod"), "{{pod}}"),
            span=8,
            height=8,
        ),
    ),
)
_EXPORTER = Row(
    "The sidecar itself",
    (
        lines(
            about(
                "Series of layers, and their cap",
                "series",
                "series_cap",
                runbooks=("LLMInternalsSeriesCapReached",),
            ),
            "short",
            [
                Ask(largest(series("series"), "pod"), "published, {{pod}}"),
                Ask(smallest(series("series_cap")), "cap"),
            ],
            span=8,
            min=0,
        ),
        lines(
            about(
                "Time to render", "scrape_duration_seconds", runbooks=("LLMInternalsScrapeSlow",)
            ),
            "s",
            [Ask(mean("scrape_duration_seconds", "collector"), "{{collector}}")],
            span=8,
            min=0,
            is_stacked=True,
        ),
        states(
            about(
                "Collectors",
                "scrape_collector_success",
                runbooks=("LLMInternalsCollectorFailing",),
            ),
            Ask(smallest(series("scrape_collector_success"), "collector"), "{{collector}}"),
            span=8,
            words={1: ("rendered", GREEN), 0: ("failed", RED)},
        ),
        number(
            about("Series left out", "series_dropped"),
            "short",
            Ask(increase(series("series_dropped"))),
            span=4,
            height=7,
            steps=((None, GREY), (1e-9, RED)),
        ),
        table(
            about("Sidecars", "build"),
            series("build"),
            {"pod": "Pod", "version": "Version", "schema": "Schema", "python": "Python"},
            span=8,
            height=7,
        ),
        table(
            about("Engines", "engine"),
            series("engine"),
            {
                "pod": "Pod",
                "source": "Source",
                "model_name": "Model",
                "vllm_version": "vLLM",
                "runner": "Runner",
                "dtype": "dtype",
                "num_layers": "Layers",
            },
            span=12,
            height=7,
        ),
    ),
)
_TRACES = Row(
    "Traces, and the doors of the sidecar",
    (
        lines(
            about("Requests with a span, and without", "traced_requests"),
            "suffix: /s",
            [Ask(rate(series("traced_requests"), "decision"), "{{decision}}")],
            span=8,
            min=0,
        ),
        lines(
            about("Spans", "spans_finished", "spans_sent"),
            "suffix: /s",
            [
                Ask(rate(series("spans_finished")), "finished"),
                Ask(rate(series("spans_sent")), "sent"),
            ],
            span=8,
            min=0,
        ),
        lines(
            about("Spans that wait", "span_queue_size", "span_queue_capacity"),
            "short",
            [
                Ask(largest(series("span_queue_size"), "pod"), "waiting, {{pod}}"),
                Ask(smallest(series("span_queue_capacity")), "capacity"),
            ],
            span=8,
            min=0,
        ),
        lines(
            about(
                "Spans and parts of them lost",
                "spans_dropped",
                "trace_parts_lost",
                runbooks=("LLMInternalsSpansDropped",),
            ),
            "short",
            [
                Ask(increase(series("spans_dropped"), "cause"), "spans, {{cause}}"),
                Ask(increase(series("trace_parts_lost"), "cause"), "parts, {{cause}}"),
            ],
            span=8,
            min=0,
        ),
        lines(
            about(
                "Messages to the receiver, and exceptions",
                "span_batches",
                "metric_pushes",
                "trace_errors",
            ),
            "short",
            [
                Ask(increase(series("span_batches"), "outcome"), "spans, {{outcome}}"),
                Ask(increase(series("metric_pushes"), "outcome"), "metrics, {{outcome}}"),
                Ask(increase(series("trace_errors")), "exceptions"),
            ],
            span=8,
            min=0,
        ),
        lines(
            about("Refused at the door, and audited", "http_refused", "audit_entries"),
            "short",
            [
                Ask(increase(series("http_refused"), "cause"), "refused, {{cause}}"),
                Ask(summed(series("audit_entries"), "pod"), "entries of the log, {{pod}}"),
            ],
            span=8,
            min=0,
        ),
    ),
)
_LIVE = Row(
    "The live page's events",
    (
        lines(
            about("Clients", "event_clients"),
            "none",
            [Ask(summed(series("event_clients"), "pod"), "{{pod}}")],
            span=8,
            min=0,
        ),
        lines(
            about("Clients in trouble", "event_clients_failed"),
            "short",
            [Ask(increase(series("event_clients_failed"), "cause"), "{{cause}}")],
            span=8,
            min=0,
        ),
        lines(
            about(
                "Exceptions, and readings without room", "event_errors", "lost_timeline_readings"
            ),
            "short",
            [
                Ask(increase(series("event_errors")), "exceptions"),
                Ask(increase(series("lost_timeline_readings")), "readings"),
            ],
            span=8,
            min=0,
        ),
    ),
)
BOARD = Board(
    "health",
    "LLM internals / Sidecar health",
    "Whether what the other dashboards show can be trusted: taps, coverage, frames, exporter.",
    (_TAPS, _COVERAGE, _FRAMES, _EXPORTER, _TRACES, _LIVE),
)
