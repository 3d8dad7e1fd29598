"""The baseline, fetched: whole, checked, and never in anybody's way."""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from sidecar.config import ExporterConfig
from sidecar.errors import ConfigError, StoreError
from sidecar.publish.app import create_api_app, create_state
from sidecar.publish.drift.baselines import Baselines
from sidecar.publish.drift.fetch import Fetcher, download
from sidecar.publish.drift.panel import Terms
from sidecar.publish.guard.guard import create_guard
from sidecar.publish.metrics.exposition import Scrape
from sidecar.publish.state import State
from sidecar.store.baseline_file import write_baseline
from tests import fakes
from tests.fakes import NOW
from tests.publish.drifting import MINUTE, baseline

TERMS = Terms("production", MINUTE)


class Shelf:
    """A file server: what it has by path, and how often it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.num_asked = 0
        shelf = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                shelf.num_asked += 1
                data = shelf.files.get(self.path)
                self.send_response(200 if data is not None else 404)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    made = Shelf()
    yield made
    made.server.shutdown()
    made.server.server_close()


def bytes_of(folder: Path, windows: int = 7) -> bytes:
    path = folder / "made.baseline"
    write_baseline(path, baseline(windows))
    return path.read_bytes()


def ask(folder: Path, url: str, data: bytes) -> Path:
    source = folder / "source.json"
    source.write_text(json.dumps({"url": url, "sha256": hashlib.sha256(data).hexdigest()}))
    return source


class Fetched:
    """A fetcher with what it keeps, and how often it had it read."""

    def __init__(self, folder: Path) -> None:
        self.target = folder / "fetched.baseline"
        self.num_used = 0
        self.noted: list[tuple[str, bool]] = []
        self.trouble: dict[str, str] = {}
        self.baselines = Baselines(TERMS, self.target, is_fetched=True)
        source = folder / "source.json"
        self.fetcher = Fetcher(source, self.target, self.baselines.check, self._note, self._use)

    def _note(self, sha256: str) -> None:
        self._fail("note")
        self.noted.append((sha256, self.target.exists()))

    def _use(self) -> None:
        self._fail("use")
        self.num_used += 1

    def _fail(self, step: str) -> None:
        if step in self.trouble:
            raise StoreError(self.trouble[step])


@pytest.fixture
def fetched(tmp_path: Path) -> Fetched:
    return Fetched(tmp_path)


def test_what_is_asked_for_is_fetched_once(fetched: Fetched, shelf: Shelf, tmp_path: Path) -> None:
    """It is read when it is there, and not fetched again while the same is asked for."""
    shelf.files["/chat"] = data = bytes_of(tmp_path)
    ask(tmp_path, f"{shelf.url}/chat", data)
    assert fetched.baselines.read().baseline is None

    for _ in range(3):
        fetched.fetcher.look()

    assert fetched.fetcher.reason == ""
    assert fetched.target.read_bytes() == data
    assert fetched.baselines.read().digest == baseline(7).digest
    assert (shelf.num_asked, fetched.num_used) == (1, 1)
    assert [path.name for path in tmp_path.glob("*candidate*")] == []


def test_what_was_fetched_and_not_used_is_used_later(
    fetched: Fetched, shelf: Shelf, tmp_path: Path
) -> None:
    """It is told as not in force until it is, and is not fetched for a second time."""
    shelf.files["/chat"] = data = bytes_of(tmp_path)
    ask(tmp_path, f"{shelf.url}/chat", data)
    fetched.trouble["use"] = "busy"
    reasons = []
    for _ in range(2):
        fetched.fetcher.look()
        reasons.append(fetched.fetcher.reason)
    fetched.trouble.clear()
    fetched.fetcher.look()

    assert [*reasons, fetched.fetcher.reason] == ["busy", "busy", ""]
    assert (shelf.num_asked, fetched.num_used) == (1, 1)


def test_what_cannot_be_written_down_is_not_done(
    fetched: Fetched, shelf: Shelf, tmp_path: Path
) -> None:
    """The entry comes before the file is another one, and without it the file stays."""
    shelf.files["/chat"] = data = bytes_of(tmp_path)
    ask(tmp_path, f"{shelf.url}/chat", data)
    fetched.trouble["note"] = "the disk is full"
    fetched.fetcher.look()
    assert (fetched.fetcher.reason, fetched.target.exists()) == ("the disk is full", False)

    fetched.trouble.clear()
    fetched.fetcher.look()
    assert fetched.noted == [(hashlib.sha256(data).hexdigest(), False)]
    assert fetched.target.read_bytes() == data


def test_a_restart_keeps_what_an_earlier_life_fetched(
    fetched: Fetched, shelf: Shelf, tmp_path: Path
) -> None:
    """The same file is not fetched by the next life, also with its server away."""
    shelf.files["/chat"] = data = bytes_of(tmp_path)
    ask(tmp_path, f"{shelf.url}/chat", data)
    fetched.fetcher.look()

    again = Fetched(tmp_path)
    again.fetcher.look()

    assert again.fetcher.reason == ""
    assert shelf.num_asked == 1


def test_another_one_replaces_it(fetched: Fetched, shelf: Shelf, tmp_path: Path) -> None:
    """Changing the source is enough."""
    for windows in (7, 14):
        shelf.files["/chat"] = data = bytes_of(tmp_path, windows)
        ask(tmp_path, f"{shelf.url}/chat", data)
        fetched.fetcher.look()

    assert fetched.baselines.read().digest == baseline(14).digest
    assert fetched.num_used == 2


@pytest.mark.parametrize("wrong", ["checksum", "not a baseline", "absent", "no server", "no json"])
def test_what_is_wrong_leaves_the_one_before_in_force(
    fetched: Fetched,
    shelf: Shelf,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    wrong: str,
) -> None:
    """And is said once, without the address, which may be a secret."""
    shelf.files["/first"] = first = bytes_of(tmp_path)
    ask(tmp_path, f"{shelf.url}/first", first)
    fetched.fetcher.look()
    shelf.files["/next"] = data = bytes_of(tmp_path, 14)
    match wrong:
        case "checksum":
            ask(tmp_path, f"{shelf.url}/next?token=secret", b"other")
        case "not a baseline":
            shelf.files["/next?token=secret"] = data = b"something else"
            ask(tmp_path, f"{shelf.url}/next?token=secret", data)
        case "absent":
            ask(tmp_path, f"{shelf.url}/nowhere?token=secret", data)
        case "no server":
            ask(tmp_path, "http://127.0.0.1:9/next?token=secret", data)
        case "no json":
            (tmp_path / "source.json").write_text('{"url": "ftp://token=secret"}')

    with caplog.at_level(logging.ERROR):
        fetched.fetcher.look()
        fetched.fetcher.look()

    assert fetched.fetcher.reason
    assert fetched.target.read_bytes() == first
    assert fetched.num_used == 1
    assert len(caplog.records) == 1
    assert "secret" not in caplog.text


def test_it_is_tried_again_until_it_works(fetched: Fetched, shelf: Shelf, tmp_path: Path) -> None:
    """A server that comes later is found, and the reason goes."""
    data = bytes_of(tmp_path)
    ask(tmp_path, f"{shelf.url}/chat", data)
    fetched.fetcher.look()
    assert fetched.fetcher.reason
    shelf.files["/chat"] = data
    fetched.fetcher.look()

    assert fetched.fetcher.reason == ""
    assert fetched.num_used == 1


def test_a_metric_says_whether_it_was_fetched(
    fetched: Fetched, shelf: Shelf, tmp_path: Path
) -> None:
    """Absent before the first look, 0 while it cannot be had, 1 when it is in force."""
    data = bytes_of(tmp_path)
    ask(tmp_path, f"{shelf.url}/chat", data)
    told = [success(fetched.fetcher)]
    fetched.fetcher.look()
    told.append(success(fetched.fetcher))
    shelf.files["/chat"] = data
    fetched.fetcher.look()
    told.append(success(fetched.fetcher))

    assert told == [[], [0.0], [1.0]]


def test_a_download_is_bounded(shelf: Shelf) -> None:
    """More bytes than a baseline can have are not taken."""
    shelf.files["/large"] = bytes(2000)

    assert len(download(f"{shelf.url}/large", max_bytes=2000)) == 2000
    with pytest.raises(StoreError, match="more than 1999 bytes"):
        download(f"{shelf.url}/large", max_bytes=1999)


def test_a_sidecar_arms_itself_by_what_it_fetched(shelf: Shelf, tmp_path: Path) -> None:
    """It starts at once without a baseline, and uses it as soon as it is there."""
    shelf.files["/chat"] = data = bytes_of(tmp_path)
    source = ask(tmp_path, f"{shelf.url}/chat", data)
    config = configured(tmp_path, source)
    state = create_state(config, create_guard(config))
    state.start()
    try:
        api = TestClient(create_api_app(state))
        wait_until(lambda: api.get("/v1/baselines").json()["baseline"] is not None)
        wait_until(lambda: "baseline_fetch_success 1.0" in scrape(state))
        found = api.get("/v1/baselines").json()
    finally:
        state.stop()

    assert found["baseline"]["digest"] == baseline(7).digest
    assert found["fetching"] == ""


def test_a_sidecar_says_why_it_fetched_nothing(tmp_path: Path) -> None:
    """In its answer about baselines, and as a 0 in /metrics; it serves all the same."""
    config = configured(tmp_path, ask(tmp_path, "http://127.0.0.1:9/chat", b""))
    state = create_state(config, create_guard(config))
    state.start()
    try:
        wait_until(lambda: "baseline_fetch_success 0.0" in scrape(state))
        found = TestClient(create_api_app(state)).get("/v1/baselines").json()
    finally:
        state.stop()

    assert "cannot be fetched" in found["fetching"]
    assert found["baseline"] is None


def test_what_an_earlier_life_left_and_is_refused_now_is_put_aside(tmp_path: Path) -> None:
    """The sidecar starts without it, where a file of the operator's would be an error."""
    config = configured(tmp_path, tmp_path / "source.json")
    assert config.baseline_file is not None
    config.baseline_file.write_bytes(b"torn")

    state = create_state(config, create_guard(config))
    state.intake.stop()

    assert state.baselines.read().baseline is None
    assert config.baseline_file.with_name("fetched.baseline.refused").exists()


def test_what_is_fetched_needs_a_place(tmp_path: Path) -> None:
    """Told before anything starts."""
    environ = {
        "SIDECAR_SOCKET": str(tmp_path / "s.sock"),
        "SIDECAR_BASELINE_SOURCE_FILE": str(tmp_path / "source.json"),
    }
    config = ExporterConfig.read(environ)
    guard = create_guard(config)
    with pytest.raises(ConfigError, match="set SIDECAR_BASELINE_FILE"):
        create_state(config, guard)


def success(fetcher: Fetcher) -> list[float]:
    """Values of the metric; none when it is absent."""
    snapshot = fakes.everything().get(NOW)
    return [each.value for family in fetcher.collect(snapshot) for each in family.samples]


def scrape(state: State) -> str:
    """/metrics now."""
    return state.exposition.render(state.intake.get(), Scrape()).decode()


def configured(folder: Path, source: Path) -> ExporterConfig:
    return ExporterConfig.read(
        {
            "SIDECAR_SOCKET": str(folder / "s.sock"),
            "SIDECAR_BASELINE_FILE": str(folder / "fetched.baseline"),
            "SIDECAR_BASELINE_SOURCE_FILE": str(source),
        }
    )


def wait_until(is_true: Callable[[], bool]) -> None:
    until = time.monotonic() + 60.0
    while not is_true():
        assert time.monotonic() < until, "it did not become true within a minute"
        time.sleep(0.02)
