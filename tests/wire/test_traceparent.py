"""The header `traceparent`: what is valid, and what is no context."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.wire.traceparent import TraceContext, TraceParent, parse

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def is_on_the_wire(text: str) -> bool:
    try:
        return msgspec.convert(text, TraceParent) == text
    except msgspec.ValidationError:
        return False


def test_a_header_names_the_trace_and_the_parent() -> None:
    """The example of the specification."""
    assert parse(PARENT) == TraceContext(TRACE, SPAN, "01")


@pytest.mark.parametrize(
    ("flags", "is_sampled"),
    [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)],
)
def test_the_lowest_flag_says_whether_it_is_sampled(flags: str, is_sampled: bool) -> None:
    """Other flags have other meanings."""
    context = parse(f"00-{TRACE}-{SPAN}-{flags}")
    assert context is not None
    assert context.is_sampled is is_sampled


@pytest.mark.parametrize("header", [f"cc-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-what-ever"])
def test_a_later_version_is_read_as_far_as_it_is_known(header: str) -> None:
    """It may be longer; on the wire it stands as version 00."""
    context = parse(header)
    assert context is not None
    assert context.header == PARENT


@pytest.mark.parametrize(
    "header",
    [
        "",
        PARENT.upper(),
        PARENT + "-more",
        PARENT + "\n",
        PARENT[:-1],
        f"ff-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f" {PARENT}",
    ],
)
def test_anything_else_is_no_context(header: str) -> None:
    """Zeros, capital letters, wrong lengths, version ff; none of them passes the wire either."""
    assert parse(header) is None
    assert is_on_the_wire(header) is (header == "")


@given(st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", fullmatch=True))
def test_what_is_accepted_passes_the_wire_and_back(header: str) -> None:
    """A context's own spelling is valid, and means the same."""
    context = parse(header)
    if context is not None:
        assert is_on_the_wire(context.header)
        assert parse(context.header) == context


@given(st.text(max_size=80))
def test_no_text_raises(header: str) -> None:
    """Headers are written by strangers."""
    assert parse(header) is None or is_on_the_wire(parse(header).header)
