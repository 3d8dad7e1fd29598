"""Where a span stands: under the caller's, or in a trace of its own."""

from hypothesis import given
from hypothesis import strategies as st

from sidecar.publish.traces.context import Parent, own_ids
from tests.publish.traces.spans import CALLER, UNSAMPLED_CALLER


def test_a_callers_header_names_the_parent() -> None:
    """And whether the caller keeps its trace."""
    parent = Parent.of(CALLER)

    assert parent == Parent(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, True)  # noqa: FBT003
    assert Parent.of(UNSAMPLED_CALLER) == parent._replace(is_sampled=False)


def test_no_header_is_no_parent() -> None:
    """Nor is one that is not valid; the wire refuses it, and so do we."""
    assert Parent.of("") is None
    assert Parent.of("00-" + 32 * "0" + "-b7ad6b7169203331-01") is None
    assert Parent.of("zz" + CALLER[2:]) is None


@given(st.text(), st.integers(0, 2**63))
def test_own_ids_follow_from_the_request_alone(name: str, end_ns: int) -> None:
    """The same request is the same span after a restart; an id is never 0, which means none."""
    trace_id, span_id = own_ids(name, end_ns)

    assert (trace_id, span_id) == own_ids(name, end_ns)
    assert 0 < trace_id < 2**128
    assert 0 < span_id < 2**64
    assert own_ids(name, end_ns + 1) != (trace_id, span_id)
