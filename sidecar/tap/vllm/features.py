"""What vLLM can do that puts rows where they are not looked for: refused by name.

Each feature has a short word for the label of `llm_internals_tap`, and a name for the sentence in
/v1/status. The front end's stats are told all the same, and serving goes on untapped.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from sidecar.errors import TapRefused


class Feature(NamedTuple):
    """A feature that cannot be tapped.

    is_used: told the configuration and the name of the runner's module (`runner_v1`, ...).
    """

    reason: str
    name: str
    is_used: Callable[[Any, str], bool]


REFUSED: Final = (
    Feature(
        "async_speculation",
        "speculative decoding with asynchronous scheduling",
        # The batch then holds guesses of how far each request has come.
        lambda config, _: (
            config.speculative_config is not None
            and bool(getattr(config.scheduler_config, "async_scheduling", False))
        ),
    ),
    Feature(
        "pipelined_speculation",
        "speculative decoding with pipeline parallelism",
        # Stages before the last are never told which drafts were accepted.
        lambda config, _: (
            config.speculative_config is not None
            and int(getattr(config.parallel_config, "pipeline_parallel_size", 1)) > 1
        ),
    ),
    Feature(
        "v2_speculation",
        "speculative decoding on model runner V2",
        # Which drafts were accepted is known on the device alone.
        lambda config, runner: (
            config.speculative_config is not None and runner.endswith("runner_v2")
        ),
    ),
    Feature(
        "micro_batching",
        "micro-batching (DBO)",
        # Two halves of a batch run at once, and both would write the first rows.
        lambda config, _: bool(getattr(config.parallel_config, "use_ubatching", False)),
    ),
    Feature(
        "prefill_context_parallelism",
        "prefill context parallelism",
        # Each rank has a part of a prompt's rows.
        lambda config, _: (
            int(getattr(config.parallel_config, "prefill_context_parallel_size", 1)) > 1
        ),
    ),
    Feature(
        "pooling",
        "pooling models",
        lambda config, _: bool(config.model_config.runner_type != "generate"),
    ),
    Feature(
        "encoder_decoder",
        "encoder-decoder models",
        lambda config, _: bool(config.model_config.is_encoder_decoder),
    ),
    Feature(
        "kv_sharing_fast_prefill",
        "KV-sharing fast prefill",
        # Late layers then see a part of the rows only.
        lambda config, _: bool(getattr(config.cache_config, "kv_sharing_fast_prefill", False)),
    ),
)


def check(vllm_config: Any, runner: str) -> None:
    """Raise TapRefused for the first feature in use that cannot be tapped."""
    for feature in REFUSED:
        if feature.is_used(vllm_config, runner):
            raise TapRefused(
                f"{feature.name}: rows cannot be attributed yet; serve without it to tap",
                feature.reason,
            )
