"""Where a span stands in a trace: under the caller's span, or in a trace of its own.

Guarantee: ids of our own follow from the request, so the same request is the same span after a
restart too, and two sidecars that heard it agree.
"""

import hashlib
from typing import NamedTuple, Self

from sidecar.wire.traceparent import parse


class Parent(NamedTuple):
    """The caller's span. is_sampled: whether the caller keeps its part of the trace."""

    trace_id: int
    span_id: int
    is_sampled: bool

    @classmethod
    def of(cls, traceparent: str) -> Self | None:
        """The span that a header names; None when it names none.

        >>> Parent.of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").is_sampled
        True
        """
        found = parse(traceparent)
        if found is None:
            return None
        return cls(int(found.trace_id, 16), int(found.span_id, 16), found.is_sampled)


def own_ids(*names: str | int) -> tuple[int, int]:
    """A trace id and a span id that follow from `names`; never 0."""
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:24]) or 1
