"""What operators did is written down before it is done."""

import json
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from sidecar.publish.guard.audited import Audited
from sidecar.publish.guard.refusal import Refusals
from sidecar.store.audit import AuditLog, verify


class Written:
    """An app that says how far its log was when its route was reached."""

    def __init__(self, path: Path) -> None:
        self.log = AuditLog(path)
        self.refusals = Refusals()
        routes = [Route("/v1/deployments", self.act, methods=["GET", "POST"])]
        self.routes = Starlette(routes=routes)
        app = Audited(self.routes, self.refusals, self.log, lambda: 42)
        self.client = TestClient(app)

    async def act(self, request: Request) -> Response:
        """Change something."""
        return PlainTextResponse(f"{self.log.head().number} {await request.body()!r}", 201)


def test_the_entry_is_there_before_the_change(tmp_path: Path) -> None:
    """The route finds it on the disk, and its body whole; the outcome follows."""
    path = tmp_path / "audit.jsonl"
    answer = Written(path).client.post("/v1/deployments", content=b'{"note": "secret plan"}')

    assert (answer.status_code, answer.text) == (201, """1 b'{"note": "secret plan"}'""")
    asked, done = (json.loads(line) for line in path.read_bytes().splitlines())
    assert (asked["action"], asked["detail"]["path"]) == ("asked", "/v1/deployments")
    assert (asked["t_ns"], asked["detail"]["client"]) == (42, "testclient")
    assert done["detail"] == {"of": 1, "status": 201}
    assert verify(path).number == 2
    assert b"secret plan" not in path.read_bytes()


def test_reading_is_not_written_down(tmp_path: Path) -> None:
    """A log of every look would hide what was done."""
    path = tmp_path / "audit.jsonl"
    Written(path).client.get("/v1/deployments")

    assert not path.exists()


def test_what_cannot_be_written_down_is_not_done(tmp_path: Path) -> None:
    """No entry, no change: 503 says why, and it is counted."""
    (tmp_path / "audit.jsonl").mkdir()
    written = Written(tmp_path / "audit.jsonl")

    answer = written.client.post("/v1/deployments")

    assert answer.status_code == 503
    assert "cannot write the audit log" in answer.json()["detail"]
    assert written.refusals.get()["audit"] == 1


def test_an_outcome_that_cannot_be_written_is_counted(tmp_path: Path) -> None:
    """The change was made by then: the client is answered."""
    path = tmp_path / "audit.jsonl"
    written = Written(path)

    class Once(AuditLog):
        def append(self, t_ns, who, action, detail):  # type: ignore[no-untyped-def]
            if action == "done":
                path.unlink()
                path.mkdir()
            return super().append(t_ns, who, action, detail)

    app = Audited(written.routes, written.refusals, Once(path))

    assert TestClient(app).post("/v1/deployments").status_code == 201
    assert written.refusals.get()["audit"] == 1
