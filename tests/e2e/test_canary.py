"""Canaries on a real server: always the same numbers, never taken for traffic, never imitated."""

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.fold.drift.canary import CanaryChannel
from sidecar.fold.drift.canary_judge import Pace
from sidecar.fold.drift.canary_streams import CanaryStreams
from sidecar.fold.drift.verdict import ChannelState
from sidecar.fold.signatures import Signed
from sidecar.publish.canary.runner import CanaryRunner, Outcome, Target
from sidecar.publish.canary.runner import Pace as RunnerPace
from sidecar.publish.canary.suite import read_suite
from sidecar.wire.canary import XARG, Canary, parse, tag
from sidecar.wire.frame import Request, Signature, Signatures
from tests.e2e.frames import Frames, served
from tests.e2e.harness import Stack, wait_for
from tests.e2e.prompts import Prompts

# Alone: every signature of its hundreds must arrive, and a machine at its limits drops some.
pytestmark = [pytest.mark.e2e, pytest.mark.alone]

SECRET = b"an operator's secret of 32 bytes"
ENGINE = "engine-dp0-pp0-tp0"
NUM_ROUNDS = 5
NUM_CLIENTS = 3
SUITE = read_suite()
PACE = Pace(min_rounds=4, num_rounds=5)


@dataclass
class Canaries:
    """What a server was asked, and what it told.

    clients: completion ids of everybody but the canary. imitated: those that claimed to be it.
    finals: every final signature, once all of that was over.
    """

    stack: Stack
    frames: Frames
    outcomes: list[Outcome]
    clients: list[str]
    imitated: list[str]
    finals: list[Signed]

    def marked(self) -> dict[int, dict[str, Signature]]:
        """Signatures of canaries by round and prompt."""
        rounds: dict[int, dict[str, Signature]] = {}
        for signed in self.finals:
            canary = parse(signed.signature.canary)
            if canary is not None:
                held = rounds.setdefault(canary.round_ms, {})
                assert canary.prompt not in held, "one request, one mark"
                held[canary.prompt] = signed.signature
        return rounds

    def record(self, signature: Signature) -> Request:
        """The record of the same request."""
        found: Request = wait_for(
            lambda: next((r for r in self.frames.records if r.id == signature.id), None), "record"
        )
        return found


@pytest.fixture(scope="module")
def canaries(folder: Path, prompts: Prompts) -> Iterator[Canaries]:
    """Some rounds beside clients of which some pretend to be the canary."""
    secret = folder / "canary-secret"
    secret.write_bytes(SECRET)
    environ = {"SIDECAR_CANARY_KEY_FILE": str(secret)}
    stack = Stack(folder / "canary", environ=environ)
    with served(stack) as frames:
        found = Canaries(stack, frames, [], [], [], [])
        over = threading.Event()
        clients = [
            threading.Thread(target=_client, args=(found, prompts, seed, over))
            for seed in range(NUM_CLIENTS)
        ]
        for client in clients:
            client.start()
        target = Target(stack.url, SECRET)
        runner = CanaryRunner(SUITE, target, RunnerPace(rate=1000.0))
        try:
            found.outcomes += [runner.run_round() for _ in range(NUM_ROUNDS)]
        finally:
            over.set()
            for client in clients:
                client.join()
        expected = NUM_ROUNDS * len(SUITE.prompts) + len(found.clients)
        wait_for(lambda: len(_finals(frames)) >= expected, "every signature", 120)
        found.finals += _finals(frames)
        yield found


def _finals(frames: Frames) -> list[Signed]:
    bodies = frames.all(Signatures)
    return [Signed(ENGINE, b.layout, s) for b in bodies for s in b.signatures if s.is_final]


def _client(found: Canaries, prompts: Prompts, seed: int, over: threading.Event) -> None:
    """Ordinary requests, canary prompts without a tag, and tags without the secret."""
    draw = random.Random(seed)
    number = 0
    while not over.is_set():
        number += 1
        name = draw.choice(SUITE.names)
        canary = Canary(name, time.time_ns() // 1_000_000)
        asked: dict[str, Any] = {
            "prompt": prompts.cut([draw.randrange(8, 300)], seed=1000 * seed + number)[0],
            "max_tokens": draw.randrange(1, 16),
        }
        if number % 3 == 1:
            asked = {"prompt": SUITE.prompts[number % len(SUITE.prompts)].prompt, "max_tokens": 1}
        if number % 3 == 2:
            imitations = [str(canary), tag(canary, b"not the secret of the operator"), 7, ["x"]]
            asked["vllm_xargs"] = {XARG: imitations[number // 3 % len(imitations)]}
        request_id = f"client{seed}-{number}"
        completion = found.stack.complete(**asked, request_id=request_id)["id"]
        found.clients.append(completion)
        if "vllm_xargs" in asked:
            found.imitated.append(completion)


def test_every_round_is_complete_and_marked(canaries: Canaries) -> None:
    """Each prompt once in each round, under the names that were signed."""
    assert [outcome.name for outcome in canaries.outcomes] == ["complete"] * NUM_ROUNDS

    rounds = canaries.marked()
    assert len(rounds) == NUM_ROUNDS
    assert all(set(held) == set(SUITE.names) for held in rounds.values())


def test_every_prompt_token_is_measured_in_every_round(canaries: Canaries) -> None:
    """With prefix caching on, nothing of a canary comes from the cache, and it is prefill only."""
    for held in canaries.marked().values():
        for signature in held.values():
            coverage = canaries.record(signature).coverage
            assert signature.num_unobserved == 0
            assert coverage.prefix_cached == 0
            assert sum(coverage.observed) == signature.num_prompt_tokens > 20
            assert signature.num_generated_tokens == 0  # the one token is never fed back


def test_rounds_leave_identical_signatures(canaries: Canaries) -> None:
    """Whatever else is in the batch: on a CPU to the last digits that a sum depends on."""
    streams = CanaryStreams.of(canaries.finals[0].layout)
    first, *others = canaries.marked().values()
    for name, signature in first.items():
        expected = streams.read(np.frombuffer(signature.values, "<f4"))
        assert np.isfinite(expected).all()
        for other in others:
            got = streams.read(np.frombuffer(other[name].values, "<f4"))
            np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6, err_msg=name)


def test_without_a_fresh_salt_the_cache_hides_the_prompt(canaries: Canaries) -> None:
    """What the salt is for: the second time, a signature is of the end of the prompt alone."""
    prompt = max(SUITE.prompts, key=lambda each: len(each.prompt))
    told = []
    for _ in range(2):
        canary = Canary(prompt.id, time.time_ns() // 1_000_000)
        asked = {"cache_salt": "the same", "vllm_xargs": {XARG: tag(canary, SECRET)}}
        done = canaries.stack.complete(prompt.prompt, 1, **asked)
        told.append(canaries.frames.signature(done["id"])[1])

    assert told[0].num_unobserved == 0
    assert told[1].num_unobserved > 100
    channel = CanaryChannel(SUITE.names)
    channel.update(Signed(ENGINE, canaries.finals[0].layout, told[1]))
    assert channel.ignored["unmeasured"] == 1


def test_nobody_is_marked_without_the_secret(canaries: Canaries) -> None:
    """Neither a tag of another secret, nor one that is none, nor the very text of a canary."""
    assert len(canaries.imitated) >= 3
    unmarked = [each.signature.id for each in canaries.finals if not each.signature.canary]
    for completion in canaries.clients:
        assert sum(each.startswith(f"{completion}-0-") for each in unmarked) == 1


def test_what_is_not_marked_is_the_clients_alone(canaries: Canaries) -> None:
    """So that no canary is in what drift calls traffic."""
    served_ = {f"{completion}-0" for completion in canaries.clients}
    unmarked = {
        each.signature.id.rpartition("-")[0]
        for each in canaries.finals
        if not each.signature.canary
    }
    assert unmarked == served_


def test_the_channel_is_armed_by_the_rounds_and_finds_nothing(canaries: Canaries) -> None:
    """Fed with everything that the engine told, clients and imitations included."""
    channel = CanaryChannel(SUITE.names, pace=PACE)
    for signed in canaries.finals:
        channel.update(signed)
    verdict = channel.get(time.time_ns())

    assert verdict.state is ChannelState.ARMED, verdict.reason
    assert not channel.is_learning
    assert verdict.level < 0.5
    assert len(channel.layers()) == 4
    assert not {"duplicate", "late", "unmeasured"} & set(channel.ignored)
