"""Laws that every channel keeps."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec


def goes_on_where_it_stopped(make: Callable[[], Any], windows: Sequence[Any], at: int) -> None:
    """Export, pack, unpack, restore into a new channel and go on: equal to the bit."""
    whole, first, second = (make() for _ in range(3))
    for each in windows:
        whole.update(each)
    for each in windows[:at]:
        first.update(each)
    second.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(first.export())))
    for each in windows[at:]:
        second.update(each)

    assert second.export() == whole.export()
    assert second.get(0) == whole.get(0)
