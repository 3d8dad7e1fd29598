"""One resident engine of an interleaved comparison; obeys JSON lines on stdin.

`{"batch": B, "prompt": P, "tokens": N}` gives B requests a prompt of P tokens and generates N
tokens for each. The answer has the time to first token of each request, the seconds until all had
one, the seconds of each later step (in which each request gets one token), and the seconds of
decoding in all. `{"memory": true}` answers with the bytes that the device holds, 0 on a CPU.
"""

import json
import os
import random
import sys
import time
from typing import Any

from bench.observed import device_bytes, hook_every_layer

MAX_TOKENS_A_STEP = 2048


def main(model: str, max_batch: int, how: str) -> None:
    """Load `model` with random weights, say so, and serve commands until stdin ends.

    how: compiled, eager, or hooks, which is eager with hooks that copy every layer's output.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes to the log
    started = time.monotonic()
    engine = _engine(model, max_batch, is_eager=how != "compiled")
    if how == "hooks":
        engine.apply_model(hook_every_layer)
    _say(answers, {"load_seconds": time.monotonic() - started})
    for line in sys.stdin:
        command = json.loads(line)
        if "memory" in command:
            _say(answers, {"device_bytes": float(max(engine.apply_model(device_bytes)))})
        else:
            _say(answers, _turn(engine, command["batch"], command["prompt"], command["tokens"]))


def _engine(model: str, max_batch: int, *, is_eager: bool) -> Any:
    from vllm import LLM  # noqa: PLC0415 - after the answers have their own descriptor

    more = json.loads(os.environ.get("BENCH_ENGINE", "{}"))
    return LLM(
        model=model,
        load_format="dummy",
        dtype="bfloat16",
        skip_tokenizer_init=True,
        max_model_len=1024,
        max_num_seqs=max_batch,
        max_num_batched_tokens=max(MAX_TOKENS_A_STEP, max_batch),
        enable_prefix_caching=False,
        enforce_eager=is_eager,
        disable_log_stats=False,
        seed=0,
        **more,
    )


def _turn(engine: Any, batch: int, prompt: int, tokens: int) -> dict[str, Any]:
    from vllm import SamplingParams  # noqa: PLC0415
    from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

    rng = random.Random(batch)
    core = engine.llm_engine
    params = SamplingParams(
        temperature=0,
        max_tokens=tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.CUMULATIVE,
    )
    number = core.num_turns = getattr(core, "num_turns", 0) + 1
    started = time.perf_counter()
    for k in range(batch):
        drawn = {"prompt_token_ids": [rng.randrange(1000) for _ in range(prompt)]}
        core.add_request(f"turn-{number}-{k}", drawn, params)
    return _watched(core, batch, started)


def _watched(core: Any, batch: int, started: float) -> dict[str, Any]:
    """Step until nothing is left, and note when tokens came."""
    first: dict[str, float] = {}
    steps: list[float] = []
    all_first = latest = 0.0
    while core.has_unfinished_requests():
        outputs = core.step()
        now = time.perf_counter()
        came = [each for each in outputs if each.outputs[0].token_ids]
        if all_first and came:
            steps.append(now - latest)
        for each in came:
            first.setdefault(each.request_id, now - started)
        if came:
            latest = now
        if not all_first and len(first) == batch:
            all_first = now
    decode = latest - all_first
    return {
        "first": list(first.values()),
        "prefill": all_first - started,
        "steps": steps,
        "decode": decode,
    }


def _say(answers: Any, message: dict[str, Any]) -> None:
    print(json.dumps(message), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
