"""Fitting instruments: what cannot be fitted is left out with its reason, and the rest works."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from sidecar.config import TapConfig
from sidecar.errors import TapRefused
from sidecar.tap.sites import Site
from sidecar.tap.vllm import fitting, worker
from sidecar.tap.vllm.fitting import Workbench, fit, plain
from sidecar.wire.frame import Requests, Source, Status
from sidecar.wire.signature import Layout
from tests.tap.toys import Decoder
from tests.tap.vllm.fakes import Row, vllm_config
from tests.tap.vllm.test_worker import seated, serve


@pytest.fixture
def bench(guard) -> Workbench:
    """A workbench at a toy model of three layers."""
    model = Decoder()
    return Workbench(
        SimpleNamespace(get_model=lambda: model),
        vllm_config(model, scheduler_config={"max_num_seqs": 6}),
        TapConfig(signature_layers=2),
        guard,
        Source("engine"),
        [Site(4 + index, layer) for index, layer in enumerate(model.layers)],
        64,
        32,
        torch.device("cpu"),
        contextlib.ExitStack(),
        plain(TapConfig(signature_layers=2), [4, 5, 6]),
    )


def refused(_: Workbench) -> None:
    raise TapRefused("this model has no router")


def broken(_: Workbench) -> None:
    raise RuntimeError("a bug of ours")


def fits(bench: Workbench) -> None:
    bench.instruments.rows.append(SimpleNamespace())


def test_a_workbench_says_how_large_things_are(bench) -> None:
    """The most requests of a batch, and the global ids of this rank's layers."""
    assert bench.max_requests == 6
    assert bench.layer_ids == [4, 5, 6]
    assert bench.instruments.layout.layers == [4, 6]
    assert bench.instruments.all == []


def test_one_that_cannot_be_fitted_stands_in_no_others_way(bench) -> None:
    """A refusal travels as it is; a bug is counted at a site of its own; the others are fitted."""
    fit(bench, {"router": refused, "confidence": broken, "attention": fits})
    assert len(bench.instruments.rows) == 1
    assert bench.instruments.absent["router"] == "this model has no router"
    assert "see the engine's log" in bench.instruments.absent["confidence"]
    assert set(bench.instruments.absent) == {"router", "confidence"}
    assert bench.guard.errors == {"fit_confidence": 1}


def test_every_fitter_has_the_same_bench(bench) -> None:
    """They are called in order, once each, and may build upon one another."""
    seen: list[Workbench] = []
    fit(bench, {"attention": seen.append, "router": seen.append})
    assert seen == [bench, bench]


def test_what_is_absent_travels_with_the_status(ranks, tap_on, monkeypatch) -> None:
    """The model is tapped all the same, and the seats are taken once the tap exists."""
    seats = []

    def takes_a_seat(bench: Workbench) -> None:
        bench.seats.append(seats.append)

    fitters = {"router": refused, "confidence": takes_a_seat}
    monkeypatch.setattr(worker, "_FITTERS", fitters)
    made = seated()
    made.load_model()
    made.compile_or_warm_up_model()
    status = tap_on.wait_for(lambda f: isinstance(f.body, Status) and f.body.state == "live").body
    assert status.absent == {"router": "this model has no router"}
    (tap,) = seats
    assert tap.is_measuring is False
    serve(made, Row("a", 0, 4, 4))
    assert tap.is_measuring is True
    assert tap.plan is not None
    serve(made, finished=("a",))
    tap_on.wait_for(lambda frame: isinstance(frame.body, Requests))


def test_what_was_fitted_is_undone_when_the_tap_is_refused_after_all(
    ranks, tap_on, monkeypatch
) -> None:
    """A seat that cannot be taken leaves no trace of any fitter."""
    undone: list[str] = []

    def fitted(bench: Workbench) -> None:
        bench.undo.callback(undone.append, "fitted")
        bench.seats.append(refused)

    monkeypatch.setattr(worker, "_FITTERS", {"router": fitted})
    seated().load_model()
    tap_on.wait_for(lambda f: isinstance(f.body, Status) and f.body.state == "refused")
    assert undone == ["fitted"]


def test_signatures_of_a_plain_tap_are_of_the_residual_stream() -> None:
    """As many layers as the operator asked for, evenly spaced, and nothing else."""
    layout = fitting.plain(TapConfig(signature_layers=3), list(range(9))).layout
    assert layout.layers == [0, 4, 8]
    assert layout == Layout([0, 4, 8])
