"""Serving beside internals: latency and tokens, vLLM's own numbers, and what the model did then."""

from dashboards.panels import Ask, Text, about, distribution, layers, lines
from dashboards.queries import (
    OF_THE_PHASE,
    REST,
    increase,
    largest,
    mean,
    quantile,
    rate,
    series,
    share,
    summed,
    unusual,
    vllm,
)
from dashboards.sdk import timeseries
from dashboards.shell import Board, Row

_QUANTILES = (0.5, 0.9, 0.99)


def _latency(family: str, title: str) -> timeseries.Panel:
    asks = [
        Ask(quantile(q, series(family, "_bucket")), f"p{100 * q:g}", has_exemplars=True)
        for q in _QUANTILES
    ]
    return lines(about(title, family), "s", asks, span=6, min=0)


def _theirs(title: str, family: str, unit: str, asks: list[Ask]) -> timeseries.Panel:
    said = f"As vLLM counts it, `vllm:{family}`; ours stands above. They should agree."
    return lines(Text(title, said), unit, asks, span=6, min=0)


def _their_latency(title: str, name: str) -> timeseries.Panel:
    asks = [Ask(quantile(q, vllm(f"{name}_bucket")), f"p{100 * q:g}") for q in _QUANTILES]
    return _theirs(title, name, "s", asks)


_LATENCY = Row(
    "Latency",
    (
        _latency("time_to_first_token_seconds", "Time to first token"),
        _latency("time_per_output_token_seconds", "Time per output token"),
        _latency("e2e_request_latency_seconds", "End to end"),
        _latency("request_queue_time_seconds", "Queue"),
    ),
)
_TOKENS = Row(
    "Tokens and load",
    (
        lines(
            about("Tokens", "prompt_tokens", "generated_tokens", "cached_tokens"),
            "suffix: /s",
            [
                Ask(rate(series("prompt_tokens")), "prompt"),
                Ask(rate(series("cached_tokens")), "of it cached"),
                Ask(rate(series("generated_tokens")), "generated"),
            ],
            span=6,
            min=0,
        ),
        lines(
            about("Requests", "requests_running", "requests_waiting"),
            "short",
            [
                Ask(summed(series("requests_running")), "running"),
                Ask(summed(series("requests_waiting")), "waiting"),
            ],
            span=6,
            min=0,
        ),
        lines(
            about("Finished", "finished_requests"),
            "suffix: /s",
            [Ask(rate(series("finished_requests"), "reason"), "{{reason}}")],
            span=6,
            min=0,
        ),
        lines(
            about("KV cache and preemptions", "kv_cache_usage_ratio", "preempted_requests"),
            "percentunit",
            [
                Ask(largest(series("kv_cache_usage_ratio"), "pod"), "used, {{pod}}"),
                Ask(increase(series("preempted_requests"), "pod"), "preempted so far, {{pod}}"),
            ],
            span=6,
            min=0,
        ),
    ),
)
_INSIDE = Row(
    "Meanwhile, inside the model",
    (
        distribution(
            about("Time to first token, each request", "time_to_first_token_seconds"),
            "s",
            rate(series("time_to_first_token_seconds", "_bucket"), "le"),
            span=8,
        ),
        lines(
            about("Confidence", "token_top1_probability_ratio", "token_top1_margin_ratio"),
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
            about("Effective tokens of attention", "attention_effective_tokens"),
            "short",
            [Ask(mean("attention_effective_tokens", "phase", phase=""), "{{phase}}")],
            span=8,
            min=0,
        ),
        layers(
            about(
                "Residual stream, compared with its mean over the time shown",
                "residual_rms",
                also="Red is above, blue below: 0.1 is 10 %.",
            ),
            "percentunit",
            unusual("residual_rms", "layer", **REST),
            around_zero=0.25,
        ),
        layers(
            about("Attention entropy", "attention_entropy_ratio"),
            "percentunit",
            mean("attention_entropy_ratio", "layer", **OF_THE_PHASE),
        ),
    ),
)
_CACHE_HITS = share(
    rate(vllm("prefix_cache_hits_total"), "pod"),
    rate(vllm("prefix_cache_queries_total"), "pod"),
    "pod",
)
_VLLM = Row(
    "The same from vLLM's own metrics",
    (
        _their_latency("Time to first token (vLLM)", "time_to_first_token_seconds"),
        _their_latency("Time between tokens (vLLM)", "inter_token_latency_seconds"),
        _their_latency("End to end (vLLM)", "e2e_request_latency_seconds"),
        _their_latency("Queue (vLLM)", "request_queue_time_seconds"),
        _theirs(
            "Tokens (vLLM)",
            "generation_tokens",
            "suffix: /s",
            [
                Ask(rate(vllm("prompt_tokens_total")), "prompt"),
                Ask(rate(vllm("generation_tokens_total")), "generated"),
            ],
        ),
        _theirs(
            "Requests (vLLM)",
            "num_requests_running",
            "short",
            [
                Ask(summed(vllm("num_requests_running")), "running"),
                Ask(summed(vllm("num_requests_waiting")), "waiting"),
            ],
        ),
        _theirs(
            "Finished (vLLM)",
            "request_success",
            "suffix: /s",
            [Ask(rate(vllm("request_success_total"), "finished_reason"), "{{finished_reason}}")],
        ),
        _theirs(
            "Caches and preemptions (vLLM)",
            "kv_cache_usage_perc",
            "percentunit",
            [
                Ask(largest(vllm("kv_cache_usage_perc"), "pod"), "KV cache used, {{pod}}"),
                Ask(_CACHE_HITS, "prefix cache hits, {{pod}}"),
                Ask(increase(vllm("num_preemptions_total"), "pod"), "preempted so far, {{pod}}"),
            ],
        ),
    ),
)
BOARD = Board(
    "serving",
    "LLM internals / Serving beside internals",
    "Latency, tokens and load next to what the model did inside at the same time, and the same "
    "numbers as vLLM itself publishes them. Diamonds on latencies are traces of single requests.",
    (_LATENCY, _TOKENS, _INSIDE, _VLLM),
    variables=("phase", "layer"),
)
