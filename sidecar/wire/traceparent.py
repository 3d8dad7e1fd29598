"""The caller's place in a distributed trace: the header `traceparent` of W3C Trace Context.

Guarantees: what `parse` accepts is exactly what https://www.w3.org/TR/trace-context/#traceparent-header
calls valid, the longer headers of later versions included; all else is no context, never an error.
On the wire a context has one spelling, that of version 00, of 55 characters.
"""

import re
from typing import Annotated, Final, NamedTuple

import msgspec

_SAMPLED: Final = 0x01
_FIELDS: Final = r"((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})"

# "" stands for no context.
TraceParent = Annotated[str, msgspec.Meta(max_length=55, pattern=rf"\A(00-{_FIELDS})?\Z")]


class TraceContext(NamedTuple):
    """Where a caller stands.

    trace_id: 32 hex digits; span_id: 16, of the caller's own span, which is the parent of ours.
    flags: 2 hex digits.
    """

    trace_id: str
    span_id: str
    flags: str

    @property
    def is_sampled(self) -> bool:
        """Whether the caller says that this trace is recorded."""
        return bool(int(self.flags, 16) & _SAMPLED)

    @property
    def header(self) -> str:
        """The context as it stands on the wire."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


def parse(header: str) -> TraceContext | None:
    """The context in a header, or None when it is not a valid one.

    >>> parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").is_sampled
    True
    >>> parse("00-00000000000000000000000000000000-b7ad6b7169203331-01") is None
    True
    """
    found = (_FIRST if header.startswith("00") else _LATER).match(header)
    return TraceContext(*found.groups()) if found else None


_FIRST: Final = re.compile(rf"00-{_FIELDS}\Z")
# May have more fields; version ff is invalid.
_LATER: Final = re.compile(rf"(?!ff)[0-9a-f]{{2}}-{_FIELDS}(?:-.*)?\Z", re.DOTALL)
