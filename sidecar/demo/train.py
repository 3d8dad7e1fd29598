"""Trains the bundled demo model from text that this Python installation carries.

Purpose: build the Qwen3-shaped model that demonstrations and tests serve. Guarantee: a full run
writes 7 files (config, generation config, weights, tokenizer, tokenizer config, training log,
model card) of at most 8 MB together with 2 to 3.5 million bfloat16 parameters; the losses in
the card are measured on those stored weights. Reports progress at least every 10 seconds.
Run: python -m sidecar.demo.train [--out DIR] [--minutes M] [--steps N] [--seed S] [--quick]
"""

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, NamedTuple, Self

import safetensors
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from sidecar.demo import corpus
from sidecar.demo.card import DomainResult, Report, model_card

END_OF_TEXT: Final = "<|endoftext|>"
MODEL_FOLDER: Final = Path(__file__).parent / "model"
LOG_NAME: Final = "training.jsonl"
EVALUATION_WINDOW: Final = 256
SLICE_WINDOWS: Final = 24
WINDOWS_AT_ONCE: Final = 8
POSITIONS: Final = 2048
SAMPLE_CHARACTERS: Final = 160
SAMPLE_TOKENS: Final = 80
QUICK_STEPS: Final = 200
SECONDS_BETWEEN_NOTES: Final = 5.0
STEPS_BETWEEN_RECORDS: Final = 10
# The model continues text, so the template only joins the messages.
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Recipe:
    """Shape of the network and of a training run.

    rows, window: sequences per step and tokens per sequence; every long_every-th step has the
    same number of tokens in sequences of long_window. peak_rate: highest learning rate. warm_up:
    share of the run that raises it. weights: how often each domain is drawn, in the order of
    corpus.DOMAINS. characters: text kept per domain and part, None for all of it.
    """

    vocabulary: int = 3072
    hidden: int = 224
    inner: int = 640
    layers: int = 4
    query_heads: int = 4
    key_heads: int = 2
    head_size: int = 64
    rows: int = 4
    window: int = 256
    long_window: int = 512
    long_every: int = 8
    peak_rate: float = 3e-3
    warm_up: float = 0.04
    weight_decay: float = 0.1
    clip: float = 1.0
    weights: tuple[float, ...] = (0.3, 0.5, 0.2)
    characters: int | None = None

    @classmethod
    def quick(cls) -> Self:
        """Return a recipe small enough for a test of about 20 seconds."""
        return cls(
            vocabulary=512,
            hidden=64,
            inner=128,
            layers=2,
            query_heads=2,
            key_heads=1,
            head_size=32,
            rows=4,
            window=128,
            long_window=256,
            characters=150_000,
        )


class Run(NamedTuple):
    """What one call was asked to do; training ends at steps or minutes, whichever is first."""

    out: Path
    minutes: float
    steps: int
    seed: int
    quick: bool
    bf16: bool
    threads: int


class Texts(NamedTuple):
    """Token streams by domain (1-D int64 tensors, documents ended by END_OF_TEXT)."""

    train: Mapping[str, Tensor]
    validation: Mapping[str, Tensor]
    validation_bytes: Mapping[str, int]


class Outcome(NamedTuple):
    """What the training loop did: steps taken, tokens trained on, wall seconds."""

    steps: int
    tokens: int
    seconds: float


class Progress:
    """Prints a line with the time left at most every SECONDS_BETWEEN_NOTES seconds."""

    def __init__(self, label: str) -> None:
        """Start the clock of the phase named label and say that it begins."""
        self._label = label
        self._start = self._noted = time.monotonic()
        print(f"{label}: started", flush=True)

    def note(self, share: float, detail: str = "") -> None:
        """Report that the given share (0 to 1) is done; detail is printed after it."""
        now = time.monotonic()
        if now - self._noted < SECONDS_BETWEEN_NOTES:
            return
        self._noted = now
        left = (now - self._start) * (1 - share) / max(share, 1e-9)
        print(f"{self._label}: {share:6.1%}, {left:5.0f} s left {detail}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, store, validate and write the card; return the exit status."""
    run = _parsed(arguments)
    recipe = Recipe.quick() if run.quick else Recipe()
    torch.set_num_threads(run.threads)
    torch.manual_seed(run.seed)
    run.out.mkdir(parents=True, exist_ok=True)
    print("corpus: started", flush=True)
    tokenizer = save_tokenizer(_training_texts(recipe), recipe.vocabulary, run.out)
    texts = token_streams(tokenizer, recipe.characters)
    model = new_model(model_config(recipe, tokenizer))
    with (run.out / LOG_NAME).open("w", encoding="utf-8") as log:
        outcome = train(model, texts.train, recipe, run, log)
        store(model, run.out)
        stored = stored_model(run.out)
        results = validate(stored, tokenizer, texts)
        for result in results:
            log.write(json.dumps({"kind": "validation"} | result._asdict()) + "\n")
    card = model_card(_report(run, recipe, outcome, stored, results))
    (run.out / "README.md").write_text(card, encoding="utf-8")
    return 0


def save_tokenizer(texts: Sequence[str], vocabulary: int, out: Path) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on texts and write its two files to the folder out.

    vocabulary: number of tokens, END_OF_TEXT (id 0) included; at least 257.
    """
    progress = Progress("tokenizer")
    merged = Tokenizer(models.BPE())
    merged.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    merged.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    merged.train_from_iterator(texts, trainer)
    merged.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": POSITIONS,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    progress.note(1.0)
    stored: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(out)
    return stored


def token_streams(tokenizer: PreTrainedTokenizerFast, characters: int | None = None) -> Texts:
    """Encode every domain; characters cuts each domain's parts to about that much text."""
    train: dict[str, Tensor] = {}
    validation: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    for domain in corpus.DOMAINS:
        parts = corpus.split(domain)
        kept, held_out = _cut(parts.train, characters), _cut(parts.validation, characters)
        train[domain] = _encoded(tokenizer, kept)
        validation[domain] = _encoded(tokenizer, held_out)
        sizes[domain] = sum(len(text.encode("utf-8")) for text in held_out)
    return Texts(train, validation, sizes)


def model_config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """Return the Qwen3 configuration of a recipe."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.query_heads,
        num_key_value_heads=recipe.key_heads,
        head_dim=recipe.head_size,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def train(
    model: Qwen3ForCausalLM, streams: Mapping[str, Tensor], recipe: Recipe, run: Run, log: IO[str]
) -> Outcome:
    """Train a model in place and write one record per STEPS_BETWEEN_RECORDS steps to log.

    streams: training tokens by domain. Ends after run.steps steps or run.minutes minutes. The
    learning rate reaches zero at whichever comes first. Raises FloatingPointError when the loss
    is no longer a number.
    """
    optimizer = _optimizer(model, recipe)
    draw = torch.Generator().manual_seed(run.seed)
    progress, start, tokens, step = Progress("training"), time.monotonic(), 0, 0
    model.train()
    while (share := _share_done(step, time.monotonic() - start, run)) < 1.0:
        rate = _rate(share, recipe)
        batch = _batch(streams, recipe, step, draw)
        loss = _step(model, optimizer, batch, rate, recipe.clip, run.bf16)
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss {loss} at step {step}: lower Recipe.peak_rate")
        tokens += batch.numel() - len(batch)
        seconds = time.monotonic() - start
        if step % STEPS_BETWEEN_RECORDS == 0:
            record = {"kind": "step", "step": step, "loss": round(loss, 4), "lr": rate}
            log.write(json.dumps(record | {"seconds": round(seconds, 1)}) + "\n")
            log.flush()
        progress.note(share, f"step {step} loss {loss:.3f} lr {rate:.1e}")
        step += 1
    return Outcome(step, tokens, time.monotonic() - start)


def new_model(config: Qwen3Config) -> Qwen3ForCausalLM:
    """Return a model with random float32 weights, drawn from torch's seed."""
    build: Callable[..., Qwen3ForCausalLM] = Qwen3ForCausalLM
    return build(config)


def store(model: Qwen3ForCausalLM, out: Path) -> None:
    """Round a model's weights to bfloat16 in place and write it to the folder out."""
    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16)
    end = model.config.eos_token_id
    model.generation_config = GenerationConfig.from_dict({"eos_token_id": end, "pad_token_id": end})
    model.save_pretrained(out)


def stored_model(folder: Path) -> Qwen3ForCausalLM:
    """Load a stored model for evaluation: its bfloat16 weights, computing in float32."""
    model: Qwen3ForCausalLM = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train(mode=False)
    return model


def validate(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Texts
) -> list[DomainResult]:
    """Measure a model on the held-out text of every domain and take a sample of each."""
    results: list[DomainResult] = []
    for domain, stream in texts.validation.items():
        nats = mean_loss(model, stream)
        size = texts.validation_bytes[domain]
        results.append(
            DomainResult(
                domain=domain,
                nats=nats,
                bits=nats * len(stream) / (math.log(2) * size),
                unigram=unigram_loss(texts.train[domain], stream, len(tokenizer)),
                slice_nats=mean_loss(model, stream, SLICE_WINDOWS),
                tokens=len(stream),
                size=size,
                train_tokens=len(texts.train[domain]),
                sample=_sample(model, tokenizer, domain),
            )
        )
    return results


def mean_loss(model: Qwen3ForCausalLM, stream: Tensor, windows: int | None = None) -> float:
    """Return the mean loss in nats per token over a token stream.

    stream: 1-D int64 tensor, cut into windows of EVALUATION_WINDOW tokens; windows limits how
    many are used, evenly spaced, None for all. Raises ValueError when the stream is shorter
    than one window.
    """
    whole = (len(stream) - 1) // EVALUATION_WINDOW
    if whole < 1:
        raise ValueError(f"{len(stream)} tokens are too few: need {EVALUATION_WINDOW + 1}")
    count = min(whole, windows or whole)
    starts = [place * whole // count * EVALUATION_WINDOW for place in range(count)]
    progress, total = Progress("validation"), 0.0
    with torch.inference_mode():
        for first in range(0, count, WINDOWS_AT_ONCE):
            chosen = starts[first : first + WINDOWS_AT_ONCE]
            rows = [stream[start : start + EVALUATION_WINDOW + 1] for start in chosen]
            total += _loss(model, torch.stack(rows)).item() * len(rows)
            progress.note((first + len(rows)) / count)
    return total / count


def unigram_loss(train: Tensor, stream: Tensor, vocabulary: int) -> float:
    """Return the nats per token of stream under the token frequencies of train (add-one)."""
    counts = torch.bincount(train, minlength=vocabulary).double() + 1.0
    return float(-(counts / counts.sum()).log()[stream].mean())


def greedy(model: Qwen3ForCausalLM, prompt: Sequence[int], count: int) -> list[int]:
    """Return the count most likely next tokens after prompt, fewer where the text ends."""
    tokens = list(prompt)
    with torch.inference_mode():
        while len(tokens) < len(prompt) + count:
            logits: Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
            tokens.append(int(logits[0, -1].argmax()))
            if tokens[-1] == model.config.eos_token_id:
                break
    return tokens[len(prompt) :]


def _parsed(arguments: Sequence[str] | None) -> Run:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sidecar.demo.train", description="Train the demo model."
    )
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="folder to write to")
    parser.add_argument("--minutes", type=float, default=25.0, help="most minutes of training")
    parser.add_argument("--steps", type=int, default=12_000, help="most training steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--quick", action="store_true", help=f"a tiny model, {QUICK_STEPS} steps")
    parser.add_argument(
        "--bf16", action="store_true", help="multiply in bfloat16 (faster with AVX512-BF16, AMX)"
    )
    given = parser.parse_args(arguments)
    if given.minutes <= 0 or given.steps < 1 or given.threads < 1:
        parser.error("--minutes, --steps and --threads must be positive")
    steps = min(given.steps, QUICK_STEPS) if given.quick else given.steps
    return Run(given.out, given.minutes, steps, given.seed, given.quick, given.bf16, given.threads)


def _training_texts(recipe: Recipe) -> list[str]:
    """Return the training text of all domains."""
    return [
        text
        for domain in corpus.DOMAINS
        for text in _cut(corpus.split(domain).train, recipe.characters)
    ]


def _cut(documents: Sequence[corpus.Document], characters: int | None) -> list[str]:
    """Return the texts of documents, ending once the given number of characters is reached."""
    texts: list[str] = []
    left = sys.maxsize if characters is None else characters
    for document in documents:
        if left <= 0:
            break
        texts.append(document.text[:left])
        left -= len(document.text)
    return texts


def _encoded(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """Return the tokens of texts as one 1-D tensor, each text ended by END_OF_TEXT."""
    end = tokenizer.eos_token_id
    rows = tokenizer.backend_tokenizer.encode_batch(list(texts))
    return torch.tensor([token for row in rows for token in [*row.ids, end]])


def _optimizer(model: Qwen3ForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW that decays matrices only."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.98), fused=True)


def _share_done(step: int, seconds: float, run: Run) -> float:
    """Return how much of the run is over, by steps or by time."""
    return max(step / run.steps, seconds / (60 * run.minutes))


def _rate(share: float, recipe: Recipe) -> float:
    """Return the learning rate: a linear warm-up, then half a cosine down to zero."""
    if share < recipe.warm_up:
        return recipe.peak_rate * (share + 1e-3) / recipe.warm_up
    fall = (share - recipe.warm_up) / (1 - recipe.warm_up)
    return recipe.peak_rate * 0.5 * (1 + math.cos(math.pi * fall))


def _batch(
    streams: Mapping[str, Tensor], recipe: Recipe, step: int, draw: torch.Generator
) -> Tensor:
    """Draw one batch of windows, (rows, window + 1) int64."""
    long = step % recipe.long_every == recipe.long_every - 1
    window = recipe.long_window if long else recipe.window
    count = max(1, recipe.rows * recipe.window // window)
    domains = list(streams)
    chances = torch.tensor(recipe.weights)
    rows: list[Tensor] = []
    for choice in torch.multinomial(chances, count, replacement=True, generator=draw).tolist():
        stream = streams[domains[choice]]
        start = int(torch.randint(len(stream) - window, (1,), generator=draw))
        rows.append(stream[start : start + window + 1])
    return torch.stack(rows)


def _loss(model: Qwen3ForCausalLM, batch: Tensor) -> Tensor:
    """Return the mean loss of predicting each token of a batch from those before it."""
    logits: Tensor = model(input_ids=batch[:, :-1], use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


def _step(
    model: Qwen3ForCausalLM,
    optimizer: torch.optim.AdamW,
    batch: Tensor,
    rate: float,
    clip: float,
    bf16: bool,
) -> float:
    """Take one optimizer step and return the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = _loss(model, batch)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.item()


def _sample(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, domain: str
) -> tuple[str, str]:
    """Return a held-out prompt and the model's greedy continuation of it."""
    prompt = corpus.excerpts(domain, count=1, length=SAMPLE_CHARACTERS, seed=0)[0]
    made = greedy(model, tokenizer.encode(prompt), SAMPLE_TOKENS)
    return prompt, str(tokenizer.decode(made, skip_special_tokens=True))


def _report(
    run: Run,
    recipe: Recipe,
    outcome: Outcome,
    model: Qwen3ForCausalLM,
    results: Sequence[DomainResult],
) -> Report:
    """Collect what the card states."""
    options = " --quick" * run.quick + " --bf16" * run.bf16
    limits = f"--minutes {run.minutes:g} --steps {run.steps} --seed {run.seed}"
    return Report(
        command=f"python -m sidecar.demo.train {limits} --threads {run.threads}{options}",
        seed=run.seed,
        seconds=outcome.seconds,
        ended_by="steps" if outcome.steps >= run.steps else "time",
        steps=outcome.steps,
        tokens_seen=outcome.tokens,
        parameters=sum(weight.numel() for weight in model.parameters()),
        file_bytes=(run.out / "model.safetensors").stat().st_size,
        slice_windows=SLICE_WINDOWS,
        window=EVALUATION_WINDOW,
        shape=_shape(recipe, model.config.vocab_size),
        recipe=_settings(recipe),
        versions=_versions(),
        results=results,
    )


def _shape(recipe: Recipe, vocabulary: int) -> dict[str, int]:
    """Return the network's dimensions under the names used in the card."""
    return {
        "Vocabulary": vocabulary,
        "Hidden size": recipe.hidden,
        "Feed-forward size": recipe.inner,
        "Layers": recipe.layers,
        "Query heads": recipe.query_heads,
        "Key-value heads": recipe.key_heads,
        "Head size": recipe.head_size,
        "Positions": POSITIONS,
        "Longest training sequence": recipe.long_window,
    }


def _settings(recipe: Recipe) -> dict[str, str]:
    """Return the training settings under the names used in the card."""
    shares = zip(corpus.DOMAINS, recipe.weights, strict=True)
    return {
        "Optimizer": f"AdamW, weight decay {recipe.weight_decay}, gradient clip {recipe.clip}",
        "Learning rate": f"warm-up {recipe.warm_up:.0%} to {recipe.peak_rate}, cosine to 0",
        "Tokens per step": str(recipe.rows * recipe.window),
        "Share of batches": ", ".join(f"{domain} {share:.0%}" for domain, share in shares),
    }


def _versions() -> dict[str, str]:
    """Return the versions that a repeat of the run depends on."""
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "safetensors": safetensors.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
