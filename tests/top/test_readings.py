"""What `sidecar top` makes of the sidecar's JSON."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sidecar.top.readings import Choice, take
from sidecar.wire.signals import Phase
from tests.top.documents import NOW, Sidecar, answers

json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def bent(document: Any, draw: Any) -> Any:
    """The same document with some of its parts replaced by anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(json)
    if isinstance(document, dict):
        return {key: bent(value, draw) for key, value in document.items()}
    if isinstance(document, list):
        return [bent(value, draw) for value in document]
    return document


def test_everything_that_is_shown_is_read() -> None:
    """Sentence, channels that are configured, layers, lines and sources."""
    reading = take(Sidecar(), Choice())

    assert (reading.level, reading.sentence) == ("ok", "This is how things stand.")
    [canary] = reading.channels
    assert (canary.name, canary.level, canary.since) == ("canary", 0.25, NOW)
    assert canary.causes == ("layer 3 residual_rms 1.8x",)
    assert [row.latest for row in reading.layers.rows[:2]] == [(0.29, 0.0), (1.29, 1.0)]
    assert reading.layers.quiet == 0.0
    assert [(line.name, line.values[-1]) for line in reading.lines] == [
        ("tokens", 29.0),
        ("waiting", None),
    ]
    assert [(each.name, each.state, each.age) for each in reading.sources] == [
        ("engine-dp0", "live", 0.4)
    ]
    assert reading.signals == ("residual_rms", "block_influence")


def test_the_signal_and_phase_chosen_are_asked_for() -> None:
    """The timeline is asked for what the user chose."""
    sidecar = Sidecar()
    take(sidecar, Choice("block_influence", Phase.PREFILL))

    assert "/v1/timeline?signal=block_influence&phase=prefill&position=rest" in sidecar.asked


def test_rows_that_stopped_are_counted_in_seconds() -> None:
    """From the end of the last column with rows; columns without have no values."""
    told = answers(seconds=30)
    for column in told["/v1/timeline"]["columns"][-10:]:
        column |= {"rows": 0, "values": None, "z": None}
    layers = take(Sidecar(told), Choice()).layers

    assert layers.quiet == 10.0
    assert layers.rows[0].values[-1] is None
    assert layers.rows[0].latest == (0.19, 0.0)


def test_a_truth_is_no_number() -> None:
    """True is 1 to Python, and to nobody who looks at a screen."""
    told = answers()
    told["/v1/status"]["sources"][0]["last_frame_age_seconds"] = True

    assert take(Sidecar(told), Choice()).sources[0].age is None


@given(st.data())
def test_any_json_gives_a_reading(data: st.DataObject) -> None:
    """Another release's answers, or a stranger's, are missing numbers and never an exception."""
    told = {path: bent(document, data.draw) for path, document in answers(2, seconds=3).items()}

    reading = take(Sidecar(told), Choice())

    assert reading.sentence
