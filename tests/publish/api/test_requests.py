"""The answer about finished requests."""

import numpy as np
import pytest

from sidecar.publish.api import portion
from sidecar.publish.api.problems import Unanswerable
from sidecar.publish.api.requests import requests_answer
from sidecar.wire.frame import Cells, Requests
from sidecar.wire.signals import GROUPS
from sidecar.wire.synthetic import SyntheticEngine
from tests import fakes
from tests.fakes import FRONTEND, NOW, FakeSource, reduced
from tests.publish.plain import plain


def test_a_request_is_told_to_the_last_bit() -> None:
    """Raw sums in float64, as JSON reads them back."""
    arrays = fakes.moments(3)
    arrays.sums[1] = np.random.default_rng(0).normal(size=arrays.sums[1].shape) * 1e9
    one = fakes.request("cmpl-1-0-0badcafe")
    one.moments = arrays.pack()
    reducer = reduced(
        FakeSource().frame(Requests([5, 6, 7], [one])),
        FakeSource(FRONTEND).frame(fakes.serving(fakes.finished("cmpl-1-0"))),
    )
    (told,) = plain(requests_answer(reducer.requests(1)))["requests"]

    assert (told["id"], told["source"]) == ("cmpl-1-0-0badcafe", "engine-dp0-pp0-tp0")
    assert (told["layers"], told["nonfinite"]) == ([5, 6, 7], [0, 1, 2])
    assert told["coverage"]["prefix_cached"] == 16
    assert told["serving"]["reason"] == "stop"
    assert list(told["populations"]) == ["prefill/first", "prefill/rest", "decode/rest"]
    population = told["populations"]["prefill/rest"]
    assert population["rows"] == [60, 60, 60]
    for signal, name in enumerate(("residual_rms", "residual_peak", "block_influence")):
        sums, ends = arrays.sums[1, :, signal], arrays.extremes[1, :, signal]
        assert population[name]["sum"] == sums[:, 0].tolist()
        assert population[name]["log_sum"] == sums[:, 1].tolist()
        assert population[name]["log_square_sum"] == sums[:, 2].tolist()
        assert population[name]["min"] == ends[:, 0].tolist()
        assert population[name]["max"] == ends[:, 1].tolist()
        assert population[name]["mean"] == (sums[:, 0] / 60).tolist()


def test_what_a_request_lacks_is_null() -> None:
    """A layer without rows, extremes that are no numbers, stats that never came."""
    arrays = fakes.moments(2)
    arrays.count[1, 0] = 0
    arrays.extremes[1, 0] = np.nan
    arrays.extremes[1, 1, 0, 1] = np.inf
    one = fakes.request(num_layers=2)
    one.moments = arrays.pack()
    reducer = reduced(FakeSource().frame(Requests([0, 1], [one])))
    (told,) = plain(requests_answer(reducer.requests(1)))["requests"]
    rms = told["populations"]["prefill/rest"]["residual_rms"]

    assert rms["min"][0] is None
    assert rms["max"] == [None, None]
    assert rms["mean"][0] is None
    assert told["serving"] is None


def test_a_canary_is_told_as_such() -> None:
    """By its signature, where that is held; another request has no word about it."""
    source, engine = FakeSource(), SyntheticEngine()
    signed = engine.signatures(2, NOW)
    requests = engine.requests(2, NOW)
    signed.signatures[0].canary = "p1@1790000000000"
    signed.signatures[0].id = requests.requests[0].id
    reducer = reduced(source.frame(requests), source.frame(signed))
    told = plain(requests_answer(reducer.requests(9), canaries=reducer.canaries()))["requests"]

    assert {each["id"]: each["canary"] for each in told} == {
        requests.requests[0].id: "p1@1790000000000",
        requests.requests[1].id: "",
    }


def test_every_table_of_a_request_is_told_in_full() -> None:
    """Count, sums, phi sums, extremes and the last value of each cell, to the last bit."""
    one = fakes.request(num_layers=1)
    reducer = reduced(FakeSource().frame(Requests([0], [one])))
    (told,) = plain(requests_answer(reducer.requests(1)))["requests"]

    assert (told["adapter"], told["preemptions"], told["aborted"]) == ("support", 1, False)
    assert list(told["tables"]) == [table.group for table in one.tables]
    for table in one.tables:
        group, cells = GROUPS[table.group], Cells.unpack(table)
        found = {tuple(cell["labels"].items()): cell for cell in told["tables"][group.id]}
        places = list(np.argwhere(cells.count))
        assert len(found) == len(places) > 0
        for place in map(tuple, places):
            labels = [axis[at] for axis, at in zip(table.axes, place, strict=True)]
            cell = found[tuple(zip(group.axes, labels, strict=True))]
            assert cell["count"] == cells.count[place]
            for index, signal in enumerate(group.signals):
                sums, ends = cells.sums[(*place, index)], cells.extremes[(*place, index)]
                assert cell["signals"][signal.id] == {
                    "mean": sums[0] / cells.count[place],
                    "sum": sums[0],
                    "phi_sum": sums[1],
                    "phi_square_sum": sums[2],
                    "min": ends[0],
                    "max": ends[1],
                    "last": cells.last[(*place, index)],
                }


def test_what_a_table_lacks_is_null() -> None:
    """No latest value was sent, or an extreme that is no number."""
    one = fakes.request(num_layers=1)
    table = fakes.table("probe", ["refusal"], count=2)
    table.extremes = np.array([np.nan, np.inf], "<f4").tobytes()
    one.tables = [table]
    reducer = reduced(FakeSource().frame(Requests([0], [one])))
    (told,) = plain(requests_answer(reducer.requests(1)))["requests"]
    score = told["tables"]["probe"][0]["signals"]["score"]

    assert (score["min"], score["max"], score["last"]) == (None, None, None)


def test_a_request_whose_client_hung_up_says_so() -> None:
    """And only that one."""
    both = [fakes.request("a-0badcafe", 1), fakes.request("b-0badcafe", 1)]
    reducer = reduced(
        FakeSource().frame(Requests([0], both)),
        FakeSource(FRONTEND).frame(fakes.serving(gone=[fakes.aborted("a-0badcafe")])),
    )

    assert [each.aborted for each in requests_answer(reducer.requests(2)).requests] == [False, True]


def test_a_request_names_its_trace_and_what_is_not_known_is_null() -> None:
    """A trace id to look for in a trace backend; NaN would be no JSON."""
    done = fakes.finished("a", traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01")
    done.time_to_first_token = done.temperature = done.top_p = float("nan")
    reducer = reduced(
        FakeSource().frame(Requests([0], [fakes.request(f"{k}-0badcafe", 1) for k in "ba"])),
        FakeSource(FRONTEND).frame(fakes.serving(done, fakes.finished("b"))),
    )
    told = plain(requests_answer(reducer.requests(2)))["requests"]

    assert [each["trace_id"] for each in told] == ["ab" * 16, ""]
    unknown = ("time_to_first_token", "temperature", "top_p")
    assert [told[0]["serving"][name] for name in unknown] == [None, None, None]
    assert [told[1]["serving"][name] for name in unknown] == [0.5, 0.5, 0.875]
    assert told[0]["serving"]["start_ns"] == done.start_ns


def test_an_answer_is_bounded_and_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit; a client that asked for more is told how many do."""
    reducer = reduced(FakeSource().frame(Requests([0], [fakes.request(num_layers=1)] * 9)))
    measured = reducer.requests(9)
    whole = requests_answer(measured)
    assert (len(whole.requests), whole.num_left_out) == (9, 0)

    monkeypatch.setattr(portion, "MAX_NUMBERS", 1000)
    part = requests_answer(measured)
    assert (len(part.requests), part.num_left_out) == (4, 5)
    with pytest.raises(Unanswerable, match="limit=9: an answer holds 1000 numbers") as raised:
        requests_answer(measured, 9)
    assert raised.value.status_code == 422
    assert "limit=4 or less" in raised.value.remedy

    monkeypatch.setattr(portion, "MAX_NUMBERS", 1)
    assert len(requests_answer(measured).requests) == 1


def test_the_bound_counts_every_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an answer is thought to hold is no less than what it holds."""

    def numbers(value: object) -> int:
        if isinstance(value, dict):
            return sum(map(numbers, value.values()))
        if isinstance(value, list):
            return sum(map(numbers, value))
        return isinstance(value, float)

    reducer = reduced(FakeSource().frame(Requests([0, 1, 2], [fakes.request()])))
    measured = reducer.requests(1)
    (told,) = plain(requests_answer(measured))["requests"]
    in_answer = numbers(told["populations"]) + numbers(told["tables"])
    monkeypatch.setattr(portion, "MAX_NUMBERS", 2 * in_answer - 1)

    assert len(requests_answer(measured * 2).requests) == 1
