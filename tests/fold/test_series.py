"""What one source has told so far."""

import numpy as np

from sidecar.fold.series import LayerSeries, ServingSeries
from sidecar.wire.frame import Layers
from tests import fakes
from tests.fakes import NOW, SECOND


def unpacked(body: Layers) -> Layers:
    """The same body, as it comes out of the wire."""
    frame = fakes.FakeSource().frame(body)
    assert isinstance(frame.body, Layers)
    return frame.body


def test_nothing_is_known_before_the_first_frame() -> None:
    """No data yet is None, not zeros."""
    assert LayerSeries().get() is None
    assert ServingSeries().get() is None


def test_later_totals_replace_earlier_ones() -> None:
    """Totals are cumulative on the wire, so they are never added up here."""
    series = LayerSeries()
    series.update(NOW, unpacked(fakes.layers(scale=1.0)))
    series.update(NOW + SECOND, unpacked(fakes.layers(scale=2.0, num_steps=8)))
    totals = series.get()

    assert totals is not None
    assert totals.num_steps == 8
    np.testing.assert_array_equal(fakes.moments(3, 2.0).sums, totals.moments.sums)


def test_any_frame_of_the_source_closes_its_window() -> None:
    """An idle engine sends no layers, but its window ends all the same."""
    series = LayerSeries()
    series.update(NOW, unpacked(fakes.layers()))
    series.advance(NOW + 10 * SECOND)
    totals = series.get()
    assert totals is not None
    np.testing.assert_array_equal(fakes.moments(3).extremes, totals.window)

    series.advance(NOW + 20 * SECOND)
    totals = series.get()
    assert totals is not None
    assert totals.window is None


def test_a_window_of_other_layers_is_not_shown() -> None:
    """Extremes are never shown beside layers that they do not belong to."""
    series = LayerSeries()
    series.update(NOW, unpacked(fakes.layers(num_layers=3)))
    series.update(NOW + 10 * SECOND, unpacked(fakes.layers(num_layers=2)))
    totals = series.get()

    assert totals is not None
    assert totals.layers == (0, 1)
    assert totals.window is None


def test_latencies_are_observed_once_each() -> None:
    """Each frame's new observations are added to the distributions."""
    series = ServingSeries()
    series.update(NOW, fakes.serving(fakes.finished("a"), fakes.finished("b", "length")))
    series.update(NOW + SECOND, fakes.serving(fakes.finished("c")))
    totals = series.get()

    assert totals is not None
    seconds = (totals.first_token, totals.output_token, totals.e2e, totals.queue)
    assert [each.num_values for each in seconds] == [3, 3, 3, 3]
    assert [each.mean for each in seconds] == [0.5, 0.125, 2.0, 0.25]
    assert (totals.finished["stop"], totals.finished["length"]) == (2, 1)


def test_a_single_token_has_no_time_per_output_token() -> None:
    """Time per token after the first exists only where there is a second."""
    one_token = fakes.finished()
    one_token.generated_tokens = 1
    series = ServingSeries()
    series.update(NOW, fakes.serving(one_token))
    totals = series.get()

    assert totals is not None
    assert totals.output_token.num_values == 0
    assert totals.e2e.num_values == 1


def test_aborted_requests_are_counted_and_have_no_latency() -> None:
    """Their clients hung up: vLLM reports no stats of them."""
    series = ServingSeries()
    series.update(
        NOW,
        fakes.serving(
            fakes.finished("a"), gone=[fakes.aborted(f"{each}-0badcafe") for each in "bc"]
        ),
    )
    series.update(NOW, fakes.serving(gone=[fakes.aborted("d-0badcafe")]))
    totals = series.get()

    assert totals is not None
    assert (totals.finished["abort"], totals.finished["stop"]) == (3, 1)
    assert totals.e2e.num_values == 1


def test_strange_finish_reasons_share_one_label() -> None:
    """Whatever a front end calls a reason, there are at most six series."""
    series = ServingSeries()
    for index in range(100):
        series.update(NOW, fakes.serving(fakes.finished(reason=f"reason {index}")))
    totals = series.get()

    assert totals is not None
    assert totals.finished["other"] == 100
    assert len(totals.finished) == 6


def test_front_ends_of_one_engine_add_up() -> None:
    """Counters and distributions are sums; gauges are those of the later frame."""
    ours, theirs = ServingSeries(), ServingSeries()
    ours.update(NOW, fakes.serving(fakes.finished("a")))
    later = fakes.serving(fakes.finished("b", "abort"))
    later.running = 5
    theirs.update(NOW + SECOND, later)
    one, other = ours.get(), theirs.get()
    assert one is not None
    assert other is not None

    for both in (one.merge(other), other.merge(one)):
        assert both.prompt_tokens == 1280
        assert both.running == 5
        assert both.e2e.num_values == 2
        assert (both.finished["stop"], both.finished["abort"]) == (1, 1)


def test_a_request_whose_trace_is_recorded_stands_for_its_buckets() -> None:
    """In each histogram that its front end can tell; another one's latest stays where it was."""
    series = ServingSeries()
    series.update(NOW, fakes.serving(fakes.finished("a", traceparent=fakes.TRACEPARENT)))
    series.update(NOW, fakes.serving(fakes.finished("b")))
    totals = series.get()
    assert totals is not None
    for held, value in (
        (totals.first_token, 0.5),
        (totals.output_token, 0.125),
        (totals.e2e, 2.0),
    ):
        (found,) = filter(None, held.exemplars)
        assert (found.value, found.t_ns) == (value, NOW)
        assert f"00-{found.trace_id}-{found.span_id}-01" == fakes.TRACEPARENT
    assert not any(totals.queue.exemplars)


def test_a_request_of_one_token_stands_for_no_time_per_token() -> None:
    """There is no second token, and no value was counted."""
    done = fakes.finished("a", traceparent=fakes.TRACEPARENT)
    done.generated_tokens = 1
    series = ServingSeries()
    series.update(NOW, fakes.serving(done))
    totals = series.get()
    assert totals is not None
    assert any(totals.e2e.exemplars)
    assert not any(totals.output_token.exemplars)
