"""Model-internal telemetry for LLM serving: taps inside vLLM, a sidecar beside it.

Importing this package loads nothing else: each side (the tap in the engine, the exporter beside
it) imports its own half.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
