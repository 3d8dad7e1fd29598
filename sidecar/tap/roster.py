"""Who is being served: what the scheduler and the client said of each living request.

Written by the engine's thread, read by the pump's: an entry is replaced, never changed. A client
may ask with `vllm_xargs={"llm_internals": "all"}` that its request is sampled at every step, and
with `"off"`, where the operator allows it, that it is not measured at all; `llm_internals_route`
says which kind of traffic it is, and the tag of `wire.canary` that it is a canary. A tag is kept as
it came: proving it takes a hash, and whoever tells of the request does that, off the step path.
"""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple

from sidecar.wire import canary

XARG: Final = "llm_internals"
ROUTE_XARG: Final = "llm_internals_route"
OTHER_ADAPTER: Final = "other"
OTHER_ROUTE: Final = "other"


class Entry(NamedTuple):
    """One request.

    adapter: its LoRA adapter when the operator listed it, `other` for one unlisted, "" for none.
    is_forced: sampled at every step. is_out: not measured.
    route: its kind of traffic when the operator listed it, `other` for one unlisted, "" for none.
    tag: what it gave for the proof that it is a canary, unproven; "" when it gave nothing.
    entered_ns: Unix time at which it came with that tag; 0 without one.
    """

    adapter: str = ""
    is_forced: bool = False
    is_out: bool = False
    preemptions: int = 0
    route: str = ""
    tag: str = ""
    entered_ns: int = 0


class Roster:
    """Living requests by id.

    adapters, routes: names that may be labels. allow_opt_out: whether `"off"` is heard.
    """

    def __init__(
        self,
        adapters: Collection[str] = (),
        routes: Collection[str] = (),
        *,
        allow_opt_out: bool = False,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.opted_out: set[str] = set()
        self.forced: set[str] = set()
        self.adapters = ("", *adapters, OTHER_ADAPTER)
        self._adapter_index = {name: index for index, name in enumerate(self.adapters)}
        self._routes = frozenset(routes)
        self._allow_opt_out = allow_opt_out
        self._clock_ns = clock_ns
        self._entries: dict[str, Entry] = {}

    def enter(self, req_id: str, adapter: str | None, extra: Mapping[str, Any] | None) -> None:
        """A request is scheduled for the first time. Step path."""
        extra = extra or {}
        wish = extra.get(XARG)
        is_out = self._allow_opt_out and wish == "off"
        label = ""
        if adapter is not None:
            label = adapter if adapter in self._adapter_index else OTHER_ADAPTER
        # A preempted request may be announced anew when it is resumed.
        known = self.get(req_id)
        tag = _tag(extra)
        came_ns = (known.entered_ns or self._clock_ns()) if tag else 0
        self._entries[req_id] = Entry(
            label, wish == "all", is_out, known.preemptions, self._route(extra), tag, came_ns
        )
        if wish == "all":
            self.forced.add(req_id)
        if is_out:
            self.opted_out.add(req_id)

    def preempt(self, req_ids: Collection[str]) -> None:
        """Requests lost their KV cache and will be computed again."""
        for req_id in req_ids:
            entry = self.get(req_id)
            self._entries[req_id] = entry._replace(preemptions=entry.preemptions + 1)

    def leave(self, req_id: str) -> Entry:
        """A request is over."""
        self.forced.discard(req_id)
        self.opted_out.discard(req_id)
        return self._entries.pop(req_id, _NOBODY)

    def __contains__(self, req_id: str) -> bool:
        """Whether a request has entered and not left."""
        return req_id in self._entries

    def get(self, req_id: str) -> Entry:
        """What is known of a request; the entry of nobody when it is unknown."""
        return self._entries.get(req_id, _NOBODY)

    def adapter_index(self, req_id: str) -> int:
        """Place of its adapter in `adapters`."""
        return self._adapter_index[self.get(req_id).adapter]

    def _route(self, extra: Mapping[str, Any]) -> str:
        named = extra.get(ROUTE_XARG)
        if named is None or named == "":
            return ""
        return named if isinstance(named, str) and named in self._routes else OTHER_ROUTE


def _tag(extra: Mapping[str, Any]) -> str:
    given = extra.get(canary.XARG)
    return given if isinstance(given, str) and len(given) <= canary.MAX_TAG else ""


_NOBODY: Final = Entry()
