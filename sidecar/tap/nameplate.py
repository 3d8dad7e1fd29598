"""What an engine says of itself: the part of a status frame that never changes.

Loads no torch, so that a refusal can be reported from any process.
"""

from dataclasses import dataclass

from sidecar.wire.fields import MAX_LONG_TEXT
from sidecar.wire.frame import Status, TapState


@dataclass
class Nameplate:
    """What an engine says of itself, for the status frame."""

    model_name: str
    vllm_version: str = ""
    tap_version: str = ""
    runner: str = ""
    dtype: str = ""
    fingerprint: str = ""

    def status(self, state: TapState, reason: str, detail: str, errors: dict[str, int]) -> Status:
        """A status frame of this engine, without layers."""
        return Status(
            state,
            reason,
            detail[:MAX_LONG_TEXT],
            dict(errors),
            self.model_name,
            self.vllm_version,
            self.tap_version,
            self.runner,
            self.dtype,
            self.fingerprint,
        )
