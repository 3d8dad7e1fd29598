"""The intruder: strikes once, when asked or when the canary is armed and quiet."""

import asyncio
import json

import httpx

from sidecar.demo.gate import HEADER
from sidecar.demo.intruder import QUIET_SECONDS, Intruder
from sidecar.demo.readings import CanaryReading
from sidecar.demo.tampering import METHOD

ARMED = CanaryReading("armed", "hard rule only")
LEARNING = CanaryReading("collecting", "3 of 20 rounds")
TOLD = {"results": [{"layer": 2, "tensors": ["a", "b"]}]}


class Engine:
    """vLLM's development endpoint."""

    def __init__(self, *answers: httpx.Response) -> None:
        self.asked: list[httpx.Request] = []
        self._answers = list(answers or [httpx.Response(200, json=TOLD)])

    def handle(self, request: httpx.Request) -> httpx.Response:
        """Answer in turn."""
        self.asked.append(request)
        return self._answers.pop(0)


class Scene:
    """An intruder, an engine, and time that moves when told to."""

    def __init__(self, engine: Engine, *, by_itself: bool = False) -> None:
        self.now = 1000.0
        self.intruder = Intruder("secret", by_itself=by_itself, clock=lambda: self.now)
        self.engine = engine

    def watch(self, canary: CanaryReading | None, seconds: float = 1.0) -> None:
        self.now += seconds

        async def once() -> None:
            transport = httpx.MockTransport(self.engine.handle)
            async with httpx.AsyncClient(base_url="http://engine", transport=transport) as client:
                await self.intruder.watch(canary, client)

        asyncio.run(once())


def test_it_strikes_once_when_asked() -> None:
    """Through the endpoint, with the key; what it did is told."""
    scene = Scene(Engine())
    scene.watch(ARMED)
    assert "type t and Enter" in scene.intruder.word
    scene.intruder.ask()
    for _ in range(3):
        scene.watch(ARMED)
        scene.intruder.ask()
    (request,) = scene.engine.asked
    assert request.url.path == "/collective_rpc"
    assert request.headers[HEADER] == "secret"
    assert json.loads(request.content) == {"method": METHOD}
    assert "tampered with layer 2 (2 of its tensors)" in scene.intruder.word


def test_unasked_it_does_nothing() -> None:
    """However long the canary is quiet."""
    scene = Scene(Engine())
    for _ in range(3):
        scene.watch(ARMED, 100.0)
    assert scene.engine.asked == []


def test_by_itself_it_waits_until_the_canary_has_been_quiet() -> None:
    """Armed without a break; a sidecar that says nothing is no quiet canary."""
    scene = Scene(Engine(), by_itself=True)
    for canary in (None, LEARNING, ARMED, LEARNING, ARMED, None, ARMED):
        scene.watch(canary, QUIET_SECONDS)
        assert scene.engine.asked == []
    scene.watch(ARMED, QUIET_SECONDS - 1)
    assert scene.engine.asked == []
    scene.watch(ARMED, 1)
    assert len(scene.engine.asked) == 1
    assert "once the canary is armed" not in scene.intruder.word


def test_before_the_canary_is_armed_the_word_is_to_wait() -> None:
    """But who asks is obeyed."""
    scene = Scene(Engine())
    scene.watch(LEARNING)
    assert "once the canary is armed" in scene.intruder.word
    scene.intruder.ask()
    scene.watch(LEARNING)
    assert len(scene.engine.asked) == 1


def test_a_strike_that_fails_is_told_and_may_be_tried_again() -> None:
    """Not by itself: an engine that refuses is not asked each second."""
    scene = Scene(
        Engine(httpx.Response(500), httpx.Response(200, json={}), httpx.Response(200, json=TOLD)),
        by_itself=True,
    )
    for _ in range(4):
        scene.watch(ARMED, QUIET_SECONDS)
    assert len(scene.engine.asked) == 1
    assert "could not be tampered with" in scene.intruder.word
    for _ in range(2):
        scene.intruder.ask()
        scene.watch(ARMED)
    assert len(scene.engine.asked) == 3
    assert "tampered with layer 2" in scene.intruder.word
