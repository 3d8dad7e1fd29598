"""A real Prometheus, a real Alertmanager, and a pager at the end: what an operator has.

Each listens on loopback and lives in a folder of its own; whoever starts one ends it.
"""

import json
import shutil
import sys
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.e2e.harness import Process, free_port, get_json, get_status, wait_for

START_SECONDS = 120
REMEDY = "is not on PATH; `make tools` puts it into .tools/bin"


def program(name: str) -> str:
    """Where a program of the monitoring side is."""
    beside = Path(sys.executable).parents[2] / ".tools" / "bin" / name  # of the same clone
    found = shutil.which(name) or (str(beside) if beside.exists() else None)
    assert found, f"{name} {REMEDY}"
    return found


@dataclass
class Job:
    """What Prometheus scrapes: `targets` are host:port, `labels` are put on each."""

    name: str
    targets: list[str]
    labels: dict[str, str] = field(default_factory=dict)


@dataclass
class Prometheus:
    """A Prometheus that scrapes `jobs` and judges `rules`.

    seconds: between scrapes, and between evaluations of the rules; what an operator has at 15 to
    60 is shortened for tests, the `for` of a rule is not.
    alertmanager: its host:port; "" tells nobody.
    """

    folder: Path
    jobs: list[Job]
    rules: tuple[Path, ...] = ()
    alertmanager: str = ""
    seconds: int = 2
    process: Process | None = None

    def start(self) -> "Prometheus":
        """Start it; returns when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        file = self.folder / "prometheus.yml"
        file.write_text(json.dumps(self._config()))  # JSON is YAML
        command = [program("prometheus"), f"--config.file={file}"]
        command += [f"--storage.tsdb.path={self.folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{self.port}"]
        command += ["--enable-feature=exemplar-storage", "--log.level=warn"]
        self.process = Process(command, {}, self.folder / "prometheus.log")
        _wait(self.process, f"{self.url}/-/ready", "Prometheus answers")
        return self

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.stop()

    @property
    def url(self) -> str:
        """Root of its HTTP API."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, **parameters: object) -> Any:
        """`data` of an answer of /api/v1/`path`; an error fails the test in Prometheus' words."""
        query = urllib.parse.urlencode(parameters, doseq=True)
        answer = get_json(f"{self.url}/api/v1/{path}?{query}")
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Now: [{metric, value: [t, text]}]."""
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found

    def query_range(
        self, expression: str, seconds: float = 300.0, step: float = 2.0
    ) -> list[dict[str, Any]]:
        """Over the last `seconds`: [{metric, values: [[t, text], ...]}]."""
        now = time.time()
        span = {"start": now - seconds, "end": now, "step": step}
        found: list[dict[str, Any]] = self.ask("query_range", query=expression, **span)["result"]
        return found

    def exemplars(self, expression: str, seconds: float = 600.0) -> list[dict[str, Any]]:
        """Of the series in `expression`: [{seriesLabels, exemplars: [{labels, value, ...}]}]."""
        now = time.time()
        found: list[dict[str, Any]] = self.ask(
            "query_exemplars", query=expression, start=now - seconds, end=now + 60
        )
        return found

    def alerts(self) -> list[dict[str, Any]]:
        """Those that are pending or firing: [{labels, annotations, state, ...}]."""
        found: list[dict[str, Any]] = self.ask("alerts")["alerts"]
        return found

    def wait_for(self, expression: str, seconds: float = 120.0) -> list[dict[str, Any]]:
        """First answer of `expression` that has a series."""
        found: list[dict[str, Any]] = wait_for(
            lambda: self.query(expression), f"{self.url}: {expression}", seconds, every=0.5
        )
        return found

    def _config(self) -> dict[str, Any]:
        every = f"{self.seconds}s"
        managers = [{"static_configs": [{"targets": [self.alertmanager]}]}]
        return {
            "global": {"scrape_interval": every, "evaluation_interval": every},
            "rule_files": [str(file) for file in self.rules],
            "alerting": {"alertmanagers": managers if self.alertmanager else []},
            "scrape_configs": [
                {
                    "job_name": job.name,
                    # A machine that is busy answers late, and a test must not fail of it.
                    "scrape_interval": every,
                    "scrape_timeout": every,
                    "static_configs": [{"targets": job.targets, "labels": job.labels}],
                }
                for job in self.jobs
            ],
        }


@dataclass
class Alertmanager:
    """An Alertmanager with the configuration in `file`."""

    folder: Path
    file: Path
    process: Process | None = None

    def start(self) -> "Alertmanager":
        """Start it; returns when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        command = [program("alertmanager"), f"--config.file={self.file}"]
        command += [f"--storage.path={self.folder / 'data'}", "--cluster.listen-address="]
        command += [f"--web.listen-address={self.address}"]
        self.process = Process(command, {}, self.folder / "alertmanager.log")
        _wait(self.process, f"http://{self.address}/-/ready", "Alertmanager answers")
        return self

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.stop()

    @property
    def address(self) -> str:
        """Its host:port."""
        return f"127.0.0.1:{self.port}"

    def alerts(self) -> list[dict[str, Any]]:
        """Those that it holds: [{labels, annotations, status: {state, inhibitedBy}, ...}]."""
        found: list[dict[str, Any]] = get_json(f"http://{self.address}/api/v2/alerts")
        return found


class Pager:
    """A webhook: keeps what Alertmanager sends it."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.append(json.loads(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it wants its pages."""
        return f"http://127.0.0.1:{self._server.server_port}/page"

    def alerts(self, name: str) -> list[dict[str, Any]]:
        """Every alert of this name that was sent, in order, as often as it was."""
        return [
            alert
            for notification in list(self.received)
            for alert in notification["alerts"]
            if alert["labels"]["alertname"] == name
        ]

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _wait(process: Process, url: str, what: str) -> None:
    def answers() -> bool:
        process.check_alive()
        return get_status(url) == 200

    wait_for(answers, what, START_SECONDS)
