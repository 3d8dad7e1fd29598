"""`sidecar scan`: what the API tells, as lines for a person or a spreadsheet."""

import csv
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sidecar import cli
from sidecar.fold.scans import RecentScans
from sidecar.publish.scan.answers import scan_answer, scans_answer
from tests import fakes
from tests.fakes import NOW


class Api:
    """A sidecar's API that knows one scan of 80 layers, and one that still runs."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        recent = RecentScans()
        recent.update("engine-dp0-pp0-tp0", NOW, fakes.scan("cmpl-1-0-0badcafe", num_layers=80))
        running = fakes.scan("cmpl-2-0-0badcafe", [0, 1], is_final=False)
        recent.update("engine-dp0-pp0-tp0", NOW, running)
        one, other = recent.find("cmpl-1-0")[0], recent.find("cmpl-2-0")[0]
        self.pages = {
            "/v1/scans": scans_answer(recent.get(), None).model_dump_json(),
            "/v1/requests/cmpl-1-0/scan": scan_answer(one).model_dump_json(),
            "/v1/requests/cmpl-2-0/scan": scan_answer(other, [one]).model_dump_json(),
        }
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                api.asked.append((self.path, self.headers.get("Authorization")))
                page = api.pages.get(self.path.partition("?")[0])
                self.send_response(404 if page is None else 200)
                self.end_headers()
                problem = '{"detail": "no such scan", "remedy": "ask for one"}'
                self.wfile.write((page or problem).encode())

            def log_message(self, *_: object) -> None:
                """Silence."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def api() -> Iterator[Api]:
    made = Api()
    yield made
    made.close()


def test_without_an_id_the_scans_are_listed(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    """Latest first, with what is missing and whether it is over."""
    assert cli.main(["scan", "--url", api.url]) == 0

    assert capsys.readouterr().out.splitlines() == [
        "cmpl-2-0-0badcafe  engine-dp0-pp0-tp0  2 rows, 10 left out  runs",
        "cmpl-1-0-0badcafe  engine-dp0-pp0-tp0  12 rows  complete",
    ]


def test_none_says_how_to_get_one(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody is left with an empty screen."""
    api.pages["/v1/scans"] = scans_answer([], None).model_dump_json()
    assert cli.main(["scan", "--url", api.url]) == 0

    assert "`sidecar control --scan 1`" in capsys.readouterr().out


def test_a_wish_that_is_not_obeyed_is_told(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    """With the reason, in place of advice that would not help."""
    api.pages["/v1/scans"] = scans_answer([], None, "e0: the budget").model_dump_json()
    assert cli.main(["scan", "--url", api.url]) == 0

    assert capsys.readouterr().out == "what was asked for is not obeyed: e0: the budget\n"


def test_a_table_fits_a_shell(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    """Of many layers ten, the first and the last among them; what is not there is a dash."""
    assert cli.main(["scan", "cmpl-1-0", "--signal", "residual_peak", "--url", api.url]) == 0
    heading, *rows, notes = capsys.readouterr().out.splitlines()

    layers = (0, 9, 18, 26, 35, 44, 53, 61, 70, 79)
    names = ["position", "phase", *(f"l{layer}" for layer in layers), "entropy", "surprisal"]
    assert heading.split() == names
    assert max(map(len, rows)) < 160
    assert rows[0].split()[:3] == ["0", "prefill", "0.01562"]
    assert rows[0].split()[-2:] == ["-", "-"]
    assert rows[9].split()[-1] == "9.047"
    assert len(rows) == 12
    assert notes == "residual_peak of 10 of 80 layers"


def test_notes_say_what_the_table_lacks(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows left out, a request that runs, other sources; no column for tokens never measured."""
    assert cli.main(["scan", "cmpl-2-0", "--url", api.url]) == 0
    heading, *_, notes = capsys.readouterr().out.splitlines()

    assert heading.split() == ["position", "phase", "l0", "l1", "l2"]
    assert "10 of 12 rows left out; the request runs" in notes
    assert "--source engine-dp0-pp0-tp0 tells of it too" in notes


def test_csv_has_every_layer_and_every_digit(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    """A line per row, empty where there is no number."""
    assert cli.main(["scan", "cmpl-1-0", "--csv", "--url", api.url]) == 0
    heading, *rows = csv.reader(capsys.readouterr().out.splitlines())

    assert heading[:3] == ["position", "phase", "l0"]
    assert heading[-6:] == [
        *("l79", "entropy", "top1_probability", "top1_margin", "surprisal", "logsumexp")
    ]
    assert len(rows) == 12
    assert rows[4][:5] == ["4", "prefill", "4.0", "4.125", "4.25"]
    assert rows[4][-5:] == [""] * 5
    assert rows[11][-1] == str(11 + 4 / 64)


def test_the_token_and_the_source_are_passed_on(api: Api, tmp_path: Path) -> None:
    """As a header and as a question."""
    (tmp_path / "token").write_text("a token of many letters")
    arguments = ["--url", api.url, "--api-token-file", str(tmp_path / "token"), "--source", "e 1"]
    assert cli.main(["scan", "cmpl-1-0", *arguments]) == 0

    assert api.asked == [
        ("/v1/requests/cmpl-1-0/scan?source=e+1", "Bearer a token of many letters")
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["cmpl-9"], "no such scan; ask for one"), (["a/b c?d"], "no such scan")],
)
def test_what_the_api_refuses_is_said(
    api: Api, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """In one line, with its remedy."""
    assert cli.main(["scan", *arguments, "--url", api.url]) == 2

    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_an_api_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """With the option that names another."""
    assert cli.main(["scan", "--url", "http://127.0.0.1:1"]) == 2

    assert "--url" in capsys.readouterr().err
