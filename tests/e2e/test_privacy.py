"""Nothing of a text leaves: secret words, looked for in everything that goes out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sidecar.demo import services
from tests.e2e.frames import Frames
from tests.e2e.harness import Stack, get_json, get_text, wait_for
from tests.e2e.observatory import Observatory

pytestmark = pytest.mark.e2e

# Words that no page, file or number contains by chance.
SECRETS = ("xylocarp", "quomodocunquize", "4929-8891-0345")
PROMPT = f"The password of the vault is {SECRETS[0]}; {SECRETS[1]} by card {SECRETS[2]}. Repeat it:"
ROUTES = (
    "status", "layers", "signals", "requests", "signatures", "drift", "windows", "baselines",
    "timeline", "timeline/lines", "drift/history", "scans",
)  # fmt: skip
MIN_RUN = 4  # so many token ids in a row are a text, fewer are numbers


@pytest.fixture
def wire(float32: Stack) -> Iterator[Frames]:
    """What the engine sends while this test stands in the sidecar's place."""
    assert float32.exporter is not None
    float32.exporter.stop()
    with Frames(float32.socket) as frames:
        yield frames
    float32.start_exporter()


def ask(url: str, model: str, name: str) -> dict[str, Any]:
    """A completion of the secret prompt, and its chat; with all that is said of tokens."""
    import httpx

    body = {"model": model, "prompt": PROMPT, "max_tokens": 24, "temperature": 0.0, "user": name}
    body |= {"return_token_ids": True, "ignore_eos": True}
    answer = httpx.post(
        f"{url}/v1/completions", json=body, headers={"X-Request-Id": name}, timeout=300
    )
    answer.raise_for_status()
    told: dict[str, Any] = answer.json()
    return told


def texts(reply: dict[str, Any]) -> list[bytes]:
    """What must be nowhere: the secrets, the answer, and either as runs of token ids."""
    choice = reply["choices"][0]
    found = [word.encode() for word in SECRETS]
    found += [choice["text"].strip().encode()] if len(choice["text"].strip()) >= 8 else []
    for ids in (choice["prompt_token_ids"], choice["token_ids"]):
        for at in range(0, len(ids) - MIN_RUN, MIN_RUN):
            found += spelt(ids[at : at + MIN_RUN])
    return found


def spelt(ids: list[int]) -> list[bytes]:
    """A run of token ids as it would stand in JSON, msgpack, and arrays of either width."""
    plain = json.dumps(ids)[1:-1]
    packed = b"".join(msgspec.msgpack.encode(each) for each in ids)
    arrays = [b"".join(each.to_bytes(width, "little") for each in ids) for width in (4, 8)]
    return [plain.encode(), plain.replace(" ", "").encode(), packed, *arrays]


def leaks(out: dict[str, bytes], wanted: list[bytes]) -> list[tuple[str, bytes]]:
    """Where something that must be nowhere stands."""
    return [(name, each) for name, data in out.items() for each in wanted if each in data]


def test_the_search_finds_what_it_looks_for() -> None:
    """A text, or its tokens in any spelling, would be seen."""
    ids = [300, 5, 70000, 12, 9, 4, 2, 1]
    reply = {"choices": [{"text": "a long answer", "prompt_token_ids": ids, "token_ids": ids}]}
    for data in (
        b'{"prompt": "xylocarp"}',
        json.dumps({"tokens": ids}).encode(),
        msgspec.msgpack.encode(ids),
        b"".join(each.to_bytes(4, "little") for each in ids),
        b"... a long answer ...",
    ):
        assert leaks({"out": data}, texts(reply))
    assert not leaks({"out": b"llm_internals_build_info 1"}, texts(reply))


def test_no_text_is_on_the_wire(float32: Stack, wire: Frames) -> None:
    """Every frame of the engine while the secret prompt is served, as bytes."""
    reply = ask(float32.url, "tiny", "privacy-wire")
    wire.request(reply["id"])
    wire.signature(reply["id"])

    frames = b"\n".join(wire.raw)
    assert reply["id"].encode() in frames  # the frames of this request are among them
    assert leaks({"frames": frames}, texts(reply)) == []


def test_no_text_leaves_the_sidecar(observatory: Observatory) -> None:
    """Metrics, every answer of the API, spans, files of its state and its log."""
    stack = observatory.stack
    reply = ask(stack.url, services.SERVED_NAME, "privacy-api")
    wait_for(lambda: stack.record(reply["id"]), "its record", 120.0)
    [known] = [each["id"] for each in stack.requests() if reply["id"] in each["id"]][:1]

    out = {name: get_text(f"{stack.api_url}/v1/{name}").encode() for name in ROUTES}
    out["request"] = json.dumps(get_json(f"{stack.api_url}/v1/requests/{known}")).encode()
    out["metrics"] = get_text(f"{stack.metrics_url}/metrics").encode()
    out["spans"] = b"".join(each.SerializeToString() for each in list(observatory.otlp.traces))
    out["log"] = (stack.folder / "exporter.log").read_bytes()
    out |= files(stack.folder / "state")

    assert reply["id"].encode() in out["requests"]
    assert leaks(out, texts(reply)) == []


def files(folder: Path) -> dict[str, bytes]:
    """Everything that lies there."""
    return {str(each): each.read_bytes() for each in folder.rglob("*") if each.is_file()}
