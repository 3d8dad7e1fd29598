"""The bundled model as it is served, in this process: requests go in, signatures come out.

transformers computes, the tap of `sidecar.tap.attach` measures, and its frames are read back from
a socket of our own: what is judged is what would have reached a sidecar. `Served.ask` waits for
every signature, so nothing is lost to a pump that fell behind; a request without one raises.
"""

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Final, Self

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from sidecar.config import TapConfig
from sidecar.demo.train import MODEL_FOLDER
from sidecar.tap import attach
from sidecar.wire.channel import Receiver
from sidecar.wire.frame import Signature, Signatures, unpack
from sidecar.wire.signature import Layout

PATIENCE_SECONDS: Final = 120.0
MOST_AT_ONCE: Final = 64


def bundled() -> Any:
    """The bundled model as it is stored, bfloat16, to be served or tampered with."""
    model = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.bfloat16)
    return model.train(mode=False)


def tokenizer() -> Any:
    """The tokenizer of the bundled model; it pads on the left, as the tap expects."""
    found = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    found.padding_side = "left"
    return found


class Served:
    """A model with the tap attached; a context manager that leaves the model as it was."""

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model
        self._folder = tempfile.TemporaryDirectory(prefix="served-")
        config = TapConfig(
            socket=Path(self._folder.name) / "run" / "s.sock",
            flush_seconds=0.05,
            budget_share=0.0,
            attention_every=1,
            attention_requests=MOST_AT_ONCE,
            requests=False,
        )
        self._receiver = Receiver(config.socket)
        # Read while the model generates: the channel holds a few seconds of frames, then drops.
        self._told: SimpleQueue[Signatures] = SimpleQueue()
        self._is_over = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._tap = attach(model, config=config, max_rows=1 << 15, max_requests=MOST_AT_ONCE)
        self._num_asked = 0
        self.layout = Layout([])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tap.detach()
        self._is_over.set()
        self._reader.join()
        self._receiver.close()
        self._folder.cleanup()

    def ask(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[Signature]:
        """Serve `prompts` (at most `MOST_AT_ONCE` token lists) as one batch; greedy decoding.

        num_tokens: tokens to generate for each; 1 is prefill only. Returns the final signature of
        each, in order. Raises TimeoutError when one does not arrive.
        """
        ids = [f"generation-{self._num_asked + i}" for i in range(len(prompts))]
        self._num_asked += len(prompts)
        with torch.inference_mode():
            self._model.generate(
                **_padded(prompts), max_new_tokens=num_tokens, do_sample=False, pad_token_id=0
            )
        return self._collect(ids)

    def _collect(self, ids: list[str]) -> list[Signature]:
        found: dict[str, Signature] = {}
        until = time.monotonic() + PATIENCE_SECONDS
        while not found.keys() >= set(ids):
            try:
                body = self._told.get(timeout=max(0.0, until - time.monotonic()))
            except Empty as error:
                missing = f"{len(ids) - len(found)} of {len(ids)} signatures are missing"
                raise TimeoutError(missing) from error
            self.layout = body.layout
            found |= {each.id: each for each in body.signatures if each.is_final}
        return [found[each] for each in ids]

    def _read(self) -> None:
        while not self._is_over.is_set():
            data = self._receiver.receive(0.2)
            if data is not None and isinstance(body := unpack(data).body, Signatures):
                self._told.put(body)


def batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Places of `prompts` in batches of at most `size`, each of similar lengths."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _padded(prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}
