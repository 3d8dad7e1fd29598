"""SECURITY.md's table of claims names a test for each, and what no other test would notice."""

import ast
import hmac
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from sidecar.config import ExporterConfig
from sidecar.errors import FrameError
from sidecar.publish.app import create_api_app, create_metrics_app, create_state
from sidecar.publish.guard.guard import create_guard
from sidecar.publish.guard.tokens import Tokens
from sidecar.wire.canary import Canary, proven, tag
from sidecar.wire.frame import pack, unpack
from sidecar.wire.synthetic import SyntheticEngine
from tests.fakes import FakeSource

ROOT = Path(__file__).parents[1]
SECRET = b"0123456789abcdef0123456789abcdef"


@cache
def _functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if hasattr(node, "name")}


def _claims() -> dict[str, list[str]]:
    """Tests by claim, out of the table."""
    text = (ROOT / "SECURITY.md").read_text().partition("## Claims and their tests")[2]
    rows = re.findall(
        r"^\| (?!claim|-)(.+?) \| (.+?) \|$", text.partition("\n## ")[0], re.MULTILINE
    )
    return {claim: re.findall(r"`(tests/[^`]+)`", proof) for claim, proof in rows}


@pytest.mark.parametrize("claim", _claims())
def test_each_claim_names_tests_that_are_there(claim: str) -> None:
    """A claim without a test is a wish."""
    tests = _claims()[claim]

    assert tests
    for each in tests:
        path, _, name = each.partition("::")
        assert name in _functions(ROOT / path), each


def test_there_are_claims() -> None:
    """The table is found at all."""
    assert len(_claims()) > 15


@pytest.mark.parametrize("port", ["metrics", "api"])
def test_no_port_lets_another_origin_read(tmp_path: Path, port: str) -> None:
    """Neither a simple request nor a preflight is answered with a word about sharing."""
    config = ExporterConfig.read({"SIDECAR_SOCKET": str(tmp_path / "s.sock")})
    guard = create_guard(config)
    state = create_state(config, guard)
    try:
        is_api = port == "api"
        app = (
            guard.api(create_api_app(state)) if is_api else guard.metrics(create_metrics_app(state))
        )
        client = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
        foreign = {"Origin": "https://elsewhere.example", "Host": "127.0.0.1"}
        preflight = {**foreign, "Access-Control-Request-Method": "POST"}
        answers = [
            client.request(method, path, headers=headers)
            for path in ("/healthz", "/metrics", "/v1/status", "/v1/deployments", "/ui/")
            for method, headers in (("GET", foreign), ("OPTIONS", preflight))
        ]
    finally:
        state.intake.stop()

    told = {name for answer in answers for name in answer.headers}
    assert {answer.status_code for answer in answers} & {200, 404, 405}
    assert {name for name in told if name.startswith("access-control")} == set()


def _token() -> bool:
    return Tokens(SECRET).is_token(SECRET)


def _frame() -> bool:
    try:
        unpack(pack(FakeSource().frame(SyntheticEngine().status()), SECRET), SECRET)
    except FrameError:
        return False
    return True


def _canary() -> bool:
    return bool(proven(tag(Canary("p", 1), SECRET), SECRET, now_ms=1))


@pytest.mark.parametrize("is_right", [_token, _frame, _canary])
def test_secrets_are_compared_in_constant_time(
    is_right: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one comparison of the standard library that promises it decides, and no other."""
    assert is_right()
    monkeypatch.setattr(hmac, "compare_digest", lambda *_: False)

    assert not is_right()
