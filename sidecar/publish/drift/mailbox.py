"""A bounded queue between two threads: the giver never waits, and what finds no room is counted.

Guarantees: `put` holds a lock for a few hundred nanoseconds, whatever the taker does; at most
`max_bytes` wait, and as many again may be in the taker's hands; what arrives first leaves first.
"""

import threading
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class Mailbox(Generic[_Item]):
    """Items in, all of them out at once."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._items: list[_Item] = []
        self._num_bytes = 0

    def put(self, item: _Item, num_bytes: int) -> bool:
        """Take `item`, or say that there is no room for so many bytes."""
        with self._changed:
            if self._num_bytes + num_bytes > self._max_bytes:
                return False
            self._items.append(item)
            self._num_bytes += num_bytes
            self._changed.notify()
            return True

    def wake(self) -> None:
        """Let the taker go on without an item."""
        with self._changed:
            self._changed.notify()

    def take(self, timeout_seconds: float) -> list[_Item]:
        """Everything that waits; when nothing does, what comes in time."""
        with self._changed:
            if not self._items:
                self._changed.wait(timeout_seconds)
            items, self._items = self._items, []
            self._num_bytes = 0
            return items
