"""The routes about scans: how one is asked for, listed and read."""

from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from sidecar.fold.reducer import Reducer
from sidecar.publish.app import create_api_app
from sidecar.publish.intake import Intake
from sidecar.publish.metrics.exposition import Exposition
from sidecar.publish.state import State
from sidecar.wire import control
from sidecar.wire.control import Control
from sidecar.wire.frame import Body, Source, pack
from sidecar.wire.scan import CONFIDENCE, MAX_REQUESTS, MAX_SHED_LEVEL, Rows
from sidecar.wire.signals import LAYER_SIGNALS
from sidecar.wire.synthetic import SyntheticEngine
from tests import fakes
from tests.fakes import LIMITS, NOW, FakeClock, FakeInbox, FakeSource
from tests.publish import drifting

PROBLEM = {"type", "title", "status", "detail", "remedy"}


class Sidecar:
    """The API beside an engine that obeys the control at `path`."""

    def __init__(self, path: Path | None) -> None:
        clock = FakeClock()
        self.source = FakeSource()
        self.intake = Intake(FakeInbox(), Reducer(LIMITS), None, clock)
        watch = drifting.watch(drifting.FakeChannel(), clock=clock)
        state = State(
            self.intake,
            Exposition(100),
            watch,
            drifting.no_baselines(),
            control_path=path,
        )
        self.api = TestClient(create_api_app(state), raise_server_exceptions=False)

    def hear(self, body: Body, source: FakeSource | None = None) -> None:
        self.intake.accept(pack((source or self.source).frame(body, NOW)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.json"


@pytest.fixture
def sidecar(path: Path) -> Sidecar:
    return Sidecar(path)


def test_a_scan_is_told_to_the_last_bit(sidecar: Sidecar) -> None:
    """Each column's position, phase and values per layer; each token's confidence."""
    scan = fakes.scan(positions=[3, 7, 8, 11], nonfinite=2)
    sidecar.hear(scan)
    told = sidecar.api.get("/v1/requests/cmpl-1-0/scan").json()
    rows = Rows.unpack(scan)

    assert (told["id"], told["source"]) == ("cmpl-1-0-0badcafe", "engine-dp0-pp0-tp0")
    assert (told["layers"], told["positions"]) == ([0, 1, 2], [3, 7, 8, 11])
    assert told["phases"] == ["prefill", "prefill", "decode", "decode"]
    assert (told["num_rows"], told["num_rows_left_out"]) == (12, 8)
    assert told["is_complete"] is True
    assert told["nonfinite"] == [[2] * 3] * 4
    assert [(name, each["unit"]) for name, each in told["signals"].items()] == [
        ("residual_rms", ""),
        ("residual_peak", "ratio"),
        ("block_influence", "ratio"),
    ]
    for place, signal in enumerate(LAYER_SIGNALS):
        assert told["signals"][signal.id]["values"] == rows.values[..., place].tolist()
    assert told["confidence"]["surprisal"]["unit"] == "nats"
    for place, each in enumerate(CONFIDENCE):
        values = told["confidence"][each.id]["values"]
        assert values == [None, *rows.confidence[:, place].tolist()]


def test_what_is_not_there_is_null(sidecar: Sidecar) -> None:
    """A value that is no finite number, elements that were all finite, tokens never measured."""
    scan = fakes.scan(positions=[0, 1])
    values = Rows.unpack(scan).values.copy()
    values[0, 1, 0], values[1, 2, 2] = np.nan, np.inf
    scan.values = values.tobytes()
    sidecar.hear(scan)
    told = sidecar.api.get("/v1/requests/cmpl-1-0/scan").json()

    assert told["signals"]["residual_rms"]["values"][0] == [0.0, None, 0.25]
    assert told["signals"]["block_influence"]["values"][1][2] is None
    assert told["nonfinite"] is None
    assert told["confidence"] is None


def test_a_request_that_was_not_scanned_says_how_to_have_one(sidecar: Sidecar) -> None:
    """A problem with a remedy; a measured request without a scan is one too."""
    for name in ("cmpl-9", "a/b", "x" * 300):
        reply = sidecar.api.get(f"/v1/requests/{name}/scan")
        assert reply.status_code == 404
        assert set(reply.json()) == PROBLEM
        assert "sidecar control --scan 1" in reply.json()["remedy"]


def test_a_request_that_runs_is_told_as_far_as_it_came(sidecar: Sidecar) -> None:
    """Not complete, until its last part."""
    sidecar.hear(fakes.scan(positions=[0, 1], num_rows=2, is_final=False))
    told = sidecar.api.get("/v1/requests/cmpl-1-0/scan").json()
    assert (told["is_complete"], told["num_rows_left_out"]) == (False, 0)

    sidecar.hear(fakes.scan(positions=[2], num_rows=3))
    told = sidecar.api.get("/v1/requests/cmpl-1-0/scan").json()
    assert (told["is_complete"], told["positions"]) == (True, [0, 1, 2])


def test_each_stage_tells_of_its_own_layers(sidecar: Sidecar) -> None:
    """One is told, the others are named, and `source` asks for one of them."""
    sidecar.hear(fakes.scan())
    sidecar.hear(fakes.scan(num_layers=2), FakeSource(Source("engine", 0, 1), "boot-two"))
    told = sidecar.api.get("/v1/requests/cmpl-1-0/scan").json()
    assert told["source"] == "engine-dp0-pp1-tp0"
    assert [each["source"] for each in told["others"]] == ["engine-dp0-pp0-tp0"]

    first = sidecar.api.get("/v1/requests/cmpl-1-0/scan?source=engine-dp0-pp0-tp0").json()
    assert first["layers"] == [0, 1, 2]
    assert sidecar.api.get("/v1/requests/cmpl-1-0/scan?source=engine-dp7").status_code == 404


def test_an_id_may_hold_slashes(sidecar: Sidecar) -> None:
    """Clients choose ids; what is asked of /v1/requests/{id} goes on working."""
    sidecar.hear(fakes.scan("team/a/7-0badcafe"))

    assert sidecar.api.get("/v1/requests/team/a/7/scan").json()["id"] == "team/a/7-0badcafe"
    assert sidecar.api.get("/v1/requests/team/a/7").status_code == 404


def test_scans_are_listed_with_what_was_asked(sidecar: Sidecar, path: Path) -> None:
    """Latest first, without their rows."""
    assert sidecar.api.get("/v1/scans").json() == {"wish": None, "wish_problem": "", "scans": []}

    control.write(path, Control(scan_requests=3, scan_id="mine", revision="r7"))
    sidecar.hear(fakes.scan("a-0badcafe", [0]))
    sidecar.hear(fakes.scan("b-0badcafe", [0, 1], is_final=False))
    told = sidecar.api.get("/v1/scans").json()

    assert told["wish"] == {"scan_id": "mine", "num_requests": 3, "revision": "r7"}
    assert [
        (each["id"], each["num_columns"], each["num_rows_left_out"], each["is_complete"])
        for each in told["scans"]
    ] == [("b-0badcafe", 2, 10, False), ("a-0badcafe", 1, 11, True)]


def test_asking_writes_the_operators_control_and_keeps_its_other_wishes(
    sidecar: Sidecar, path: Path
) -> None:
    """Each wish is another one, so that asking twice scans twice."""
    control.write(path, Control(layers=[0, 2]))
    first = sidecar.api.post("/v1/scans", json={"num_requests": 2})
    second = sidecar.api.post("/v1/scans", json={"num_requests": 2})

    assert (first.status_code, first.json()["num_requests"]) == (202, 2)
    assert first.json()["scan_id"] != second.json()["scan_id"]
    asked = control.read(path)
    assert asked is not None
    assert (asked.layers, asked.scan_requests) == ([0, 2], 2)
    assert asked.scan_id == second.json()["scan_id"]
    assert asked.revision == second.json()["revision"]
    assert sidecar.api.get("/v1/scans").json()["wish"] == second.json()


@pytest.mark.parametrize("wish", [{}, {"num_requests": -1}, {"num_requests": MAX_REQUESTS + 1}])
def test_a_wish_out_of_range_is_refused(sidecar: Sidecar, path: Path, wish: object) -> None:
    """With the field's name, and nothing is written."""
    reply = sidecar.api.post("/v1/scans", json=wish)

    assert reply.status_code == 422
    assert "num_requests" in reply.json()["detail"]
    assert not path.exists()


def test_no_form_of_another_site_can_ask(sidecar: Sidecar, path: Path) -> None:
    """Only JSON changes something."""
    reply = sidecar.api.post("/v1/scans", content='{"num_requests": 1}')

    assert reply.status_code == 415
    assert not path.exists()


def test_who_may_not_write_the_control_is_told_what_to_run(tmp_path: Path) -> None:
    """The file's folder is no folder here; and one sidecar knows no file at all."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    for path in (in_the_way / "control.json", None):
        reply = Sidecar(path).api.post("/v1/scans", json={"num_requests": 5})
        assert reply.status_code == 503
        assert "`sidecar control --scan 5`" in reply.json()["remedy"]


def test_a_control_that_cannot_be_read_is_named(sidecar: Sidecar, path: Path) -> None:
    """The list of scans is told all the same."""
    path.write_text("{}}")
    told = sidecar.api.get("/v1/scans").json()

    assert told["wish"] is None
    assert "control.json" in told["wish_problem"]


def test_an_engine_that_does_not_obey_is_named_with_the_reason(
    sidecar: Sidecar, path: Path
) -> None:
    """It has not read the wish, the budget forbids it, or scans are switched off there."""
    status = fakes.live()
    sidecar.hear(status)

    def problem() -> str:
        return str(sidecar.api.get("/v1/scans").json()["wish_problem"])

    assert problem() == ""
    control.write(path, Control(scan_requests=1, revision="r8"))
    assert problem() == "engine-dp0-pp0-tp0: it has not read the wish yet"
    status.control = "r8"
    sidecar.hear(status)
    assert problem() == ""
    status.shed_level = MAX_SHED_LEVEL + 1
    sidecar.hear(status)
    assert "the budget leaves layers out (level 4)" in problem()
    status.absent["scan"] = "switched off; set SIDECAR_SCANS=1"
    sidecar.hear(status)
    assert problem() == "engine-dp0-pp0-tp0: switched off; set SIDECAR_SCANS=1"
    control.write(path, Control(scan_requests=0, revision="r9"))
    assert problem() == ""


def test_synthetic_scans_look_like_true_ones(sidecar: Sidecar) -> None:
    """For previews of the page: a column per row of the request told last, sinks first."""
    engine = SyntheticEngine(num_layers=80)
    engine.requests(1)
    sidecar.hear(engine.scan(num_prompt_tokens=20, num_generated=5))
    told = sidecar.api.get("/v1/requests/cmpl-1-0/scan").json()
    rms = np.array(told["signals"]["residual_rms"]["values"])

    assert rms.shape == (24, 80)
    assert (rms[:4] > rms[4:].max(0)).mean() > 0.9
    assert told["confidence"]["entropy"]["values"][:19] == [None] * 19
    assert None not in told["confidence"]["entropy"]["values"][19:]
