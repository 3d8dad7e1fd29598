"""Guest manners: whatever becomes of the sidecar or of our own code, requests are served."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from sidecar.wire.channel import RECEIVE_QUEUE, SEND_QUEUE
from tests.e2e.harness import Stack, get_status, wait_for
from tests.e2e.prompts import Prompts

pytestmark = pytest.mark.e2e

STALE_SECONDS = 60


class Traffic:
    """A few clients that never stop asking, and a count of what they got."""

    def __init__(self, stack: Stack, prompts: list[list[int]]) -> None:
        self.served: list[float] = []
        self.failures: list[str] = []
        self._stack = stack
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(p,)) for p in prompts]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def rate_over(self, seconds: float) -> float:
        """Requests served per second over the next `seconds`."""
        before = len(self.served)
        time.sleep(seconds)
        return (len(self.served) - before) / seconds

    def _ask(self, prompt: list[int]) -> None:
        while not self._stopping.is_set():
            try:
                self._stack.complete(prompt, 16)
                self.served.append(time.monotonic())
            except (AssertionError, OSError) as error:
                self.failures.append(repr(error))
                return


def test_a_killed_sidecar_costs_no_request_and_comes_back(
    bfloat16: Stack, prompts: Prompts
) -> None:
    """kill -9 under traffic: no failure, throughput holds, losses counted, flowing within 2 s."""
    with Traffic(bfloat16, prompts.cut([20, 40, 60, 80], seed=41)) as traffic:
        traffic.rate_over(3)
        with_sidecar = traffic.rate_over(6)
        wait_for(lambda: bfloat16.source().get("frames_received", 0) > 5, "frames flow")
        before = bfloat16.source()
        bfloat16.exporter.kill()
        without_sidecar = traffic.rate_over(6)
        started = time.monotonic()
        bfloat16.start_exporter()
        answering = time.monotonic()
        wait_for(lambda: bfloat16.source().get("frames_received"), "frames flow again", 5, 0.02)
        seconds = time.monotonic() - answering
    after = bfloat16.source()

    assert traffic.failures == []
    assert without_sidecar > 0.7 * with_sidecar
    assert seconds < 2, f"sidecar answered after {answering - started:.1f} s"
    _assert_accounts_agree(bfloat16, before, after)


def _assert_accounts_agree(stack: Stack, before: dict[str, Any], after: dict[str, Any]) -> None:
    """One life of the source: what was sent is what both sidecars received, or counted lost."""
    dropped = after["frames_lost"]["dropped"]
    unknown = after["frames_sent"] - before["frames_received"] - after["frames_received"] - dropped

    assert after["boot"] == before["boot"]
    assert dropped > before["frames_lost"]["dropped"]
    assert after["frames_lost"]["missing"] == 0
    # Handed over before the kill and after our last look, or lost in the queues of the killed.
    assert 0 <= unknown <= SEND_QUEUE + RECEIVE_QUEUE
    # Totals are cumulative since the boot of the engine: a restarted sidecar continues them.
    coverage = stack.status()["coverage"][0]
    assert coverage["steps"] >= after["frames_received"] > 0
    assert coverage["lost"] == 0


def test_our_own_exceptions_fail_no_request(launch: Callable[..., Stack], prompts: Prompts) -> None:
    """With probe, pump and stat logger all raising, 30 requests are served and each is counted."""
    stack = launch(
        "broken",
        args=("--enforce-eager",),
        sabotage="raise_in_probe,raise_in_pump,raise_in_stats",
    )
    served = stack.complete_all(
        [{"prompt": p, "max_tokens": 12} for p in prompts.mixed(30, seed=42)]
    )

    assert [len(reply["tokens"]) for reply in served] == [12] * 30
    wait_for(lambda: stack.source().get("state") == "disarmed", "the tap is disarmed", 10)
    errors = stack.source()["errors"]
    assert errors["probe"] > 0
    assert errors["pump"] == 10  # and no more: disarmed after ten
    frontend = wait_for(lambda: stack.source("frontend").get("errors"), "front-end errors", 5)
    assert frontend["stats"] == 10
    assert get_status(f"{stack.metrics_url}/readyz") == 503


def test_a_vanished_engine_goes_stale_and_the_sidecar_lives(
    launch: Callable[..., Stack], prompts: Prompts
) -> None:
    """kill -9 of the engine: its series disappear within 60 s, and /healthz stays 200."""
    stack = launch("vanishing", args=("--enforce-eager",))
    stack.complete(prompts.cut([30], seed=43)[0], 4)
    wait_for(lambda: [n for n in stack.samples() if "residual_rms_sum" in n], "series")
    stack.engine.stop()
    killed = time.monotonic()

    def is_stale() -> bool:
        assert get_status(f"{stack.metrics_url}/healthz") == 200
        return not [n for n in stack.samples() if "residual" in n or "requests_running" in n]

    wait_for(is_stale, "the series go stale", STALE_SECONDS, 1)
    assert time.monotonic() - killed < STALE_SECONDS
    assert get_status(f"{stack.metrics_url}/readyz") == 503


def test_a_stopped_server_leaves_at_once(launch: Callable[..., Stack], prompts: Prompts) -> None:
    """With no sidecar listening, SIGTERM ends vLLM within 20 s and leaves no socket."""
    stack = launch("leaving", args=("--enforce-eager",))
    stack.complete(prompts.cut([30], seed=44)[0], 4)
    stack.exporter.stop()
    started = time.monotonic()
    stack.engine.popen.terminate()
    stack.engine.popen.wait(30)

    assert time.monotonic() - started < 20
    assert not stack.socket.exists()
