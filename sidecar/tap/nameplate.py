"""What an engine says of itself: the part of a status frame that never changes.

Loads no torch, so that a refusal can be reported from any process.
"""

from dataclasses import dataclass, field

from sidecar.wire.fields import MAX_LONG_TEXT
from sidecar.wire.frame import Identity, Status, TapState


@dataclass
class Nameplate:
    """What an engine says of itself, for the status frame.

    identity: what it executes, as far as that is known by now.
    """

    model_name: str
    vllm_version: str = ""
    tap_version: str = ""
    runner: str = ""
    dtype: str = ""
    fingerprint: str = ""
    identity: Identity = field(default_factory=Identity)

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
            identity=self.identity,
        )
