"""What both seats read from vLLM's configuration object."""

from typing import Any

from sidecar.wire.fields import MAX_TEXT


def options_of(vllm_config: Any) -> dict[str, Any]:
    """The tap's part of vLLM's `--additional-config`."""
    additional = vllm_config.additional_config
    options = additional.get("sidecar") if isinstance(additional, dict) else None
    return options if isinstance(options, dict) else {}


def model_name(vllm_config: Any) -> str:
    """The first name under which the model is served; the value of the `model_name` label."""
    served = vllm_config.model_config.served_model_name
    return str(served[0] if isinstance(served, list) else served)[:MAX_TEXT]
