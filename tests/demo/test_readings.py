"""The sidecar's JSON becomes a reading, whatever it holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.demo.readings import CanaryReading, LayerReading, read

STATUS = {
    "ready": False,
    "reasons": ["no frame yet"],
    "sources": [
        {"source": "engine-dp0-pp0-tp0", "role": "engine", "state": "live", "reason": ""},
        {"source": "frontend-0", "role": "frontend", "state": "live", "reason": ""},
    ],
    "serving": [{"requests_running": 3, "ttft_seconds": {"count": 1, "mean": 0.5}}],
}


def row(layer: int, phase: str, position: str, value: float | None) -> dict[str, object]:
    signals = {name: {"mean": value} for name in ("residual_rms", "residual_peak")}
    return {"layer": layer, "phase": phase, "position": position, "signals": signals}


def test_layers_are_sorted_and_phases_joined() -> None:
    """One reading per layer, with prefill beside decode, in the order of depth."""
    rows = [row(1, "decode", "rest", 4.0), row(0, "decode", "rest", 2.0)]
    layers = read({}, {"rows": [*rows, row(0, "prefill", "rest", 1.0)]}).layers
    assert layers == (
        LayerReading(0, 1.0, 2.0, 2.0, None, None),
        LayerReading(1, None, 4.0, 4.0, None, None),
    )


def test_first_positions_are_left_out() -> None:
    """Attention sinks, with norms tens of times larger, never enter the table."""
    assert read({}, {"rows": [row(0, "decode", "first", 99.0)]}).layers == ()


def test_only_engines_have_taps() -> None:
    """A front end has no tap to show; readiness and its reasons come along."""
    reading = read(STATUS, None)
    assert [tap.source for tap in reading.taps] == ["engine-dp0-pp0-tp0"]
    assert (reading.ready, reading.reasons) == (False, ("no frame yet",))
    assert reading.serving.running == 3.0
    assert reading.serving.time_to_first_token == 0.5


def test_the_canary_is_the_channel_of_that_name() -> None:
    """Its state, its sentence, and since when; a sidecar without it shows none."""
    page = {
        "channel": "canary",
        "state": "page",
        "reason": "from layer 2 on",
        "since_ns": 5 * 10**9,
    }
    channels = [{"channel": "traffic", "state": "armed"}, page]
    assert read({}, {}, {"channels": channels}).canary == CanaryReading(
        "page", "from layer 2 on", 5.0
    )
    quiet = page | {"state": "armed", "since_ns": None}
    assert read({}, {}, {"channels": [quiet]}).canary == CanaryReading("armed", "from layer 2 on")
    assert read({}, {}, {"channels": channels[:1]}).canary is None
    assert read({}, {}).canary is None


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "7", True])
def test_what_is_no_number_is_unknown(value: object) -> None:
    """NaN, infinity, text and booleans are shown as unknown, not as numbers."""
    (layer,) = read({}, {"rows": [row(0, "decode", "rest", value)]}).layers  # type: ignore[arg-type]
    assert layer.decode_rms is None


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["rows", "layer", "signals", "sources", "role", "serving", "x"]), inner
        )
    ),
    max_leaves=12,
)


@given(JSON, JSON)
def test_any_json_gives_a_reading(status: object, layers: object) -> None:
    """A sidecar of another version, or an error page, never ends the demo."""
    read(status, layers)
