"""Tests of the stored demo model and of the script that trains it.

Purpose: keep the weights, the tokenizer and the card honest with one another. Guarantee: weights
other than those the card describes fail, as do more than 8 MB, another number format and a path
of the machine that trained them.
"""

import copy
import json
import math
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

MODEL = Path(__file__).parents[2] / "sidecar" / "demo" / "model"
FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.jsonl",
}

# transformers, torch and what they load warn about things that are not ours.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: more of them wait for one another on a busy machine."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> "PreTrainedTokenizerFast":
    """Return the stored tokenizer, loaded the way that vLLM loads it."""
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model(one_thread: None) -> "Qwen3ForCausalLM":
    """Return the stored model in float32."""
    return pytest.importorskip("sidecar.demo.train").stored_model(MODEL)


def _records(kind: str, folder: Path = MODEL) -> list[dict[str, Any]]:
    """Return the training log's records of one kind."""
    lines = (folder / "training.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def _slice_losses(model: "Qwen3ForCausalLM") -> dict[str, tuple[float, float]]:
    """Return, by domain, the loss on the card's validation slice as measured and as logged."""
    train = pytest.importorskip("sidecar.demo.train")
    words = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(MODEL)
    texts = train.token_streams(words)
    return {
        record["domain"]: (
            train.mean_loss(model, texts.validation[record["domain"]], train.SLICE_WINDOWS),
            record["slice_nats"],
        )
        for record in _records("validation")
    }


def test_folder_holds_the_seven_files_and_8_megabytes_at_most() -> None:
    """The model folder has exactly its seven files, together at most 8 MB."""
    assert {path.name for path in MODEL.iterdir()} == FILES
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 8_000_000


def test_weights_are_bfloat16_and_two_to_three_and_a_half_million() -> None:
    """The weights file's header lists 2 to 3.5 million bfloat16 parameters and nothing else."""
    blob = (MODEL / "model.safetensors").read_bytes()
    size = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + size])
    header.pop("__metadata__", None)
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}
    parameters = sum(math.prod(entry["shape"]) for entry in header.values())
    assert 2_000_000 <= parameters <= 3_500_000
    assert f"| Parameters | {parameters} |" in (MODEL / "README.md").read_text(encoding="utf-8")


def test_configuration_is_one_that_vllm_serves_on_a_cpu() -> None:
    """The configuration is Qwen3 with a head size of vLLM's CPU attention and tied embeddings."""
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "qwen3"
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["head_dim"] in {32, 64, 80, 96, 112, 128, 160, 192, 224, 256}
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0
    assert config["tie_word_embeddings"] is True
    assert config["max_position_embeddings"] == 2048
    assert config["eos_token_id"] == 0


def test_no_file_names_a_path_of_the_training_machine() -> None:
    """No text file of the model names a home, temporary or working folder."""
    for name in FILES - {"model.safetensors", "tokenizer.json"}:
        text = (MODEL / name).read_text(encoding="utf-8")
        assert "_name_or_path" not in text, name
        # Samples are program text and may hold any path, so only the record around them counts.
        stated = re.sub(r'"sample": .*|## Samples.*', "", text, flags=re.DOTALL)
        assert not re.search(r"/(home|root|work|tmp|Users)/", stated), name


@pytest.mark.parametrize(
    "text",
    [
        "def greet(name):\n    return f'Hello, {name}!'\n",
        "U+00E9 Ll LATIN SMALL LETTER E WITH ACUTE",
        "  spaces  and\ttabs\r\n\n\nkept , as . they ! are ",
        "naïve café — 日本語 🙂 \x00\x7f",
    ],
)
def test_tokenizer_gives_back_the_text(tokenizer: "PreTrainedTokenizerFast", text: str) -> None:
    """Any text, also outside the corpus, survives encoding and decoding byte for byte."""
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenizer_ends_texts_and_joins_chat_messages(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    """The end token is one token, and the chat template joins the messages' contents."""
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.encode("<|endoftext|>") == [tokenizer.eos_token_id] == [0]
    messages = [{"role": "system", "content": "import os"}, {"role": "user", "content": "def f("}]
    shown = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert shown == "import os\ndef f("


def test_stored_weights_reproduce_the_validation_loss(model: "Qwen3ForCausalLM") -> None:
    """The loss on the validation slice is the logged one, and beats the unigram baseline."""
    # Another Python version carries slightly different text, and so another slice.
    same = f"| Python | {platform.python_version()} |" in (MODEL / "README.md").read_text("utf-8")
    for domain, (measured, logged) in _slice_losses(model).items():
        assert measured == pytest.approx(logged, rel=0.02 if same else 0.15), domain
    for record in _records("validation"):
        assert record["nats"] < 0.75 * record["unigram"], record["domain"]


def test_damaged_weights_fail_the_comparison(model: "Qwen3ForCausalLM") -> None:
    """Weights that differ a little in one layer give a loss outside the accepted range."""
    torch = pytest.importorskip("torch")
    damaged = copy.deepcopy(model)
    with torch.no_grad():
        damaged.model.layers[0].self_attn.o_proj.weight.mul_(-1.0)
    losses = _slice_losses(damaged).values()
    assert all(measured > 1.15 * logged for measured, logged in losses)


def test_card_states_what_the_log_holds() -> None:
    """The card's table repeats the logged losses, and its text names a command and a seed."""
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    for record in _records("validation"):
        assert f"| {record['domain']} | {record['nats']:.3f} | {record['unigram']:.3f} |" in card
    assert "python -m sidecar.demo.train " in card
    assert "| Seed | " in card
    steps = _records("step")
    assert steps[-1]["loss"] < 0.6 * steps[0]["loss"]


def test_greedy_text_stays_in_the_prompt_s_domain(
    model: "Qwen3ForCausalLM", tokenizer: "PreTrainedTokenizerFast"
) -> None:
    """A started list of characters is continued with lines of the same form."""
    train = pytest.importorskip("sidecar.demo.train")
    prompt = "U+0631 Lo ARABIC LETTER REH\nU+0632 Lo ARABIC LETTER ZAIN\nU+0633 Lo ARABIC"
    tokens = tokenizer.encode(prompt)
    lines = tokenizer.decode(tokens + train.greedy(model, tokens, 48)).splitlines()
    assert len(lines) >= 4
    assert all(re.match(r"U\+[0-9A-F]{4,5} L[a-z] ARABIC ", line) for line in lines[:-1])


def test_quick_training_learns_and_writes_a_loadable_model(
    tmp_path: Path, one_thread: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """A quick run lowers the loss, reports progress and writes the same files as a full run."""
    transformers = pytest.importorskip("transformers")
    train = pytest.importorskip("sidecar.demo.train")
    assert train.main(["--quick", "--threads", "1", "--seed", "1", "--out", str(tmp_path)]) == 0
    steps = [record["loss"] for record in _records("step", tmp_path)]
    assert sum(steps[-3:]) < 0.9 * sum(steps[:3])
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert "training: started" in capfd.readouterr().out
    assert str(tmp_path) not in (tmp_path / "README.md").read_text(encoding="utf-8")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)
    made = loaded.generate(**words("import ", return_tensors="pt"), max_new_tokens=4)
    assert made.shape[1] > len(words("import ")["input_ids"])


@pytest.mark.parametrize("option", [["--minutes", "-1"], ["--steps", "-5"], ["--threads", "0"]])
def test_impossible_limits_are_refused(option: list[str]) -> None:
    """A limit that is not positive ends the command before any work."""
    train = pytest.importorskip("sidecar.demo.train")
    with pytest.raises(SystemExit):
        train.main([*option, "--out", os.devnull])
