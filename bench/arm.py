"""One resident engine of an interleaved comparison; obeys JSON lines on stdin.

`{"batch": B, "tokens": N}` decodes N tokens for B requests and answers with the seconds that took,
prefill left out: the difference of two runs with the same prompts.
"""

import json
import os
import random
import sys
import time
from typing import Any

PROMPT_TOKENS = 32


def main(model: str, max_batch: int) -> None:
    """Load `model` with random weights, say so, and serve commands until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes to the log
    started = time.monotonic()
    engine = _engine(model, max_batch)
    _say(answers, {"load_seconds": time.monotonic() - started})
    for line in sys.stdin:
        command = json.loads(line)
        _say(answers, {"seconds": _decode_seconds(engine, command["batch"], command["tokens"])})


def _engine(model: str, max_batch: int) -> Any:
    from vllm import LLM  # noqa: PLC0415 - after the answers have their own descriptor

    return LLM(
        model=model,
        load_format="dummy",
        dtype="bfloat16",
        skip_tokenizer_init=True,
        max_model_len=512,
        max_num_seqs=max_batch,
        max_num_batched_tokens=max_batch * PROMPT_TOKENS,
        enable_prefix_caching=False,
        disable_log_stats=False,
        seed=0,
    )


def _decode_seconds(engine: Any, batch: int, tokens: int) -> float:
    return _run(engine, batch, tokens + 1) - _run(engine, batch, 1)


def _run(engine: Any, batch: int, tokens: int) -> float:
    from vllm import SamplingParams  # noqa: PLC0415

    rng = random.Random(batch)
    prompts = [
        {"prompt_token_ids": [rng.randrange(1000) for _ in range(PROMPT_TOKENS)]}
        for _ in range(batch)
    ]
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    started = time.perf_counter()
    engine.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - started


def _say(answers: Any, message: dict[str, float]) -> None:
    print(json.dumps(message), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
