"""Entry point `vllm.general_plugins`: runs in every vLLM process, and does next to nothing.

With the tap not switched on it returns after one look at the environment and the command line: no
patch, no thread, no import. With it on it patches two constructors, idempotently; sockets and
threads open later, in the worker and in the front end. It never raises.
"""

import json
import logging
import multiprocessing
import os
import sys
from collections.abc import MutableMapping, Sequence
from typing import Any, Final

from sidecar.config import PREFIX, TapConfig, is_tap_on
from sidecar.errors import SidecarError, TapRefused

PLUGIN_NAME: Final = "llm_internals_sidecar"


def register() -> None:
    """Switch the tap on in this process, if the operator asked for it."""
    try:
        if is_requested(os.environ, sys.argv):
            _install()
    except Exception as error:  # vLLM would die of it; an untapped engine serves on
        _LOG.warning("sidecar: cannot install the tap; serving untapped", exc_info=error)


def is_requested(environ: MutableMapping[str, str], argv: Sequence[str]) -> bool:
    """Whether `SIDECAR_TAP` or `--additional-config '{"sidecar": {...}}'` asks for the tap.

    A request on the command line is written into `environ`, because the engine's processes
    inherit that and not the command line.
    """
    if f"{PREFIX}TAP" in environ:
        return is_tap_on(environ)
    asked = _sidecar_options(argv)
    if asked is None or asked.get("tap", True) is False:
        return False
    environ[f"{PREFIX}TAP"] = "1"
    return True


def _sidecar_options(argv: Sequence[str]) -> dict[str, Any] | None:
    for position, argument in enumerate(argv):
        flag, _, value = argument.partition("=")
        if flag.replace("_", "-") != "--additional-config":
            continue
        text = value or (argv[position + 1] if position + 1 < len(argv) else "")
        try:
            options = json.loads(text).get("sidecar")
        except (ValueError, AttributeError):
            return None  # vLLM will say what is wrong with it
        return options if isinstance(options, dict) else None
    return None


def _install() -> None:
    # Imported only here: an installed package that is not switched on costs nothing.
    from sidecar.tap.vllm import releases  # noqa: PLC0415

    try:
        releases.check_version(releases.installed_version())
        from sidecar.tap.vllm import request_stats, worker  # noqa: PLC0415

        worker.install()
        request_stats.install()
    except (SidecarError, ImportError, AttributeError) as error:
        _refuse(error)


def _refuse(error: Exception) -> None:
    """Say so from the main process alone: the others would only repeat it."""
    if multiprocessing.parent_process() is not None:
        return
    from sidecar.tap.vllm import refusal  # noqa: PLC0415

    refused = error if isinstance(error, SidecarError) else TapRefused(f"unread layout: {error}")
    refusal.report_unread(TapConfig.meeting_point(os.environ), refused)


_LOG = logging.getLogger("sidecar.tap")
