"""Confidence of generated tokens on real servers, against vLLM's log-probabilities and logits."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from sidecar.wire.frame import Request
from tests.e2e.frames import Frames, group_of, moments_of, served
from tests.e2e.harness import MODEL, Stack, get_text, wait_for
from tests.e2e.prompts import Prompts
from tests.e2e.reference import logits_of

pytestmark = pytest.mark.e2e

SURPRISAL = 3
TRUNK = 256  # tokens that a family of prompts shares: two KV blocks on a CPU
EAGER = "--enforce-eager"
NUM_DRAFTS = 3
NGRAM = f'{{"method":"ngram","num_speculative_tokens":{NUM_DRAFTS},"prompt_lookup_max":4}}'


class Served(NamedTuple):
    """A server, and the frames of its tap."""

    stack: Stack
    frames: Frames

    def ask(self, prompt: list[int], max_tokens: int, name: str, **options: Any) -> dict[str, Any]:
        """The whole reply to a completion; greedy unless said otherwise."""
        body = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0}
        body |= {"ignore_eos": True, "return_token_ids": True, **options}
        return self.stack._post("/v1/completions", body, name)

    def request(self, reply: dict[str, Any], child: int | None = None) -> Request:
        """What was measured of it."""
        return self.frames.request(reply["id"], child)

    def ask_all(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Many at once."""
        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(lambda call: self.ask(**call), calls))


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[Served]:
    """A float32 server."""
    stack = Stack(folder / "confidence", dtype="float32", args=(EAGER,))
    with served(stack) as frames:
        yield Served(stack, frames)


@pytest.fixture(scope="module")
def speculative(folder: Path) -> Iterator[Served]:
    """The same server, guessing tokens from what stood before."""
    args = (EAGER, "--speculative-config", NGRAM)
    stack = Stack(folder / "ngram", dtype="float32", args=args)
    with served(stack) as frames:
        yield Served(stack, frames)


def tokens_of(reply: dict[str, Any], child: int = 0) -> list[int]:
    return reply["choices"][child]["token_ids"]


def values_of(request: Request) -> tuple[int, np.ndarray]:
    """How many tokens were measured of a request, and [S, 3] mean, least and largest."""
    cells = group_of(request, "confidence")
    assert cells.count[1:].sum() == 0  # all of it in the cell of no adapter
    count = int(cells.count[0])
    means = cells.sums[0, :, 0] / count
    return count, np.column_stack([means, cells.extremes[0]])


def summary(values: np.ndarray) -> np.ndarray:
    """The same of values [N, S]."""
    return np.column_stack([values.mean(0), values.min(0), values.max(0)])


def expected(prompt: list[int], tokens: list[int]) -> np.ndarray:
    """The signals of each of `tokens`, [N, S], by their formulas from the model's own logits."""
    logits = logits_of(MODEL, prompt + tokens)[len(prompt) - 1 : -1]
    top = logits.max(-1, keepdims=True)
    logsumexp = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
    p = np.exp(logits - logsumexp[:, None])
    first, second = np.sort(p, -1)[:, -1], np.sort(p, -1)[:, -2]
    surprisal = logsumexp - logits[np.arange(len(tokens)), tokens]
    entropy = -(p * np.log(p)).sum(-1)
    return np.column_stack([entropy, first, first - second, surprisal, logsumexp])


def check(
    served: Served, prompt: list[int], reply: dict[str, Any], child: int | None = None
) -> None:
    """Every token of a reply was measured, and as the reference would."""
    tokens = tokens_of(reply, child or 0)
    count, found = values_of(served.request(reply, child))
    assert count == len(tokens)
    np.testing.assert_allclose(found, summary(expected(prompt, tokens)), rtol=1e-4, atol=1e-4)


def crowd(prompts: Prompts) -> list[dict[str, Any]]:
    """16 requests: one token to several chunks, and every fourth with a beginning in the cache."""
    trunk = prompts.cut([TRUNK], seed=41)[0]
    lengths = [1, 3, 255, 257, 600, 513, 40, 90, 128, 300, 17, 64, 400, 5, 33, 210]
    return [
        {
            "prompt": trunk + cut[:80] if number % 4 == 1 else cut,
            "max_tokens": 3 + 2 * number,
            "name": f"crowd{number}",
        }
        for number, cut in enumerate(prompts.cut(lengths, seed=42))
    ]


def test_tokens_of_a_crowd_have_the_models_own_values(plain: Served, prompts: Prompts) -> None:
    """Sixteen at once, with chunks and prefix hits: every token, in its own request, to 1e-4."""
    calls = crowd(prompts)
    plain.ask([*calls[1]["prompt"][:TRUNK], 1], 1, "trunk")
    replies = plain.ask_all(calls)
    for call, reply in zip(calls, replies, strict=True):
        check(plain, call["prompt"], reply)
    cached = [plain.request(reply).coverage.prefix_cached for reply in replies]
    assert sum(number > 0 for number in cached) >= 4


@pytest.mark.parametrize("num_logprobs", [0, 1, 5])
def test_the_surprisal_is_vllms_own_log_probability(
    plain: Served, prompts: Prompts, num_logprobs: int
) -> None:
    """Asked for or not, the tokens' log-probabilities are those that the server reports."""
    prompt = prompts.cut([70], seed=43)[0]
    silent = plain.ask(prompt, 24, f"silent{num_logprobs}")
    told = plain.ask(prompt, 24, f"told{num_logprobs}", logprobs=num_logprobs)
    assert tokens_of(silent) == tokens_of(told)
    surprisals = -np.array(told["choices"][0]["logprobs"]["token_logprobs"])
    for reply in (silent, told):
        count, found = values_of(plain.request(reply))
        assert count == 24
        np.testing.assert_allclose(found[SURPRISAL], summary(surprisals[:, None])[0], atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.8, "seed": 7},
        {"temperature": 1.3, "seed": 8, "top_k": 5, "top_p": 0.7, "repetition_penalty": 1.5},
        {"temperature": 0.0, "presence_penalty": 1.5, "min_tokens": 10, "logit_bias": {"65": 4}},
        {"temperature": 0.0, "prompt_logprobs": 2},
    ],
    ids=["temperature", "filters and penalties", "greedy with penalties", "prompt_logprobs"],
)
def test_no_sampling_parameter_changes_what_is_measured(
    plain: Served, prompts: Prompts, options: dict[str, Any]
) -> None:
    """The distribution is the model's, before anything that the request asks for."""
    # vLLM 0.32 on a CPU dies of a chunked prompt with a seed: "CPU Generator does not use offset".
    prompt = prompts.cut([60 if "seed" in options else 300], seed=44)[0]
    name = "-".join(options).replace("_", "")
    beside = [
        {"prompt": cut, "max_tokens": 30, "name": f"beside{number}{name}"}
        for number, cut in enumerate(prompts.cut([20, 30], seed=45))
    ]
    calls = [{"prompt": prompt, "max_tokens": 20, "name": name, **options}, *beside]
    for call, reply in zip(calls, plain.ask_all(calls), strict=True):
        check(plain, call["prompt"], reply)


def test_each_sample_of_a_request_is_measured_for_itself(plain: Served, prompts: Prompts) -> None:
    """n = 3 makes three requests in the engine, that share a prompt."""
    prompt = prompts.cut([50], seed=46)[0]
    reply = plain.ask(prompt, 15, "three", n=3, temperature=0.9, seed=3)
    assert len({tuple(tokens_of(reply, child)) for child in range(3)}) == 3
    for child in range(3):
        check(plain, prompt, reply, child)


def test_a_grammars_mask_narrows_the_distribution(plain: Served, prompts: Prompts) -> None:
    """Forbidden tokens have no probability, and the surprisal is again the server's own."""
    prompt = prompts.cut([40], seed=47)[0]
    options = {"structured_outputs": {"choice": ["yes", "maybe"]}, "logprobs": 1}
    reply = plain.ask(prompt, 8, "grammar", ignore_eos=False, **options)
    count, found = values_of(plain.request(reply))
    told = reply["choices"][0]["logprobs"]["token_logprobs"]
    assert reply["choices"][0]["text"] in ("yes", "maybe")
    assert count == len(told)
    np.testing.assert_allclose(found[SURPRISAL], summary(-np.array(told)[:, None])[0], atol=1e-4)
    assert found[0, 2] < np.log(count + 10)  # a handful of tokens were allowed, not thousands


def test_the_totals_are_the_sum_of_the_requests(plain: Served, prompts: Prompts) -> None:
    """Nothing is counted that no request has, warm-up included."""

    def agree() -> bool:
        cells = [group_of(r, "confidence") for r in plain.frames.records]
        total = plain.frames.cells("confidence")
        sums = np.sum([each.sums for each in cells], axis=0)
        return int(total.count.sum()) == sum(int(each.count.sum()) for each in cells) and bool(
            np.allclose(total.sums, sums, rtol=1e-9)
        )

    plain.ask(prompts.cut([10], seed=48)[0], 4, "last")
    wait_for(agree, "totals and requests agree")
    assert plain.frames.status is not None
    assert plain.frames.status.errors == {}
    assert "confidence" not in plain.frames.status.absent


def test_a_request_that_its_client_gave_up_is_told_of(plain: Served, prompts: Prompts) -> None:
    """Its id arrives once; those that ended are not among the given up."""
    ended = plain.ask(prompts.cut([20], seed=49)[0], 5, "ended")
    plain.stack.abort(prompts.cut([20], seed=50)[0], 900, 3, "given-up")
    wait_for(lambda: plain.frames.aborted, "an abort is told of")
    (name,) = plain.frames.aborted
    assert name.startswith("cmpl-given-up-0-")
    assert plain.frames.request("cmpl-given-up").id == name
    assert plain.request(ended).id not in plain.frames.aborted


def repetitive(prompts: Prompts) -> list[dict[str, Any]]:
    """Prompts that say everything several times, and some that do not; a few end early."""
    rng = random.Random(51)
    calls = []
    for number, cut in enumerate(prompts.cut([30] * 6 + [280] * 4, seed=51)):
        prompt = cut * 4 if number < 6 else cut
        calls.append(
            {"prompt": prompt, "max_tokens": rng.randrange(12, 60), "name": f"guess{number}"}
        )
    return calls


def decoded(request: Request) -> int:
    """Rows of generated tokens that were measured."""
    return sum(request.coverage.observed[2:])


def counter(stack: Stack, name: str) -> int:
    """A counter of vLLM's own."""
    lines = get_text(f"{stack.url}/metrics").splitlines()
    (line,) = (each for each in lines if each.startswith(f"vllm:{name}_total{{"))
    return round(float(line.rpartition(" ")[2]))


def test_rows_of_rejected_drafts_belong_to_nobody(
    plain: Served, speculative: Served, prompts: Prompts
) -> None:
    """With speculation each request is measured as without: the same rows, tokens and values."""
    calls = repetitive(prompts)
    without = [plain.ask(**call) for call in calls]
    with_drafts = speculative.ask_all(calls)
    for one, other in zip(without, with_drafts, strict=True):
        assert tokens_of(one) == tokens_of(other)
        mine, theirs = plain.request(one), speculative.request(other)
        assert decoded(theirs) == len(tokens_of(other)) - 1
        assert sum(theirs.coverage.observed) == sum(mine.coverage.observed)
        same_residuals(mine, theirs)
        count, found = values_of(theirs)
        assert count == len(tokens_of(other))
        np.testing.assert_allclose(found, values_of(mine)[1], rtol=1e-4, atol=1e-5)

    proposed = counter(speculative.stack, "spec_decode_num_draft_tokens")
    accepted = counter(speculative.stack, "spec_decode_num_accepted_tokens")
    assert 0 < accepted < proposed
    total = speculative.frames.coverage()
    # vLLM also counts drafts that were right but stood after the end of their request.
    assert 0 <= total.rejected - (proposed - accepted) <= NUM_DRAFTS * len(calls)
    assert total.lost == total.recomputed == 0
    requests = speculative.frames.records
    assert total.observed == np.sum([r.coverage.observed for r in requests], axis=0).tolist()


def same_residuals(one: Request, other: Request) -> None:
    """The residual stream's statistics of two requests agree, but for float32 rounding."""
    num_layers = len(np.frombuffer(one.moments.nonfinite, "<u8"))
    a, b = moments_of(one, num_layers), moments_of(other, num_layers)
    np.testing.assert_array_equal(a.count, b.count)
    means = [each.sums / np.maximum(each.count, 1)[..., None, None] for each in (a, b)]
    np.testing.assert_allclose(*means, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(a.extremes, b.extremes, rtol=1e-4, atol=1e-5)


def test_a_crowd_with_drafts_has_the_models_own_values(
    speculative: Served, prompts: Prompts
) -> None:
    """Speculation, chunks, prefix hits and sampling at a temperature together."""
    calls = [call | {"name": f"drafts{call['name']}"} for call in crowd(prompts)]
    calls[3] |= {"temperature": 0.8}
    for call, reply in zip(calls, speculative.ask_all(calls), strict=True):
        check(speculative, call["prompt"], reply)
    assert speculative.frames.status is not None
    assert speculative.frames.status.errors == {}
