"""The tap on a plain transformers model: right numbers, right sequences, and no trace left."""

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import sidecar.tap
from sidecar.config import TapConfig
from sidecar.errors import TapRefused
from sidecar.fold.scans import RecentScans
from sidecar.tap import probes
from sidecar.tap.sketch import directions
from sidecar.wire import control
from sidecar.wire.channel import Receiver
from sidecar.wire.control import Control
from sidecar.wire.frame import (
    Arrays,
    Cells,
    Layers,
    Request,
    Requests,
    Signatures,
    Status,
    Totals,
    unpack,
)
from sidecar.wire.scan import Scan
from sidecar.wire.signals import NUM_FIRST_POSITIONS
from sidecar.wire.signature import entries
from tests.e2e.reference import logits_of, rows_of, streams_of
from tests.tap.probe_files import entry, write
from tests.tap.test_confidence import reference

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
        self.config = TapConfig(
            socket=folder / "run" / "s.sock", flush_seconds=1, budget_share=0, attention_every=1
        )
        self._receiver = Receiver(self.config.socket)
        self.requests: list[Request] = []
        self.signatures: Signatures | None = None
        self.totals: dict[str, Cells] = {}
        self.layers: Layers | None = None
        self.status: Status | None = None
        self.scans: list[Scan] = []

    def listen(self, seconds: float = 0.5) -> "Inbox":
        """Take in what comes until nothing came for `seconds`, or after five times that."""
        ends = time.monotonic() + 5 * seconds
        while time.monotonic() < ends and (data := self._receiver.receive(seconds)) is not None:
            match unpack(data).body:
                case Requests(_, requests):
                    self.requests += requests
                case Signatures() as signatures:
                    self.signatures = signatures
                case Totals(tables):
                    self.totals |= {table.group: Cells.unpack(table) for table in tables}
                case Layers() as layers:
                    self.layers = layers
                case Status() as status:
                    self.status = status
                case Scan() as scan:
                    self.scans.append(scan)
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


def cells(request: Request, group: str) -> Cells:
    """What a request's record has of one group of signals."""
    (table,) = (table for table in request.tables if table.group == group)
    return Cells.unpack(table)


def assert_confidence_equals_reference(
    request: Request, prompt: list[int], tokens: list[int]
) -> None:
    """Every generated token is counted, with the means of the logits of the sequence alone."""
    logits = logits_of(MODEL, prompt + tokens[:-1])[len(prompt) - 1 :]
    found = cells(request, "confidence")
    assert found.count.sum() == len(tokens)
    means = found.sums[..., 0].reshape(-1, found.sums.shape[-2])[0] / len(tokens)
    expected = reference(torch.from_numpy(logits), tokens).mean(0)
    np.testing.assert_allclose(means, expected, rtol=1e-4, atol=1e-5)


def concentration_of(model: Any, tokens: list[int]) -> np.ndarray:
    """[L, T, 4] of each row, the mean over the heads; from the weights themselves, in float64."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor([tokens]), output_attentions=True, use_cache=False)
    weights = torch.stack(output.attentions)[:, 0].double().numpy()  # [L, heads, T, T]
    attended = np.maximum((weights > 0).sum(-1), 2)
    entropy = -(weights * np.log(np.where(weights > 0, weights, 1.0))).sum(-1) / np.log(attended)
    effective = 1.0 / np.square(weights).sum(-1)
    sink = weights[..., :NUM_FIRST_POSITIONS].sum(-1)
    return np.stack([entropy, weights.max(-1), effective, sink], -1).mean(1)


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
    assert_confidence_equals_reference(inbox.requests[0], SHORT, first)
    assert_confidence_equals_reference(inbox.requests[1], LONG, second)
    assert inbox.status is not None
    assert (inbox.status.state, inbox.status.runner) == ("live", "torch")
    assert inbox.status.errors == {}


def test_a_scan_tells_each_row_as_transformers_has_it(model: Any, inbox: Inbox) -> None:
    """Every layer's three signals of every token, and the confidence in each token generated."""
    control.write(inbox.config.control_path, Control(scan_requests=1))
    with sidecar.tap.attach(model, config=inbox.config):
        tokens, _ = generate(model, padded(SHORT, LONG))
        generate(model, padded(LONG))
    inbox.listen()
    assert len({scan.id for scan in inbox.scans}) == 1
    scans = RecentScans()
    for part in inbox.scans:
        scans.update("engine", 0, part)
    (scanned,) = scans.get()
    rows, alone = scanned.columns(), rows_of(MODEL, SHORT + tokens[:-1])

    assert (scanned.scan.is_final, scanned.num_left_out) == (True, 0)
    assert rows.positions.tolist() == list(range(len(SHORT) + 9))
    np.testing.assert_allclose(rows.values[..., 0], alone.residual_rms, rtol=1e-4)
    np.testing.assert_allclose(rows.values[..., 1], alone.residual_peak, rtol=1e-4)
    np.testing.assert_allclose(rows.values[..., 2], alone.block_influence, atol=1e-5)
    assert rows.confidence is not None
    assert np.isnan(rows.confidence[: len(SHORT) - 1]).all()
    logits = logits_of(MODEL, SHORT + tokens[:-1])[len(SHORT) - 1 :]
    expected = reference(torch.from_numpy(logits), tokens)
    np.testing.assert_allclose(rows.confidence[len(SHORT) - 1 :], expected, rtol=1e-4, atol=1e-5)


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
    # The end token was generated too, and nothing after it.
    generated = [cells(request, "confidence").count.sum() for request in inbox.requests]
    assert generated == [length + 1, 10]


def test_an_end_token_of_one_call_is_heard(model: Any, inbox: Inbox) -> None:
    """It may be an option of `generate` rather than of the model, and holds for that call alone."""
    first, second = generate(model, padded(SHORT, LONG))
    end = next(token for token in first[1:6] if token not in second and token != first[0])
    with sidecar.tap.attach(model, config=inbox.config):
        generate(model, padded(SHORT, LONG), min_new_tokens=0, eos_token_id=end)
        generate(model, padded(SHORT, LONG))
    inbox.listen()
    generated = [cells(request, "confidence").count.sum() for request in inbox.requests]
    assert generated == [first.index(end) + 1, 10, 10, 10]


def test_sampled_tokens_are_measured_as_they_were_chosen(model: Any, inbox: Inbox) -> None:
    """By the model's own distribution, whatever the temperature; what is returned is a record."""
    torch.manual_seed(3)
    with sidecar.tap.attach(model, config=inbox.config):
        output = model.generate(
            **padded(SHORT, LONG),
            max_new_tokens=8,
            min_new_tokens=8,
            do_sample=True,
            temperature=2.0,
            top_k=0,
            pad_token_id=PAD,
            return_dict_in_generate=True,
        )
    inbox.listen()
    for request, prompt, tokens in zip(
        inbox.requests, (SHORT, LONG), output.sequences[:, len(LONG) :].tolist(), strict=True
    ):
        assert_confidence_equals_reference(request, prompt, tokens)


def test_a_prompt_of_embeddings_is_measured(model: Any, inbox: Inbox) -> None:
    """`generate` then returns the new tokens alone."""
    embeddings = model.get_input_embeddings()(torch.tensor([LONG])).detach()
    with sidecar.tap.attach(model, config=inbox.config):
        tokens = model.generate(
            inputs_embeds=embeddings, max_new_tokens=5, min_new_tokens=5, do_sample=False
        )
    inbox.listen()
    assert_confidence_equals_reference(inbox.requests[0], LONG, tokens[0].tolist())


@torch.no_grad()
def test_a_pass_that_leads_nowhere_has_no_confidence(model: Any, inbox: Inbox) -> None:
    """By hand: a text that is scored, then a prompt with two tokens fed one after the other."""
    with sidecar.tap.attach(model, config=inbox.config):
        model(input_ids=torch.tensor([LONG]), use_cache=False)
        past = model(input_ids=torch.tensor([SHORT])).past_key_values
        for token in (17, 4):
            model(input_ids=torch.tensor([[token]]), past_key_values=past)
    inbox.listen()
    scored, continued = inbox.requests
    assert "confidence" not in {table.group for table in scored.tables}
    assert_confidence_equals_reference(continued, SHORT, [17, 4])


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("window", [0, 6])
def test_attention_is_that_of_the_weights(inbox: Inbox, window: int, cache: str) -> None:
    """Each row looked at, of each layer: padding left out, and a sliding window as the layer says.

    A static cache has room for keys to come, and that of a window only for the last ones.

    The reference is transformers' eager attention in float64, one sequence at a time.
    """
    config = AutoConfig.from_pretrained(MODEL)
    if window:
        config.update({"use_sliding_window": True, "sliding_window": window})
        config.layer_types = ["sliding_attention", "full_attention"] * 2
    load = AutoModelForCausalLM.from_pretrained
    tapped = load(MODEL, config=config, dtype=torch.float32).eval()
    with sidecar.tap.attach(tapped, config=inbox.config):
        generated = generate(tapped, padded(SHORT, LONG), cache_implementation=cache)
    inbox.listen()
    assert inbox.status is not None
    assert inbox.status.errors == {}
    assert "attention" not in inbox.status.absent
    dense = load(MODEL, config=config, dtype=torch.float64, attn_implementation="eager").eval()
    for request, prompt, tokens in zip(inbox.requests, (SHORT, LONG), generated, strict=True):
        expected = concentration_of(dense, prompt + tokens[:-1])
        found = cells(request, "attention_mean")
        assert found.count[:, 0].tolist() == [1] * 4
        assert found.count[:, 1].tolist() == [9] * 4
        last = len(prompt) - 1
        np.testing.assert_allclose(found.sums[:, 0, :, 0], expected[:, last], rtol=1e-3, atol=1e-5)
        decoded = expected[:, last + 1 :].sum(1)
        np.testing.assert_allclose(found.sums[:, 1, :, 0], decoded, rtol=1e-3, atol=1e-4)


def test_a_cap_of_logits_that_is_not_applied_is_not_measured(inbox: Inbox) -> None:
    """Scaled dot products are told of Gemma 2's cap and do not heed it: weights are as without."""
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 32,
        "vocab_size": 512,
        "initializer_range": 0.5,
        "eos_token_id": None,
    }
    make = functools.partial(AutoConfig.for_model, "gemma2", **small)
    from_config = AutoModelForCausalLM.from_config
    tapped = from_config(make(attn_logit_softcapping=0.1), attn_implementation="sdpa").eval()
    with sidecar.tap.attach(tapped, config=inbox.config):
        generate(tapped, padded(LONG), max_new_tokens=1, min_new_tokens=1)
    inbox.listen()
    config = make(attn_logit_softcapping=None)
    dense = from_config(config, attn_implementation="eager", dtype=torch.float64).eval()
    dense.load_state_dict(tapped.state_dict())
    found = cells(inbox.requests[0], "attention_mean").sums[:, 0, :, 0]
    np.testing.assert_allclose(found, concentration_of(dense, LONG)[:, -1], rtol=1e-3, atol=1e-5)


def test_attention_that_cannot_be_heard_is_left_out_with_the_reason(inbox: Inbox) -> None:
    """Eager attention is not looked up in transformers' table; the rest is measured."""
    load = AutoModelForCausalLM.from_pretrained
    eager = load(MODEL, dtype=torch.float32, attn_implementation="eager").eval()
    with sidecar.tap.attach(eager, config=inbox.config):
        generate(eager, padded(SHORT))
    inbox.listen()
    assert inbox.status is not None
    assert inbox.status.state == "live"
    assert "attn_implementation='sdpa'" in inbox.status.absent["attention"]
    assert "confidence" in inbox.totals


def test_sketches_and_probes_read_the_stream(model: Any, inbox: Inbox, tmp_path: Path) -> None:
    """A score is that of the hidden states, and so is a sketch; padding is in neither."""
    hidden_size, layer = model.config.hidden_size, 1
    direction = torch.randn(hidden_size, generator=torch.Generator().manual_seed(5))
    path = write(tmp_path, entry("mine", layer=layer, rows="all"), saved={"w": direction})
    config = inbox.config.model_copy(update={"probe_file": path, "sketch_layers": 2})
    with sidecar.tap.attach(model, config=config):
        first, second = generate(model, padded(SHORT, LONG))
    inbox.listen()
    assert inbox.signatures is not None
    layout = inbox.signatures.layout
    for number, (prompt, tokens) in enumerate(((SHORT, first), (LONG, second))):
        streams = streams_of(MODEL, prompt + tokens[:-1])[1:].numpy()
        score = (streams[layer] @ direction.double().numpy()).mean() + 0.5
        found = cells(inbox.requests[number], "probe").sums.ravel()[0]
        np.testing.assert_allclose(found, score, rtol=1e-4)
        packed = inbox.signatures.signatures[number].values
        values = dict(zip(entries(layout), np.frombuffer(packed, "<f4"), strict=True))
        drawn = directions(layout.sketch_seed, 3, layout.sketch_size, hidden_size)
        sketch = [values[f"sketch/l3/last_prompt/{k}"] for k in range(layout.sketch_size)]
        np.testing.assert_allclose(
            sketch, drawn @ streams[3, len(prompt) - 1], rtol=1e-3, atol=1e-3
        )


def test_tokens_are_the_same_and_nothing_is_left_behind(model: Any, inbox: Inbox) -> None:
    """The tap changes no token, and after `detach` the model is what it was."""
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    functions = dict(ALL_ATTENTION_FUNCTIONS)
    buffers = set(dict(model.named_buffers()))
    plain = generate(model, padded(SHORT, LONG))
    tap = sidecar.tap.attach(model, config=inbox.config)
    tapped = generate(model, padded(SHORT, LONG))
    tap.detach()
    assert tapped == plain
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert set(dict(model.named_buffers())) == buffers
    assert dict(ALL_ATTENTION_FUNCTIONS) == functions
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
                inbox.listen()  # compiling takes long, and frames that nobody reads are dropped
    inbox.listen()
    torch.compiler.reset()
    assert inbox.status is not None
    assert inbox.status.state == "live"
    assert "compiled" in inbox.status.absent["attention"]
    assert inbox.status.errors == {}
    assert inbox.layers is not None
    assert sum(inbox.layers.coverage.observed) == 2 * len(SHORT) + 1


@pytest.mark.parametrize("option", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 2}])
def test_beams_and_guesses_are_served_and_not_measured(
    model: Any, inbox: Inbox, option: dict[str, int]
) -> None:
    """Beams change owners, and guesses are taken back: left alone, not attributed wrongly."""
    with sidecar.tap.attach(model, config=inbox.config):
        generate(model, padded(SHORT), **option)
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
