"""One server that serves in every way at once: adapters, preemption, several answers, log-probs.

Its KV cache holds a few requests only, so that a crowd is preempted.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.adapters import Adapter
from tests.e2e.checks import EVERYTHING, Served, check, check_residual, observed
from tests.e2e.harness import Stack, get_text, serving, wait_for
from tests.e2e.prompts import Prompts

pytestmark = pytest.mark.e2e

BLOCK = 128  # tokens of a KV block on a CPU
NUM_BLOCKS = 10  # one holds nothing; the longest request needs 8
CROWD = 8


@pytest.fixture(scope="module")
def adapters(folder: Path) -> dict[str, Adapter]:
    """Adapters `a`, which the operator lists, and `b`, which nobody does."""
    made = {name: Adapter(folder / f"adapter-{name}", seed) for name, seed in (("a", 1), ("b", 2))}
    for adapter in made.values():
        adapter.write()
    return made


@pytest.fixture(scope="module")
def server(folder: Path, adapters: dict[str, Adapter]) -> Iterator[Stack]:
    """A float32 server with both adapters and a small KV cache."""
    modules = [f"{name}={adapter.folder}" for name, adapter in adapters.items()]
    args = ("--enforce-eager", "--num-gpu-blocks-override", str(NUM_BLOCKS), "--enable-lora")
    # One slot more than adapters: vLLM 0.32 on a CPU gives the last slot to rows without one.
    args += ("--max-loras", "3", "--lora-modules", *modules)
    environ = EVERYTHING | {"SIDECAR_ADAPTERS": "a"}
    yield from serving(Stack(folder / "modes", dtype="float32", args=args, environ=environ))


def _preemptions(stack: Stack) -> int:
    """What vLLM itself has counted."""
    found = re.findall(
        r"^vllm:num_preemptions_total\{.*\} (\S+)$", get_text(f"{stack.url}/metrics"), re.MULTILINE
    )
    return int(sum(map(float, found)))


def test_preempted_requests_are_measured_once_and_right(server: Stack, prompts: Prompts) -> None:
    """Requests that lose their KV cache and are computed again have the numbers of one life."""
    before = _preemptions(server)
    # Each fills one block while it waits for its second, and there are too few of those.
    lengths = [BLOCK - 3 - number for number in range(CROWD)]
    calls = [
        {"prompt": prompt, "max_tokens": 40, "request_id": f"tight{number}"}
        for number, prompt in enumerate(prompts.cut(lengths, seed=51))
    ]
    replies = server.complete_all(calls)
    records = [server.record(reply["id"]) for reply in replies]

    for call, reply, record in zip(calls, replies, records, strict=True):
        check(Served(record, call["prompt"] + reply["tokens"][:-1], reply["cached"]))
    assert _preemptions(server) > before
    assert sum(record["preemptions"] for record in records) == _preemptions(server) - before
    again = [record["coverage"]["recomputed"] for record in records]
    assert sum(again) >= BLOCK
    assert all(r["preemptions"] for r, n in zip(records, again, strict=True) if n)


def test_totals_are_the_sum_of_requests_after_preemption(server: Stack, prompts: Prompts) -> None:
    """Rows computed again are in their own account, in the totals as in the requests."""
    calls = [
        {"prompt": prompt, "max_tokens": 30, "request_id": f"sum{number}"}
        for number, prompt in enumerate(prompts.cut([BLOCK - 9] * CROWD, seed=52))
    ]
    for reply in server.complete_all(calls):
        server.record(reply["id"])

    def adds_up() -> bool:
        totals = server.status()["coverage"][0]
        records = server.requests()
        causes = ("recomputed", "prefix_cached", "lost")
        assert totals["recomputed"]
        return observed({"coverage": totals}) == sum(map(observed, records)) and all(
            totals[cause] == sum(r["coverage"][cause] for r in records) for cause in causes
        )

    wait_for(adds_up, "the totals are the sum of the requests")


def test_a_request_is_measured_under_its_adapter(
    server: Stack, prompts: Prompts, adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    """In one batch, each has the numbers of its own weights, and a label out of the list."""
    label = {"tiny": "", "a": "a", "b": "other"}
    weights = {name: made.merged(tmp_path / name) for name, made in adapters.items()}
    names = ["tiny", "a", "b", "a"]
    calls = [
        {"prompt": prompt, "max_tokens": 12, "request_id": f"{name}{number}", "model": name}
        for number, (name, prompt) in enumerate(
            zip(names, prompts.cut([40, 60, 80, 100], seed=53), strict=True)
        )
    ]
    for name, call, reply in zip(names, calls, server.complete_all(calls), strict=True):
        record = server.record(reply["id"])
        tokens = call["prompt"] + reply["tokens"][:-1]
        assert record["adapter"] == label[name]
        if name == "tiny":
            check(Served(record, tokens))
        else:
            check(Served(record, tokens, weights=weights[name]))
            with pytest.raises(AssertionError):  # so far from the base model's
                check_residual(Served(record, tokens))
    for folder in weights.values():
        shutil.rmtree(folder)


def test_each_of_several_answers_is_a_request_of_its_own(server: Stack, prompts: Prompts) -> None:
    """With n=3 every child has a record, with the numbers of its own tokens."""
    [prompt] = prompts.cut([BLOCK + 50], seed=54)
    # No seed of sampling: vLLM 0.32 for CPU dies of a seeded request prefilled in chunks.
    reply = server.complete(prompt, 16, "three", n=3, temperature=1.0)

    assert len({tuple(tokens) for tokens in reply["choices"]}) == 3
    for child, tokens in enumerate(reply["choices"]):
        record = server.record(reply["id"], child)
        cached = record["coverage"]["prefix_cached"]
        assert cached in (0, BLOCK)  # what a sibling has computed before
        check(Served(record, prompt + tokens[:-1], cached))


def test_log_probabilities_of_the_prompt_change_no_row(server: Stack, prompts: Prompts) -> None:
    """With prompt_logprobs a prompt of several chunks is measured as without."""
    [prompt] = prompts.cut([600], seed=55)
    reply = server.complete(prompt, 8, "logprobs", prompt_logprobs=2)

    check(Served(server.record(reply["id"]), prompt + reply["tokens"][:-1], reply["cached"]))


def test_a_request_whose_client_hangs_up_is_closed(server: Stack, prompts: Prompts) -> None:
    """Its record tells of the rows so far, and the next one is measured right."""
    gone, stays = prompts.cut([30, 50], seed=56)
    server.abort(gone, 900, 5, "gone")
    record = server.record("cmpl-gone")
    assert 30 + 5 <= observed(record) < 930

    reply = server.complete(stays, 5, "stays")
    check(Served(server.record(reply["id"]), stays + reply["tokens"][:-1], reply["cached"]))
