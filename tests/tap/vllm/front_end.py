"""Requests as vLLM's own front end handles them, without an engine behind it."""

import time


def asked(internal_id: str, external_id: str = "client", **wishes):
    """vLLM's own EngineCoreRequest."""
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    arrival = wishes.pop("arrival_time", time.time())
    headers = wishes.pop("trace_headers", None)
    return EngineCoreRequest(
        internal_id,
        [1, 2, 3],
        None,
        SamplingParams(detokenize=False, **wishes),
        None,
        arrival,
        None,
        None,
        None,
        trace_headers=headers,
        external_req_id=external_id,
    )


def ended(processor, *internal_ids: str):
    """Give each of these requests a token, which is its last; vLLM's IterationStats of them."""
    from vllm.v1.engine import EngineCoreOutput, FinishReason
    from vllm.v1.metrics.stats import IterationStats

    stats = IterationStats()
    outputs = [
        EngineCoreOutput(each, [7], finish_reason=FinishReason.LENGTH) for each in internal_ids
    ]
    processor.process_outputs(outputs, time.monotonic(), stats)
    return stats
