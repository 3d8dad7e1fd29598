"""Refusals: said once in the log, and for ever on the wire, while serving goes on untapped."""

import logging

from sidecar import __version__
from sidecar.config import TapConfig
from sidecar.errors import ConfigError, SidecarError, TapRefused
from sidecar.tap.guard import Guard
from sidecar.tap.nameplate import Nameplate
from sidecar.tap.pump import Pump, idle_work
from sidecar.tap.vllm.releases import installed_version
from sidecar.wire.channel import Sender
from sidecar.wire.frame import Source


def report(
    config: TapConfig, source: Source, engine: Nameplate, error: SidecarError, guard: Guard
) -> None:
    """Log `error`, and send it as the state of `source` with every flush from now on."""
    _LOG.warning("sidecar: serving untapped: %s", error)
    reason = error.reason if isinstance(error, TapRefused) else "configuration"
    status = engine.status("refused", reason, str(error), guard.errors)
    sender = Sender(config.socket, source, _key(config))
    Pump(sender, idle_work(lambda: [status]), guard, config.flush_seconds).start()


def report_unread(config: TapConfig, error: SidecarError) -> None:
    """Report a vLLM of which nothing is known but its version."""
    engine = Nameplate(model_name="", vllm_version=installed_version(), tap_version=__version__)
    report(config, Source("engine"), engine, error, Guard(config.max_errors))


def _key(config: TapConfig) -> bytes | None:
    # The key file may be what is wrong: then a receiver without a key still hears of it.
    try:
        return config.key()
    except ConfigError:
        return None


_LOG = logging.getLogger("sidecar.tap")
