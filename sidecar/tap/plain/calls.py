"""Whose rows they are, without a scheduler: sequences told apart by the model's own arguments."""

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.errors import TapRefused
from sidecar.tap.rows import NO_FLAGS, Batch

_ROWS: Final = 2  # dimensions of a mask over columns
_PAIRS: Final = 4  # and of one over rows and columns


class Calls:
    """Tells the sequences of successive forward passes apart: which request each row belongs to.

    A pass without past begins a new request per sequence; one with past continues those before.
    end_tokens: ids that end a sequence; transformers goes on feeding it while others run.
    width: tokens of each sequence that were fed so far, padding included.
    """

    def __init__(self, end_tokens: tuple[int, ...]) -> None:
        self.ended: list[str] = []
        self.end_tokens = end_tokens
        self.width = 0
        self._num_embedded = 0
        self._num_requests = 0
        self._req_ids: list[str] = []
        self._prompts = np.zeros(0, np.int64)
        self._lengths = np.zeros(0, np.int64)
        self._is_over = np.zeros(0, bool)

    def batch(self, inputs: dict[str, Any]) -> Batch | None:
        """The batch of one forward pass from its arguments; None when it holds no token."""
        tokens = _tokens(inputs)
        if tokens is None:
            return None
        num_sequences, width = tokens.shape[:2]
        real = _real(inputs.get("attention_mask"), num_sequences, width)
        if _num_past(inputs) == 0:
            self._begin(real)
        elif num_sequences != len(self._req_ids):
            raise TapRefused("the batch changed within a generation; pass whole batches")
        else:
            real &= ~self._over(tokens)[:, None]
        self.width += width
        if tokens.dim() > 2:
            self._num_embedded += width
        counts = real.sum(1)
        starts, self._lengths = self._lengths, self._lengths + counts
        # Of padding, or past its end: whatever its logits are, they choose no token.
        partial = ~real[:, -1]
        return Batch(
            list(self._req_ids),
            starts,
            counts,
            self._prompts,
            partial=partial if partial.any() else NO_FLAGS,
            real=real.ravel(),
        )

    def fed(self, inputs: dict[str, Any]) -> torch.Tensor | None:
        """[B] the tokens that the last pass led to, when the next one, of `inputs`, is of them."""
        ids = inputs.get("input_ids")
        if not isinstance(ids, torch.Tensor) or ids.shape != (len(self._req_ids), 1):
            return None
        return ids[:, 0] if _num_past(inputs) else None

    def returned(self, sequences: Any) -> torch.Tensor | None:
        """[B] the tokens that the last pass led to, from what `generate` returned.

        None when it dropped them. A prompt given as embeddings is not part of what it returns.
        """
        place = self.width - self._num_embedded
        if not isinstance(sequences, torch.Tensor) or len(sequences) != len(self._req_ids):
            return None
        return sequences[:, place] if sequences.shape[1] > place else None

    def end(self) -> list[str]:
        """The sequences under way are complete; their ids."""
        ended, self._req_ids = [*self.ended, *self._req_ids], []
        self.ended = []
        return ended

    def _begin(self, real: NDArray[np.bool_]) -> None:
        self.ended.extend(self._req_ids)
        first = self._num_requests
        self._num_requests += len(real)
        self.width = self._num_embedded = 0
        self._req_ids = [f"generation-{first + i}" for i in range(len(real))]
        self._prompts = real.sum(1)
        self._lengths = np.zeros(len(real), np.int64)
        self._is_over = np.zeros(len(real), bool)

    def _over(self, tokens: torch.Tensor) -> NDArray[np.bool_]:
        """Which sequences had ended: fed their end token, a row that served alone has not."""
        if self.end_tokens and tokens.dim() == 2:
            fed = tokens[:, -1].cpu().numpy()
            self._is_over |= np.isin(fed, self.end_tokens)
        return self._is_over


def _tokens(inputs: dict[str, Any]) -> torch.Tensor | None:
    for name in ("input_ids", "inputs_embeds"):
        if isinstance(found := inputs.get(name), torch.Tensor):
            return found
    return None


def _real(mask: Any, num_sequences: int, width: int) -> NDArray[np.bool_]:
    """[B, S] which positions of this pass hold a token and not padding.

    mask: [B, columns so far]; or as `generate` hands it over with a static cache, [B, 1, S, T],
    boolean or added to the logits, or a dictionary of such by the kind of the layer.
    """
    if isinstance(mask, dict):
        mask = next(iter(mask.values()), None)
    if not isinstance(mask, torch.Tensor) or mask.dim() not in (_ROWS, _PAIRS):
        return np.ones((num_sequences, width), bool)
    if mask.dim() == _PAIRS:
        # A token sees itself at least, and padding sees nothing.
        attended = mask if mask.dtype == torch.bool else mask == 0
        sees: NDArray[np.bool_] = attended[:, 0].any(-1).cpu().numpy()
        return np.array(np.broadcast_to(sees, (num_sequences, width)))
    real: NDArray[np.bool_] = mask[:, -width:].cpu().numpy() > 0
    return real


def _num_past(inputs: dict[str, Any]) -> int:
    past = inputs.get("past_key_values")
    return 0 if past is None else int(past.get_seq_length())
