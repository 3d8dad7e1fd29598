"""The real thing: `python -m sidecar serve`, fed by a real sender, read over HTTP."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.publish.server import listen
from sidecar.store.baseline_file import write_baseline
from sidecar.wire.channel import Sender
from sidecar.wire.frame import Body, Source
from sidecar.wire.synthetic import SyntheticEngine
from tests.publish import drifting

READY = re.compile(r"sidecar ready: metrics (\S+)/metrics api (\S+)/v1/status socket (\S+)\n")


# Five seconds are promised on a machine of one's own; what hangs, hangs for ever.
END_SECONDS = 50.0


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


class Served:
    """One sidecar process, on ports of its own choice."""

    def __init__(self, path: Path, *options: str) -> None:
        command = [sys.executable, "-m", "sidecar", "serve", "--socket", str(path)]
        command += ["--metrics-host", "127.0.0.1", "--metrics-port", "0", "--api-port", "0"]
        self.process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        ready = READY.fullmatch(line)
        if ready is None:
            self.process.kill()
            raise AssertionError(line + self.process.communicate(timeout=10)[1])
        self.metrics_url, self.api_url, told = ready.groups()
        assert told == str(path)

    def get(self, url: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url, timeout=60) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def post(self, path: str, body: dict[str, Any]) -> int:
        request = urllib.request.Request(
            f"{self.api_url}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            return int(reply.status)

    def drift(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.get(f"{self.api_url}/v1/drift")[1])
        return read

    def status(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.get(f"{self.api_url}/v1/status")[1])
        return read

    def history(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.get(f"{self.api_url}/v1/drift/history")[1])
        return read

    def samples(self) -> dict[tuple[str, ...], float]:
        text = self.get(f"{self.metrics_url}/metrics")[1]
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(END_SECONDS)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=END_SECONDS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "i.sock"


@pytest.fixture
def serve(path: Path) -> Iterator[Callable[..., Served]]:
    """Start sidecars; they end with the test, however it ends."""
    with contextlib.ExitStack() as running:

        def start(*options: str) -> Served:
            made = Served(path, *options)
            running.callback(made.close)
            return made

        yield start


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve("--stale-seconds", "3")


def refused(*options: str) -> str:
    """The one line that a sidecar which cannot start leaves on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "serve", *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sidecar: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_frames_become_metrics_and_go_when_their_engine_does(served: Served, path: Path) -> None:
    """From a real sender to /metrics and the API; three seconds after its end nothing is left."""
    engine = SyntheticEngine()
    tap, frontend = Sender(path, Source("engine")), Sender(path, Source("frontend"))
    eventually(lambda: tap.send(engine.status()))
    eventually(lambda: frontend.send(engine.serving(time.time_ns())))
    for body in (engine.step(), engine.requests(2, time.time_ns()), engine.status()):
        assert tap.send(body)
    assert frontend.send(engine.serving(time.time_ns()))
    handed_over = [sender.num_sent - sender.num_dropped for sender in (tap, frontend)]
    eventually(lambda: [s["frames_received"] for s in served.status()["sources"]] == handed_over)
    assert served.get(f"{served.metrics_url}/readyz")[0] == 200
    at = ("synthetic", "0", "5", "prefill", "rest")
    found = served.samples()

    assert found["llm_internals_residual_rms_sum", *at] == engine.totals.sums[1, 5, 0, 0]
    assert found["llm_internals_residual_rms_count", *at] == 60
    assert found["llm_internals_tap_live", "engine-dp0-pp0-tp0"] == 1
    assert found["llm_internals_frames_sent_total", "engine-dp0-pp0-tp0"] == tap.num_sent
    assert found["llm_internals_generated_tokens_total", "synthetic", "0"] == 18
    listed = json.loads(served.get(f"{served.api_url}/v1/requests?limit=9")[1])["requests"]
    assert [each["id"] for each in listed] == ["cmpl-2-0-0badcafe", "cmpl-1-0-0badcafe"]
    assert listed[0]["serving"]["id"] == "cmpl-2-0"

    tap.close()
    frontend.close()
    eventually(lambda: not [key for key in served.samples() if "synthetic" in key])
    code, reply = served.get(f"{served.metrics_url}/readyz")
    assert code == 503
    assert "silent for" in json.loads(reply)["reasons"][0]
    assert served.get(f"{served.metrics_url}/healthz") == (200, "ok\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_and_leaves_no_socket(
    served: Served, path: Path, number: int
) -> None:
    """Soon, with status 0, also with a client that keeps its connection open."""
    host, port = served.metrics_url.removeprefix("http://").split(":")
    assert path.exists()
    with socket.create_connection((host, int(port))) as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(100).startswith(b"HTTP/1.1 200")
        code = served.stop(number)

    assert code == 0
    assert not path.exists()


def test_health_answers_while_metrics_are_rendered(served: Served, path: Path) -> None:
    """Large scrapes one after another: /healthz does not queue behind them."""
    engine, stop = SyntheticEngine(num_layers=100), threading.Event()
    tap = Sender(path, Source("engine"))
    eventually(lambda: tap.send(engine.status()))
    bodies: list[Body] = [engine.step(), engine.status()]
    for body in bodies:
        tap.send(body)

    def seconds(path: str) -> float:
        started = time.monotonic()
        assert served.get(served.metrics_url + path)[0] == 200
        return time.monotonic() - started

    def scrape() -> None:
        while not stop.is_set():
            scrapes.append(seconds("/metrics"))

    scrapes: list[float] = []
    # So many wait for each other that queueing behind them would be seen on any machine.
    scrapers = [threading.Thread(target=scrape) for _ in range(8)]
    for scraper in scrapers:
        scraper.start()
    eventually(lambda: len(scrapes) >= 8, 60)
    looks = [seconds("/healthz") for _ in range(50)]
    stop.set()
    for scraper in scrapers:
        scraper.join()
    tap.close()

    assert statistics.median(looks) < 0.5 * statistics.median(scrapes)


def test_an_answer_does_not_wait_for_the_acknowledgement_of_its_headers() -> None:
    """A connection sends small pieces at once (TCP_NODELAY): else each answer may take 40 ms."""
    with (
        listen("METRICS", "127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_in_use_is_named_with_its_key(path: Path) -> None:
    """One line, status 2, and the socket is not touched."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        local = ("--socket", str(path), "--metrics-host", "127.0.0.1", "--api-host", "127.0.0.1")
        metrics = refused(*local, "--metrics-port", port, "--api-port", "0")
        api = refused(*local, "--metrics-port", "0", "--api-port", port)

    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in metrics
    assert "set another SIDECAR_METRICS_PORT or SIDECAR_METRICS_HOST" in metrics
    assert "set another SIDECAR_API_PORT or SIDECAR_API_HOST" in api
    assert not path.exists()


def test_a_second_sidecar_on_one_socket_is_refused(served: Served, path: Path) -> None:
    """One line, status 2, and the first one goes on."""
    ports = ("--metrics-port", "0", "--api-port", "0")
    message = refused("--socket", str(path), *ports)

    assert f"{path} is owned by another sidecar; stop it, or set another SIDECAR_SOCKET" in message
    assert path.exists()
    assert served.get(f"{served.metrics_url}/healthz")[0] == 200


def test_a_host_that_does_not_exist_is_named(path: Path) -> None:
    """The resolver's words, and the key to change."""
    message = refused(
        "--socket", str(path), "--metrics-host", "no-such-host.invalid", "--metrics-port", "1"
    )

    assert "cannot listen on no-such-host.invalid port 1" in message
    assert "SIDECAR_METRICS_HOST" in message


def test_a_key_is_demanded_of_every_frame(
    serve: Callable[..., Served], path: Path, tmp_path: Path
) -> None:
    """Unsigned frames are refused, counted and a reason; signed ones are read."""
    key = tmp_path / "key"
    key.write_bytes(os.urandom(16).hex().encode())
    served = serve("--key-file", str(key))
    stranger = Sender(path, Source("frontend", 7))
    friend = Sender(path, Source("engine"), key.read_bytes())
    engine = SyntheticEngine()
    eventually(lambda: stranger.send(engine.serving()))
    eventually(lambda: friend.send(engine.status()))
    eventually(lambda: bool(served.status()["sources"]))
    eventually(lambda: served.status()["frames_refused"]["mac"] == 1)
    told = served.status()
    for sender in (stranger, friend):
        sender.close()

    assert [source["source"] for source in told["sources"]] == ["engine-dp0-pp0-tp0"]
    assert "SIDECAR_KEY_FILE" in str(told["reasons"])


def test_what_drift_learnt_survives_a_restart(
    serve: Callable[..., Served], path: Path, tmp_path: Path
) -> None:
    """What was announced, and the requests of a window that was open, under a signal to end."""
    options = ("--state-dir", str(tmp_path / "state"), "--record", "1")
    first, engine = serve(*options), SyntheticEngine()
    tap = Sender(path, Source("engine"))
    eventually(lambda: tap.send(engine.status()), 60)
    assert first.post("/v1/deployments", {"note": "release 7"}) == 201
    assert first.drift()["keeping"] == ""
    assert first.stop() == 0
    tap.close()
    again = serve(*options)
    told = again.drift()

    assert [each["note"] for each in told["deployments"]] == ["release 7"]
    assert told["keeping"] == ""
    assert told["recording"] == {"num_recorded": 0, "num_lost": 0, "num_removed": 0, "reason": ""}


def test_a_verdict_that_changed_is_remembered_over_a_restart(
    serve: Callable[..., Served], path: Path, tmp_path: Path
) -> None:
    """NaN in the model pages; the next life tells of it under the same number."""
    options = ("--state-dir", str(tmp_path / "state"))
    served, engine = serve(*options), SyntheticEngine()
    tap = Sender(path, Source("engine"))
    eventually(lambda: tap.send(engine.status()))
    assert tap.send(engine.step())
    engine.totals.nonfinite[3] = 7
    assert tap.send(engine.step())
    eventually(lambda: served.history()["now"]["integrity"] == "page")
    told = served.history()["changes"]
    summary = served.status()["summary"]
    assert served.stop() == 0
    tap.close()

    assert (summary["level"], summary["layers"]) == ("page", [3])
    assert "does not behave as usual since" in summary["sentence"]
    assert (told[-1]["channel"], told[-1]["to"]) == ("integrity", "page")
    assert serve(*options).history()["changes"][: len(told)] == told


def test_events_reach_a_client_until_the_sidecar_ends(served: Served, path: Path) -> None:
    """From a real tap to /v1/events and /v1/timeline; a signal lets the client go at once."""
    engine, tap = SyntheticEngine(), Sender(path, Source("engine"))
    eventually(lambda: tap.send(engine.status()))
    host, port = served.api_url.removeprefix("http://").split(":")
    listener = http.client.HTTPConnection(host, int(port), timeout=60)
    listener.request("GET", "/v1/events")
    reply = listener.getresponse()
    kinds: set[str] = set()

    def heard_columns() -> bool:
        tap.send(engine.step())
        line = reply.readline().decode()
        if line.startswith("event: "):
            kinds.add(line.removeprefix("event: ").strip())
        return "column" in kinds

    eventually(heard_columns)
    timeline = json.loads(served.get(f"{served.api_url}/v1/timeline")[1])
    code = served.stop()
    rest = reply.read()
    listener.close()
    tap.close()
    assert served.process.stderr is not None

    assert kinds >= {"status", "column"}
    assert timeline["layers"] == list(range(engine.num_layers))
    assert timeline["columns"]
    assert rest == b"" or rest.endswith(b"\n\n")
    assert (code, served.process.stderr.read()) == (0, "")


def test_a_hang_up_reads_the_baseline_again(serve: Callable[..., Served], tmp_path: Path) -> None:
    """SIGHUP ends nothing; a torn file is logged and leaves the one before in force."""
    file, folder = tmp_path / "a.baseline", tmp_path / "state"
    write_baseline(file, drifting.baseline())
    served = serve("--baseline-file", str(file), "--state-dir", str(folder))
    url = f"{served.api_url}/v1/baselines"

    def digest() -> str:
        return str(json.loads(served.get(url)[1])["baseline"]["digest"])

    assert digest() == drifting.baseline().digest
    write_baseline(file, drifting.baseline(14))
    served.process.send_signal(signal.SIGHUP)
    eventually(lambda: digest() == drifting.baseline(14).digest, 60)
    file.write_bytes(b"torn")
    served.process.send_signal(signal.SIGHUP)
    assert served.process.stderr is not None
    line = served.process.stderr.readline()

    assert "the baseline was not read again: SIDECAR_BASELINE_FILE" in line
    assert digest() == drifting.baseline(14).digest
    assert served.stop() == 0
    (entry,) = [json.loads(each) for each in (folder / "audit.jsonl").read_text().splitlines()]
    assert (entry["who"], entry["action"]) == ("SIGHUP", "baseline.reload")
    assert entry["detail"] == {"file": str(file), "digest": drifting.baseline(14).digest}


def test_a_baseline_that_cannot_be_read_is_named_with_its_key(tmp_path: Path, path: Path) -> None:
    """One line, status 2, and the socket is not touched."""
    ports = ("--metrics-host", "127.0.0.1", "--metrics-port", "0", "--api-port", "0")
    message = refused("--socket", str(path), *ports, "--baseline-file", str(tmp_path / "none"))

    assert "SIDECAR_BASELINE_FILE: there is no baseline at" in message
    assert not path.exists()


def test_a_signal_ends_it_while_canaries_wait_for_an_answer(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    """A served model that never answers does not delay the end, and what was learnt is kept."""
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        options = ("--canary-url", url, "--canary-key-file", str(key))
        served = serve(*options, "--state-dir", str(tmp_path / "state"))
        canary, _ = silent.accept()
        with canary:
            told = {each["channel"]: each for each in served.drift()["channels"]}
            code = served.stop()

    assert code == 0
    assert told["canary"]["is_configured"]
    assert told["canary"]["state"] == "collecting"
    assert (tmp_path / "state" / "drift.snapshot").exists()


def test_it_starts_before_everything_that_it_is_told_of(
    serve: Callable[..., Served], path: Path, tmp_path: Path
) -> None:
    """No engine, receiver, baseline or model is there yet: it is up, and hears what comes."""
    key, source = tmp_path / "key", tmp_path / "source.json"
    key.write_bytes(b"0123456789abcdef")
    nowhere = "http://127.0.0.1:9"
    served = serve(
        *("--state-dir", str(tmp_path / "not" / "yet")),
        *("--otlp-endpoint", nowhere, "--otlp-metrics-seconds", "1"),
        *("--canary-url", nowhere, "--canary-key-file", str(key)),
        *("--baseline-source-file", str(source), "--baseline-file", str(tmp_path / "chat")),
    )
    assert served.get(f"{served.metrics_url}/healthz") == (200, "ok\n")
    assert served.get(f"{served.metrics_url}/readyz")[0] == 503
    engine, tap = SyntheticEngine(), Sender(path, Source("engine"))
    eventually(lambda: tap.send(engine.status()))
    eventually(lambda: len(served.status()["sources"]) == 1)
    tap.close()

    assert served.stop() == 0


def test_an_engine_that_was_there_first_is_heard(serve: Callable[..., Served], path: Path) -> None:
    """What it sent before is counted as lost, and nothing that it hands over afterwards is."""
    engine, tap = SyntheticEngine(), Sender(path, Source("engine"))
    assert [tap.send(engine.status()) for _ in range(3)] == [False] * 3
    served = serve()
    eventually(lambda: tap.send(engine.status()))
    eventually(lambda: served.status()["sources"] != [])
    (source,) = served.status()["sources"]
    tap.close()

    assert source["frames_lost"]["dropped"] == tap.num_dropped >= 3
    assert source["frames_received"] == tap.num_sent - tap.num_dropped == 1
