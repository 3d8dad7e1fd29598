"""Families of vLLM's own that the dashboards show beside ours.

Read in vLLM 0.32; `tests/e2e/test_dashboards.py` finds each at a real server. Names as
Prometheus has them, without `vllm:`.
"""

from typing import Final

FAMILIES: Final = frozenset(
    {
        "e2e_request_latency_seconds_bucket",
        "generation_tokens_total",
        "inter_token_latency_seconds_bucket",
        "kv_cache_usage_perc",
        "num_preemptions_total",
        "num_requests_running",
        "num_requests_waiting",
        "prefix_cache_hits_total",
        "prefix_cache_queries_total",
        "prompt_tokens_total",
        "request_queue_time_seconds_bucket",
        "request_success_total",
        "time_to_first_token_seconds_bucket",
    }
)
