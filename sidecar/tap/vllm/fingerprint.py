"""The fingerprint: tells vLLM's compile caches that this graph is not the untapped one.

vLLM keys its compiled artefacts by its own configuration, of which we are no part: with the tap
switched on over an old cache the old graph loads, and every value stays 0, silently. The one
sanctioned salt is `additional_config`, which is in the key.
"""

import hashlib
import inspect
from types import ModuleType
from typing import Any, Final

from sidecar import __version__
from sidecar.config import TapConfig
from sidecar.errors import TapRefused
from sidecar.tap import probe_file, probes, projection, query, router, sites, stream
from sidecar.tap.vllm import router as gates
from sidecar.wire.frame import SCHEMA

KEY: Final = "llm_internals_fingerprint"
# Keys of the configuration that change what is computed in the graph.
_SHAPING: Final = (
    "attention_layers",
    "attention_requests",
    "router",
    "sketch_layers",
    "sketch_size",
    "sketch_seed",
    "probe_file",
)
_TRACED: Final[tuple[ModuleType, ...]] = (
    probes,
    projection,
    query,
    router,
    sites,
    stream,
    gates,
)


def fingerprint(capacity: int, config: TapConfig) -> str:
    """Hex digest of everything of ours that shapes the graph; `capacity` is the rows per layer."""
    digest = hashlib.sha256(f"{__version__}/{SCHEMA}/{capacity}".encode())
    digest.update(config.model_dump_json(include=set(_SHAPING)).encode())
    if config.probe_file is not None:  # a compiler may fold weights into what it compiles
        digest.update(probe_file.content(config.probe_file))
    for module in _TRACED:
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()[:16]


def write(vllm_config: Any, value: str) -> None:
    """Put the fingerprint where the compile cache key is made from.

    Raises TapRefused when `additional_config` is an object of somebody else's.
    """
    additional = vllm_config.additional_config
    if not isinstance(additional, dict):
        raise TapRefused(
            f"additional_config is a {type(additional).__name__}, not a dict; the compile cache "
            "cannot be told of the tap"
        )
    additional[KEY] = value
