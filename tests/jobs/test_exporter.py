"""A running exporter, asked over HTTP; the real apps, without a process."""

from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from sidecar import cli
from sidecar.commands.baseline.record import Listener
from sidecar.errors import ConfigError
from sidecar.jobs import exporter as module
from sidecar.jobs.exporter import Exporter
from sidecar.store.recorder import Recorder
from sidecar.store.recording import find_recordings
from sidecar.wire.frame import Identity, Signature, Signatures, Source, Status, pack
from sidecar.wire.signature import Layout, size
from tests.fakes import NOW, FakeSource
from tests.publish.test_views import Sidecar

IDENTITY = Identity(model_name="tiny", weights_digest="ab" * 32, dtype="bfloat16")
LAYOUT = Layout([0, 2], sketch_layers=[1], sketch_size=4, sketch_seed=5, probes=["refusal"])


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Sidecar:
    """Its API answers wherever the client asks."""
    sidecar = Sidecar()
    monkeypatch.setattr(module.httpx, "Client", lambda timeout: sidecar.api)
    return sidecar


def serve(running: Sidecar, *ids: str, source: FakeSource | None = None, **fields: object) -> None:
    """Requests that finish now on one engine."""
    rng = np.random.default_rng(len(ids))
    body = Signatures(LAYOUT, [])
    for each in ids:
        values = rng.normal(size=size(LAYOUT)).astype("<f4")
        values[3] = np.nan
        told = {"is_final": True, "canary": "", "route": "chat", **fields}
        body.signatures.append(
            Signature(
                each,
                NOW,
                told["is_final"],
                64,
                9,
                "lora",
                0,
                values.tobytes(),
                told["route"],
                told["canary"],
            )
        )
    source = source or running.engine
    for each in (Status("live", identity=IDENTITY), body):
        running.intake.accept(pack(source.frame(each, running.clock())))


def record(running: Sidecar, folder: Path, *steps: Callable[[], None]) -> Listener:
    """Serve and ask by turns."""
    recorder = Recorder(folder, "9.9")
    listener = Listener(Exporter("http://testserver"), recorder)
    for step in steps:
        step()
        listener.listen(NOW)
    recorder.close()
    return listener


def test_each_finished_request_is_recorded_once(running: Sidecar, tmp_path: Path) -> None:
    """However often it is told; to the last bit; running ones and canaries are left out."""
    listener = record(
        running,
        tmp_path,
        lambda: serve(running, "a", "b"),
        lambda: serve(running, "c"),
        lambda: serve(running, "d", is_final=False),
        lambda: serve(running, "e", canary="p1@7"),
        lambda: serve(running, "d", route=""),
    )
    (recording,) = find_recordings([tmp_path])
    rows = list(recording.observations())
    signed = {each.signature.id: each.signature for each in running.intake.signatures(9)}

    assert listener.num_gaps == 0
    assert (recording.header.identity, recording.header.layout) == (IDENTITY, LAYOUT)
    assert [row.values.tobytes() for row in rows] == [signed[each].values for each in "abcd"]
    assert [row.route for row in rows] == ["chat", "chat", "chat", ""]
    assert {row[:2] + row[3:7] for row in rows} == {(NOW, "engine-dp0-pp0-tp0", "lora", 64, 9, "")}


def test_each_engine_has_its_own_identity(running: Sidecar, tmp_path: Path) -> None:
    """Two replicas behind one exporter."""
    other = FakeSource(Source("engine", dp=1))
    record(
        running,
        tmp_path,
        lambda: serve(running, "a"),
        lambda: serve(running, "a", "b", source=other),
    )
    (recording,) = find_recordings([tmp_path])

    assert [row.source for row in recording.observations()] == [
        *("engine-dp0-pp0-tp0", "engine-dp1-pp0-tp0", "engine-dp1-pp0-tp0")
    ]


def test_requests_that_were_gone_before_they_were_asked_for_are_told(
    running: Sidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full answer with nothing known in it."""
    monkeypatch.setattr(module, "_MAX_SIGNATURES", 3)
    listener = record(
        running,
        tmp_path,
        lambda: serve(running, "a", "b", "c", "d"),
        lambda: serve(running, "e", "f"),
        lambda: serve(running, "g", "h", "i", "j"),
    )

    assert listener.num_gaps == 1
    assert sum(each.num_requests for each in find_recordings([tmp_path])) == 8


def test_before_the_first_request_there_is_nothing(running: Sidecar, tmp_path: Path) -> None:
    """No layout is known then, and no file is made."""
    status = Status("live", identity=IDENTITY)
    frame = running.engine.frame(status, running.clock())
    record(running, tmp_path, lambda: running.intake.accept(pack(frame)))

    (engine,) = Exporter("http://testserver").engines()
    assert (engine.source, engine.identity, engine.layout) == (
        *("engine-dp0-pp0-tp0", IDENTITY, None),
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.Response(404), "404"),
        (httpx.Response(200, text="<html>"), "Expecting value"),
        (httpx.Response(200, json={"layouts": [{"layers": 7}]}), "not the answer of this release"),
        (httpx.ConnectError("Connection refused"), "Connection refused"),
    ],
)
def test_what_is_no_exporter_is_named(monkeypatch: pytest.MonkeyPatch, answer, said: str) -> None:
    """With the address, and what to give."""

    def handle(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    client = httpx.Client(transport=httpx.MockTransport(handle))
    monkeypatch.setattr(module.httpx, "Client", lambda timeout: client)
    with Exporter("http://other:9479/") as asked, pytest.raises(ConfigError) as error:
        asked.engines()

    assert str(error.value).startswith("http://other:9479/v1/signatures: ")
    assert said in str(error.value)


def test_the_command_records_until_the_time_is_over(running: Sidecar, tmp_path: Path, capsys):
    """And says how many requests there were."""
    serve(running, "a", "b")
    command = ["baseline", "record", str(tmp_path), "--url", "http://testserver"]
    assert cli.main([*command, "--seconds", "0.05"]) == 0

    assert capsys.readouterr().out == f"{tmp_path}: 2 requests\n"
    assert [each.num_requests for each in find_recordings([tmp_path])] == [2]


def test_a_recording_that_fails_is_an_error(running: Sidecar, tmp_path: Path, capsys) -> None:
    """Status 2 with the reason."""
    serve(running, "a", "b")
    (tmp_path / "file").write_text("")
    command = ["baseline", "record", str(tmp_path / "file"), "--url", "http://testserver"]
    assert cli.main([*command, "--seconds", "0"]) == 2

    assert "2 requests were not recorded" in capsys.readouterr().err
