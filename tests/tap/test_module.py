"""The tap on a plain transformers model: right numbers, right sequences, and no trace left."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import sidecar.tap
from sidecar.config import TapConfig
from sidecar.errors import TapRefused
from sidecar.tap import probes
from sidecar.wire.channel import Receiver
from sidecar.wire.frame import Arrays, Layers, Request, Requests, Status, unpack
from tests.e2e.reference import rows_of

MODEL = Path(__file__).parents[2] / "sidecar" / "demo" / "model"
SHORT, LONG = [5, 9, 21], [40, 7, 300, 12, 88, 3, 61, 17, 90, 33, 71]
PAD = 0


@pytest.fixture(scope="module")
def model() -> Any:
    """The demo model in float32."""
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


class Inbox:
    """A sidecar that only keeps what it hears."""

    def __init__(self, folder: Path) -> None:
        self.config = TapConfig(socket=folder / "run" / "s.sock", flush_seconds=1, budget_share=0)
        self._receiver = Receiver(self.config.socket)
        self.requests: list[Request] = []
        self.layers: Layers | None = None
        self.status: Status | None = None

    def listen(self, seconds: float = 0.5) -> "Inbox":
        """Take in what comes until nothing came for `seconds`, or after five times that."""
        ends = time.monotonic() + 5 * seconds
        while time.monotonic() < ends and (data := self._receiver.receive(seconds)) is not None:
            match unpack(data).body:
                case Requests(_, requests):
                    self.requests += requests
                case Layers() as layers:
                    self.layers = layers
                case Status() as status:
                    self.status = status
        return self

    def close(self) -> None:
        """Release the socket."""
        self._receiver.close()


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Inbox]:
    """Where the tap of one test reports to."""
    made = Inbox(tmp_path)
    yield made
    made.close()


def padded(*prompts: list[int]) -> dict[str, torch.Tensor]:
    """A left-padded batch."""
    width = max(map(len, prompts))
    ids = [[PAD] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def generate(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> list[list[int]]:
    """Greedy tokens after the prompts, ten of them unless told otherwise."""
    chosen = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, "pad_token_id": PAD}
    tokens = model.generate(**inputs, **chosen | options)
    return tokens[:, inputs["input_ids"].shape[1] :].tolist()


def assert_equals_reference(request: Request, tokens: list[int], num_layers: int) -> None:
    """Each layer's mean RMS and block influence are those of the tokens served alone."""
    rows = rows_of(MODEL, tokens)
    moments = Arrays.unpack(request.moments, num_layers)
    populations = rows.populations(request.num_prompt_tokens, 0)
    assert sum(request.coverage.observed) == len(tokens)
    for name, numbers in populations.items():
        place = ["prefill/first", "prefill/rest", "decode/first", "decode/rest"].index(name)
        assert set(moments.count[place].tolist()) == {len(numbers)}
        means = moments.sums[place, :, :, 0] / len(numbers)
        np.testing.assert_allclose(means[:, 0], rows.residual_rms[numbers].mean(0), rtol=1e-4)
        np.testing.assert_allclose(means[:, 2], rows.block_influence[numbers].mean(0), atol=1e-5)


def test_a_padded_batch_is_measured_as_if_served_alone(model: Any, inbox: Inbox) -> None:
    """Two sequences of a left-padded batch: each row is its own sequence's, and none is padding."""
    with sidecar.tap.attach(model, config=inbox.config):
        first, second = generate(model, padded(SHORT, LONG))
    inbox.listen()
    assert [request.num_prompt_tokens for request in inbox.requests] == [len(SHORT), len(LONG)]
    num_layers = len(model.model.layers)
    # The last token is sampled and never fed back: it has no row.
    assert_equals_reference(inbox.requests[0], SHORT + first[:-1], num_layers)
    assert_equals_reference(inbox.requests[1], LONG + second[:-1], num_layers)
    assert inbox.status is not None
    assert (inbox.status.state, inbox.status.runner) == ("live", "torch")
    assert inbox.status.errors == {}


def test_rows_after_the_end_of_a_sequence_are_no_data(model: Any, inbox: Inbox) -> None:
    """A sequence that ends early is fed padding while the other goes on: rows of nobody."""
    first, second = generate(model, padded(SHORT, LONG))
    end = next(token for token in first[1:6] if token not in second and token != first[0])
    length = first.index(end)
    original = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = end
    try:
        with sidecar.tap.attach(model, config=inbox.config):
            generate(model, padded(SHORT, LONG), min_new_tokens=0)
    finally:
        model.generation_config.eos_token_id = original
    inbox.listen()
    observed = [sum(request.coverage.observed) for request in inbox.requests]
    assert observed == [len(SHORT) + length, len(LONG) + 9]


def test_tokens_are_the_same_and_nothing_is_left_behind(model: Any, inbox: Inbox) -> None:
    """The tap changes no token, and after `detach` the model is what it was."""
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    buffers = set(dict(model.named_buffers()))
    plain = generate(model, padded(SHORT, LONG))
    tap = sidecar.tap.attach(model, config=inbox.config)
    tapped = generate(model, padded(SHORT, LONG))
    tap.detach()
    assert tapped == plain
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert set(dict(model.named_buffers())) == buffers
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_bug_of_ours_reaches_no_caller(
    model: Any, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the probe raising in every layer the tokens are served, and the tap says so."""

    def broken(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    plain = generate(model, padded(LONG))
    monkeypatch.setattr(probes, "record", broken)
    with sidecar.tap.attach(model, config=inbox.config):
        assert generate(model, padded(LONG)) == plain
    inbox.listen()
    assert inbox.status is not None
    assert inbox.status.state == "disarmed"
    assert inbox.status.errors["probe"] >= inbox.config.max_errors


def test_more_rows_than_there_is_room_for_are_lost_and_counted(model: Any, inbox: Inbox) -> None:
    """A prompt beyond `max_rows` is served and counted as lost; the decode steps are measured."""
    with sidecar.tap.attach(model, config=inbox.config, max_rows=len(LONG) - 1):
        generate(model, padded(LONG))
    inbox.listen()
    assert inbox.layers is not None
    assert inbox.layers.coverage.lost == len(LONG)
    assert sum(inbox.layers.coverage.observed) == 9


def test_a_compiled_model_is_tapped(model: Any, inbox: Inbox) -> None:
    """The wrapped forward is traced: attached before the first compiled pass, it is alive in it."""
    with sidecar.tap.attach(model, config=inbox.config):
        compiled = torch.compile(model, backend="aot_eager", dynamic=True)
        with torch.no_grad():
            for width in (len(SHORT), len(SHORT) + 1):
                compiled(input_ids=torch.tensor([LONG[:width]]), use_cache=False)
    inbox.listen()
    torch.compiler.reset()
    assert inbox.status is not None
    assert inbox.status.state == "live"
    assert inbox.layers is not None
    assert sum(inbox.layers.coverage.observed) == 2 * len(SHORT) + 1


def test_beam_search_is_served_and_not_measured(model: Any, inbox: Inbox) -> None:
    """Beams change owners between steps: they are left alone rather than attributed wrongly."""
    with sidecar.tap.attach(model, config=inbox.config):
        generate(model, padded(SHORT), num_beams=3)
        generate(model, padded(SHORT))
    inbox.listen()
    assert inbox.status is not None
    assert inbox.status.errors == {}
    assert inbox.layers is not None
    assert sum(inbox.layers.coverage.observed) == len(SHORT) + 9


def test_a_model_without_layers_is_refused() -> None:
    """The error says what was looked for."""
    with pytest.raises(TapRefused, match="layers"):
        sidecar.tap.attach(torch.nn.Linear(2, 2))
