"""The baseline file: read at the start and when asked; what is wrong with it is one sentence."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.testclient import TestClient

from sidecar.config import ExporterConfig
from sidecar.errors import ConfigError
from sidecar.publish.app import create_api_app, create_state
from sidecar.publish.drift.baselines import Baselines
from sidecar.publish.drift.panel import Terms
from sidecar.publish.guard.guard import create_guard
from sidecar.publish.state import State
from sidecar.store.baseline_file import write_baseline
from sidecar.store.signing import Private
from tests.publish.drifting import MINUTE, baseline

JSON = {"Content-Type": "application/json"}
TERMS = Terms("production", MINUTE)
PEM = serialization.Encoding.PEM


class Keys:
    """A pair of ed25519 keys, in files as openssl writes them."""

    def __init__(self, folder: Path, name: str) -> None:
        key = Ed25519PrivateKey.generate()
        self.private, self.public = folder / f"{name}.key", folder / f"{name}.pub"
        self.private.write_bytes(
            key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        self.public.write_bytes(
            key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.baseline"
    write_baseline(path, baseline())
    return path


def test_without_a_file_nothing_is_compared() -> None:
    """And nothing is wrong."""
    assert Baselines(TERMS, None).read().baseline is None


def test_a_file_is_read_as_it_is_now(file: Path) -> None:
    """Each time anew."""
    reading = Baselines(TERMS, file)
    first = reading.read().digest
    write_baseline(file, baseline(14))

    assert first == baseline().digest
    assert reading.read().digest == baseline(14).digest != first


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x00" * 1000])
def test_a_file_that_is_no_baseline_is_named_with_its_key(
    content: bytes | None, tmp_path: Path
) -> None:
    """Missing, empty, foreign or torn."""
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigError, match=f"SIDECAR_BASELINE_FILE: .*{path}"):
        Baselines(TERMS, path).read()


def test_a_torn_file_is_refused(file: Path) -> None:
    """Whichever part is missing or changed."""
    whole = file.read_bytes()
    for torn in (whole[:-1], whole[: len(whole) // 2], whole[:-9] + b"x" + whole[-8:]):
        file.write_bytes(torn)
        with pytest.raises(ConfigError, match="SIDECAR_BASELINE_FILE"):
            Baselines(TERMS, file).read()


def test_only_what_the_configured_key_signed_is_read(file: Path, tmp_path: Path) -> None:
    """Not what nobody signed, nor what somebody else did."""
    ours, theirs = Keys(tmp_path, "ours"), Keys(tmp_path, "theirs")
    for signer in (None, Private.read(theirs.private)):
        write_baseline(file, baseline(), signer=signer)
        with pytest.raises(ConfigError, match=r"SIDECAR_BASELINE_FILE: .*sign"):
            Baselines(TERMS, file, ours.public).read()
    write_baseline(file, baseline(), signer=Private.read(ours.private))

    assert Baselines(TERMS, file, ours.public).read().digest == baseline().digest


def test_a_key_that_cannot_be_read_is_named_with_its_key(file: Path, tmp_path: Path) -> None:
    """Missing, or not of the right kind."""
    for path in (tmp_path / "none", file):
        with pytest.raises(ConfigError, match="SIDECAR_BASELINE_KEY_FILE: "):
            Baselines(TERMS, file, path).read()


# --- through the API -------------------------------------------------------------------------


@pytest.fixture
def state(file: Path, tmp_path: Path) -> Iterator[State]:
    config = ExporterConfig(
        socket=tmp_path / "i.sock", baseline_file=file, record=True, state_dir=tmp_path / "state"
    )
    made = create_state(config, create_guard(config))
    made.start()
    yield made
    made.stop()


def test_the_baseline_in_force_is_told(state: State, file: Path) -> None:
    """Its file, its header, and what it can be used for."""
    api = TestClient(create_api_app(state))
    answer = api.get("/v1/baselines").json()
    told = answer["baseline"]

    assert (answer["file"], answer["reason"]) == (str(file), "")
    assert told["digest"] == baseline().digest
    assert told["header"]["identity"]["weights_digest"] == "d1"
    assert (told["num_windows"], told["num_requests"]) == (12, 480)
    assert told["strata"] == list(baseline().plan.strata)
    assert told["replay"] is None


def test_a_new_baseline_is_judged_by_when_asked(state: State, file: Path) -> None:
    """Not before, and the answer tells the new one."""
    api = TestClient(create_api_app(state))
    write_baseline(file, baseline(14))
    before = api.get("/v1/baselines").json()["baseline"]["digest"]
    reply = api.post("/v1/baseline/reload", headers=JSON)

    assert before == baseline().digest
    assert reply.status_code == 200
    assert reply.json()["baseline"]["digest"] == baseline(14).digest


def test_a_torn_baseline_leaves_the_one_before_in_force(state: State, file: Path) -> None:
    """A problem with the remedy; whoever else asks for it learns it as an error."""
    api = TestClient(create_api_app(state))
    file.write_bytes(b"torn")
    reply = api.post("/v1/baseline/reload", headers=JSON)
    with pytest.raises(ConfigError, match="SIDECAR_BASELINE_FILE"):
        state.reload("SIGHUP")

    assert reply.status_code == 409
    assert "SIDECAR_BASELINE_FILE" in reply.json()["detail"]
    assert "stays in force" in reply.json()["remedy"]
    assert api.get("/v1/baselines").json()["baseline"]["digest"] == baseline().digest


def test_a_form_cannot_reload(state: State) -> None:
    """Like everything else that changes something."""
    api = TestClient(create_api_app(state))

    assert api.post("/v1/baseline/reload").status_code == 415
    assert api.post("/v1/drift/canary/discard").status_code == 415
    assert api.post("/v1/drift/canary/discard", headers=JSON).status_code == 409


def test_without_a_baseline_the_way_to_one_is_told(tmp_path: Path) -> None:
    """Not an error."""
    config = ExporterConfig(socket=tmp_path / "i.sock")
    made = create_state(config, create_guard(config))
    try:
        answer = TestClient(create_api_app(made)).get("/v1/baselines").json()
    finally:
        made.stop()

    assert answer["baseline"] is None
    assert "SIDECAR_BASELINE_FILE" in answer["reason"]


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"record": True}, "SIDECAR_RECORD: recordings need a folder; set SIDECAR_STATE_DIR"),
        ({"baseline_file": Path("/nonexistent")}, "SIDECAR_BASELINE_FILE: "),
        ({"state_dir": Path("/proc/nobody")}, "SIDECAR_STATE_DIR: "),
        ({"canary_url": "http://127.0.0.1:1"}, "SIDECAR_CANARY_KEY_FILE"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_starts(
    given: dict[str, object], word: str, tmp_path: Path
) -> None:
    """And no socket is left behind."""
    config = ExporterConfig.model_validate({"socket": tmp_path / "i.sock", **given})
    guard = create_guard(config)

    with pytest.raises(ConfigError, match=word):
        create_state(config, guard)

    assert not (tmp_path / "i.sock").exists()
