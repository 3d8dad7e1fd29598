"""A scan: the layer signals of single token rows of one request, told in parts that add up.

Only a request that the operator asked for is scanned, because its values say more than sums do:
who has the model's weights could find the tokens by trying (docs/scan.md). At most `MAX_ROWS` rows
of a request are told: the end of its prompt and the beginning of its answer. A row is named by its
position alone; its phase follows from it.
"""

from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from sidecar.wire.fields import Count, LayerIds, Text
from sidecar.wire.signals import GROUPS, LAYER_SIGNALS

PROMPT_ROWS: Final = 512  # the last of the prompt
ANSWER_ROWS: Final = 512  # the first after it
MAX_ROWS: Final = PROMPT_ROWS + ANSWER_ROWS
MAX_REQUESTS: Final = 64  # that one wish of the operator's may name
MAX_SHED_LEVEL: Final = 3  # beyond, the tap leaves layers out, and begins no scan of them all
CONFIDENCE: Final = GROUPS["confidence"].signals

_NUM_SIGNALS: Final = len(LAYER_SIGNALS)


class Scan(msgspec.Struct, tag="scan", array_like=True, forbid_unknown_fields=True):
    """Rows of one request that were measured since its last such frame.

    id: the engine's internal request id, as in `frame.Request`.
    num_rows: rows that the request has by now, whether told or not.
    is_final: it is over, and nothing more comes.
    positions: uint32 [R], whose rows these are; values: float32 [R, L, S], NaN or Inf where a
    layer's stream was not finite.
    nonfinite: uint32 [R, L], NaN and Inf elements in the residual stream; empty when all are 0.
    token_positions: uint32 [N], rows that led to a token; confidence: float32 [N, C], of it.
    """

    id: Text
    layers: LayerIds
    num_prompt_tokens: Count
    num_rows: Count
    is_final: bool
    positions: bytes = b""
    values: bytes = b""
    nonfinite: bytes = b""
    token_positions: bytes = b""
    confidence: bytes = b""


class Rows(NamedTuple):
    """The arrays of a `Scan`: as numpy views, read-only when they came off the wire."""

    positions: NDArray[np.uint32]
    values: NDArray[np.float32]
    nonfinite: NDArray[np.uint32]
    token_positions: NDArray[np.uint32]
    confidence: NDArray[np.float32]

    @classmethod
    def unpack(cls, scan: Scan) -> "Rows":
        """Views of `scan`, whose lengths have been checked; nonfinite [R, L] also when empty."""
        positions = np.frombuffer(scan.positions, "<u4")
        tokens = np.frombuffer(scan.token_positions, "<u4")
        shape = (len(positions), len(scan.layers))
        nonfinite = np.zeros(shape, np.uint32)
        if scan.nonfinite:
            nonfinite = np.frombuffer(scan.nonfinite, "<u4").reshape(shape)
        return cls(
            positions,
            np.frombuffer(scan.values, "<f4").reshape(*shape, _NUM_SIGNALS),
            nonfinite,
            tokens,
            np.frombuffer(scan.confidence, "<f4").reshape(len(tokens), len(CONFIDENCE)),
        )


def window(num_prompt_tokens: int) -> range:
    """Positions that a scan may tell of a request with a prompt of so many tokens.

    >>> window(8), window(2000)
    (range(0, 520), range(1488, 2512))
    """
    return range(max(0, num_prompt_tokens - PROMPT_ROWS), num_prompt_tokens + ANSWER_ROWS)


def num_bytes_of_row(num_layers: int) -> int:
    """Most bytes of one row, with what is known of the token it led to."""
    return 4 * (1 + num_layers * (_NUM_SIGNALS + 1) + 1 + len(CONFIDENCE))


def wrong_shape(scan: Scan) -> str:
    """What is wrong with the lengths of the arrays; "" when nothing is."""
    num_rows, num_tokens = len(scan.positions) // 4, len(scan.token_positions) // 4
    if max(num_rows, num_tokens) > MAX_ROWS:
        return f"{max(num_rows, num_tokens)} rows; at most {MAX_ROWS} are read"
    cells = num_rows * len(scan.layers)
    expected = {
        "positions": (4 * num_rows,),
        "values": (4 * cells * _NUM_SIGNALS,),
        "nonfinite": (0, 4 * cells),
        "token_positions": (4 * num_tokens,),
        "confidence": (4 * num_tokens * len(CONFIDENCE),),
    }
    for field, lengths in expected.items():
        if len(getattr(scan, field)) not in lengths:
            return f"{field} of {num_rows} rows needs {lengths[-1]} bytes"
    return ""
