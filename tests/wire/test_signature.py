"""The layout of a signature: a name for each place, and as many places as are counted."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.wire.signature import VERSION, Layout, entries, size

ids = st.lists(st.integers(0, 200), max_size=4, unique=True).map(sorted)
layouts = st.builds(
    Layout,
    ids,
    ids,
    ids,
    ids,
    st.integers(0, 4),
    st.integers(0, 1 << 62),
    st.lists(st.sampled_from(["a", "b", "c"]), unique=True),
)


@given(layouts)
def test_there_is_one_name_for_each_entry(layout) -> None:
    """As many as `size` says, and no two alike."""
    names = list(entries(layout))
    assert len(names) == len(set(names)) == size(layout)


@given(layouts)
def test_a_layout_survives_the_wire(layout) -> None:
    """Two sides that compare layouts compare the same thing."""
    packed = msgspec.msgpack.encode(layout)
    assert msgspec.msgpack.decode(packed, type=Layout) == layout


def test_the_order_is_the_contract() -> None:
    """Version 1: group by group, phase before layer before entry. A change is a new version."""
    assert VERSION == 1
    assert list(entries(Layout([4, 9], [5], [6], [7], 2, 0, ["refusal"]))) == [
        *(
            f"residual/{phase}/l{layer}/{name}"
            for phase in ("prefill", "decode")
            for layer in (4, 9)
            for name in ("log_rms", "log_rms_max", "log_influence", "log_peak")
        ),
        *(
            f"attention/{phase}/l5/{name}"
            for phase in ("prefill", "decode")
            for name in ("entropy", "logit_sink_mass", "log_effective_tokens")
        ),
        *(
            f"router/{phase}/l6/{name}"
            for phase in ("prefill", "decode")
            for name in ("gate_entropy", "log_topk_margin")
        ),
        "confidence/entropy",
        "confidence/last_entropy",
        "confidence/top1_margin",
        "confidence/min_logprob",
        "sketch/l7/last_prompt/0",
        "sketch/l7/last_prompt/1",
        "sketch/l7/mean_decode/0",
        "sketch/l7/mean_decode/1",
        "probe/refusal",
    ]


@pytest.mark.parametrize(
    "changes",
    [{"sketch_size": 65}, {"sketch_size": -1}, {"layers": [-1]}, {"probes": ["x" * 257]}],
)
def test_a_layout_out_of_bounds_is_refused(changes) -> None:
    """What a stranger declares is bounded before it is counted."""
    packed = msgspec.msgpack.encode(msgspec.structs.replace(Layout([0]), **changes))
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(packed, type=Layout)
