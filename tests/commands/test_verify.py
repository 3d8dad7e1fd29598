"""`sidecar baseline verify --url`: what runs, against what the baseline was made of."""

from pathlib import Path

import msgspec
import pytest

from sidecar import cli
from sidecar.jobs import exporter
from sidecar.wire.frame import Identity, Signature, Signatures, Status, pack
from sidecar.wire.signature import Layout, size
from tests.fakes import NOW
from tests.jobs.traffic import IDENTITY, LAYOUT, record
from tests.publish.test_views import Sidecar


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Sidecar:
    sidecar = Sidecar()
    monkeypatch.setattr(exporter.httpx, "Client", lambda timeout: sidecar.api)
    return sidecar


@pytest.fixture
def verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The command on the baseline of an hour: its status, and what it printed."""
    record(tmp_path / "hour", 1 / 24)
    path = str(tmp_path / "hour.baseline")
    assert cli.main(["baseline", "fit", str(tmp_path / "hour"), "-o", path]) == 0

    def run() -> tuple[int, str]:
        capsys.readouterr()
        status = cli.main(["baseline", "verify", path, "--url", "http://testserver"])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def serve(running: Sidecar, identity: Identity, layout: Layout | None = LAYOUT) -> None:
    bodies: list[Status | Signatures] = [Status("live", identity=identity)]
    if layout:
        values, is_final = bytes(4 * size(layout)), True
        bodies.append(Signatures(layout, [Signature("a", NOW, is_final, 64, 9, "", 0, values)]))
    for body in bodies:
        running.intake.accept(pack(running.engine.frame(body, running.clock())))


def test_the_same_is_the_same(running: Sidecar, verify) -> None:
    """Status 0."""
    serve(running, IDENTITY)
    status, said = verify()

    assert status == 0
    assert "engine-dp0-pp0-tp0: executes what the baseline was made of" in said


def test_other_weights_are_a_finding(running: Sidecar, verify) -> None:
    """Status 3, with the field and both values; it can still be compared."""
    serve(running, msgspec.structs.replace(IDENTITY, weights_digest="cd" * 32, dtype="float16"))
    status, said = verify()

    assert status == 3
    assert f"weights_digest: {'ab' * 32} in the baseline, {'cd' * 32} now" in said
    assert "dtype: bfloat16 in the baseline, float16 now" in said


def test_what_one_side_does_not_know_is_said(running: Sidecar, verify) -> None:
    """No finding, and no silence."""
    serve(running, msgspec.structs.replace(IDENTITY, weights_digest="", kernels="H200"))
    status, said = verify()

    assert status == 0
    assert "known on one side only: weights_digest, kernels" in said


def test_other_layers_cannot_be_compared(running: Sidecar, verify) -> None:
    """Status 2."""
    serve(running, IDENTITY, Layout([0, 1]))
    status, said = verify()

    assert status == 2
    assert "cannot be compared: layers: [0, 2] in the baseline, [0, 1] now" in said


def test_before_the_first_request_the_layout_is_not_known(running: Sidecar, verify) -> None:
    """The rest is compared."""
    serve(running, IDENTITY, None)
    status, said = verify()

    assert status == 0
    assert "no request finished yet" in said


def test_an_exporter_that_hears_no_tap_verifies_nothing(running: Sidecar, verify) -> None:
    """Status 2: silence is no proof."""
    status, said = verify()

    assert status == 2
    assert "no tap is heard there" in said
