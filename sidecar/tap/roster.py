"""Who is being served: what the scheduler and the client said of each living request.

Written by the engine's thread, read by the pump's: an entry is replaced, never changed. A client
may ask with `vllm_xargs={"llm_internals": "all"}` that its request is sampled at every step, and
with `"off"`, where the operator allows it, that it is not measured at all.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

XARG: Final = "llm_internals"
OTHER_ADAPTER: Final = "other"


class Entry(NamedTuple):
    """One request.

    adapter: its LoRA adapter when the operator listed it, `other` for one unlisted, "" for none.
    is_forced: sampled at every step. is_out: not measured.
    """

    adapter: str = ""
    is_forced: bool = False
    is_out: bool = False
    preemptions: int = 0


class Roster:
    """Living requests by id.

    adapters: names that may be labels. allow_opt_out: whether `"off"` is heard.
    """

    def __init__(self, adapters: Collection[str] = (), *, allow_opt_out: bool = False) -> None:
        self.opted_out: set[str] = set()
        self.forced: set[str] = set()
        self.adapters = ("", *adapters, OTHER_ADAPTER)
        self._adapter_index = {name: index for index, name in enumerate(self.adapters)}
        self._allow_opt_out = allow_opt_out
        self._entries: dict[str, Entry] = {}

    def enter(self, req_id: str, adapter: str | None, extra: Mapping[str, Any] | None) -> None:
        """A request is scheduled for the first time. Step path."""
        wish = (extra or {}).get(XARG)
        is_out = self._allow_opt_out and wish == "off"
        label = ""
        if adapter is not None:
            label = adapter if adapter in self._adapter_index else OTHER_ADAPTER
        # A preempted request may be announced anew when it is resumed.
        known = self.get(req_id).preemptions
        self._entries[req_id] = Entry(label, wish == "all", is_out, known)
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


_NOBODY: Final = Entry()
