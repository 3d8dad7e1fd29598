"""The errors this package raises on purpose, drawn as a tree.

    SidecarError
    ├── ConfigError       a key or value the operator gave cannot be used
    ├── FrameError        a peer's message cannot be accepted; `.cause` labels a counter
    ├── ChannelError      the socket cannot be opened, or is owned by another process
    ├── TapRefused        this engine or model cannot be tapped; serving goes on untapped
    ├── WeightsUnread     the files of a model cannot be hashed; all else is measured
    ├── SetupError        the demo cannot start on this machine
    ├── BaselineError     a baseline cannot be compared or merged; the message names the field
    ├── FleetError        Prometheus or an exporter answers amiss; `.cause` labels a counter
    ├── StateError        the state of an earlier life is not of this release or baseline
    ├── StoreError        a file is torn, foreign or not signed as it must be
    └── WatchError        the thread that judges drift does not answer in time

Every message says what is wrong and names the remedy. Foreign errors are mapped to these at one
border each (`config`, `wire.frame`, `wire.channel`, `tap.vllm.plugin`, `store`, `publish.fetching`,
`demo`).
"""

from typing import Final

__all__ = [
    "UNREADABLE",
    "BaselineError",
    "ChannelError",
    "ConfigError",
    "FleetError",
    "FrameError",
    "SetupError",
    "SidecarError",
    "StateError",
    "StoreError",
    "TapRefused",
    "WatchError",
    "WeightsUnread",
]


# What it may cost to read plain values that a stranger wrote: a key or an item that is not there,
# another type, and a number that is none (`int` of infinity is an OverflowError).
UNREADABLE: Final = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


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


class FleetError(SidecarError):
    """Prometheus, or an exporter of the fleet, does not answer, or not as it must.

    `cause` is one of `sidecar.publish.fleet.fetching.CAUSES`, and becomes the label of a counter.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class TapRefused(SidecarError):
    """This engine or model cannot be tapped. Serving goes on; `reason` labels a metric."""

    def __init__(self, message: str, reason: str = "not_supported") -> None:
        super().__init__(message)
        self.reason = reason


class StateError(SidecarError):
    """What was saved cannot be continued from; a detector that starts at 0 only alarms later."""


class WatchError(SidecarError):
    """The thread that judges drift did not answer in time; what was asked may still be done."""


class WeightsUnread(SidecarError):
    """The files a model was loaded from cannot be told or hashed; the tap works without."""


class SetupError(SidecarError):
    """The demo cannot start on this machine; the message names the remedy."""


class BaselineError(SidecarError):
    """A baseline cannot be compared with what is served, or with another one."""


class StoreError(SidecarError):
    """A file is torn, foreign, of another version, or not signed as it must be."""
