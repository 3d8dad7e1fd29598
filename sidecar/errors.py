"""The errors this package raises on purpose, drawn as a tree.

    SidecarError
    ├── ConfigError       a key or value the operator gave cannot be used
    ├── FrameError        a peer's message cannot be accepted; `.cause` labels a counter
    ├── ChannelError      the socket cannot be opened, or is owned by another process
    ├── TapRefused        this engine or model cannot be tapped; serving goes on untapped
    ├── StateError        a detector's saved state is torn, foreign or older than this version
    ├── WatchError        the thread that judges drift does not answer in time
    └── SetupError        the demo cannot start on this machine

Every message says what is wrong and names the remedy. Foreign errors are mapped to these at one
border each (`config`, `wire.frame`, `wire.channel`, `tap.vllm.plugin`, `demo`).
"""

__all__ = [
    "ChannelError",
    "ConfigError",
    "FrameError",
    "SetupError",
    "SidecarError",
    "StateError",
    "TapRefused",
    "WatchError",
]


class SidecarError(Exception):
    """Root of everything raised here on purpose."""


class ConfigError(SidecarError):
    """A key or value given by the operator cannot be used; the message names the key."""


class FrameError(SidecarError):
    """A received message cannot be accepted.

    `cause` is one of `sidecar.wire.frame.CAUSES`, and becomes the label of a counter.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class ChannelError(SidecarError):
    """The socket cannot be opened, or another process owns it."""


class TapRefused(SidecarError):
    """This engine or model cannot be tapped. Serving goes on; `reason` labels a metric."""

    def __init__(self, message: str, reason: str = "not_supported") -> None:
        super().__init__(message)
        self.reason = reason


class StateError(SidecarError):
    """A detector's saved state cannot be continued from; starting at 0 only delays its alarms."""


class WatchError(SidecarError):
    """The thread that judges drift did not answer in time; what was asked may still be done."""


class SetupError(SidecarError):
    """The demo cannot start on this machine; the message names the remedy."""
