"""The intruder: has the served model changed while it serves, so that the canary can be seen.

Guarantee: it strikes once, when the user asks, or by itself after the canary has been armed and
quiet for `QUIET_SECONDS`; a strike that fails is told in words and may be tried again.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import httpx

from sidecar.demo.gate import HEADER
from sidecar.demo.readings import CanaryReading
from sidecar.demo.tampering import METHOD

QUIET_SECONDS: Final = 10.0
ARMED: Final = "armed"
_HINT: Final = "type t and Enter to tamper with the model while it serves"
_WAIT: Final = "the model can be tampered with (type t and Enter) once the canary is armed"


class Intruder:
    """Strikes through vLLM's development endpoint, for which the gate asks `key`.

    by_itself: whether it waits for nobody. clock: Unix seconds.
    """

    def __init__(
        self, key: str, *, by_itself: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self._key = key
        self._by_itself = by_itself
        self._clock = clock
        self._quiet_since: float | None = None
        self._is_asked = False
        self._is_armed = False
        self._done = ""
        self._failed = ""

    def ask(self) -> None:
        """The user wants it done."""
        self._is_asked = True

    @property
    def word(self) -> str:
        """What it has done, or how to have it done."""
        if self._done or self._failed:
            return self._done or self._failed
        return _HINT if self._is_armed else _WAIT

    async def watch(self, canary: CanaryReading | None, client: httpx.AsyncClient) -> None:
        """Strike when it is time; `client` talks to vLLM."""
        self._is_armed = canary is not None and canary.state == ARMED
        if self._done or not self._is_time():
            return
        self._is_asked = False
        try:
            told = await self._strike(client)
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            self._failed = f"the model could not be tampered with: {error!r}; type t to try again"
            return
        at = time.strftime("%H:%M:%S", time.localtime(self._clock()))
        num_tensors = len(told["tensors"])
        self._done = f"{at} tampered with layer {told['layer']} ({num_tensors} of its tensors)"

    def _is_time(self) -> bool:
        if not self._is_armed:
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = self._clock()
        is_quiet = (
            self._quiet_since is not None and self._clock() - self._quiet_since >= QUIET_SECONDS
        )
        return self._is_asked or (self._by_itself and is_quiet and not self._failed)

    async def _strike(self, client: httpx.AsyncClient) -> Any:
        answer = await client.post(
            "/collective_rpc", json={"method": METHOD}, headers={HEADER: self._key}, timeout=30.0
        )
        answer.raise_for_status()
        return answer.json()["results"][0]
