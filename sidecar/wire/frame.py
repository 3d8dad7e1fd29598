"""Frames: what leaves the engine, how it is packed, and how a stranger's bytes are refused.

Guarantees:
- `unpack` accepts exactly the bytes that `pack` makes for this `SCHEMA`, and raises `FrameError`
  with a cause out of `CAUSES` for everything else. No message runs code or allocates more than a
  small multiple of its own length, which is at most `MAX_BYTES`.
- Totals are cumulative since the boot of the source, so a lost frame costs resolution, not data.
- No prompt, completion, token id or raw activation has a field to travel in.

Layout of a message: magic `LIS`, one byte of schema version, 32 bytes of HMAC-SHA256 over what
follows (zeros when no key is configured), then one msgpack array (`Frame`). Number arrays are
little-endian bytes whose shapes follow from the frame: P = len(POPULATIONS), L = number of
layers, S = len(LAYER_SIGNALS).
"""

import hmac
import math
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from sidecar.errors import FrameError
from sidecar.wire.fields import Count, LayerIds, LongText, Rank, Text
from sidecar.wire.scan import Scan, wrong_shape
from sidecar.wire.signals import GROUPS, LAYER_SIGNALS, POPULATIONS
from sidecar.wire.signature import Layout, size
from sidecar.wire.traceparent import TraceParent

SCHEMA: Final = 4
MAX_BYTES: Final = 1 << 20
CAUSES: Final = ("oversized", "magic", "schema", "mac", "decode", "shape", "value")

NUM_POPULATIONS: Final = len(POPULATIONS)
NUM_SIGNALS: Final = len(LAYER_SIGNALS)
NUM_POWERS: Final = 3  # sum of v, of log v, of (log v)^2
NUM_EXTREMES: Final = 2  # smallest, largest
MAX_CELLS: Final = 1 << 16  # of one table
MAX_TABLES: Final = 32  # of one body or request
MAX_FILES: Final = 1024  # of one manifest

TapState = Literal["starting", "live", "dead", "refused", "disarmed"]


class Source(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Who speaks: an engine worker (by its ranks) or a front end (dp = its index)."""

    role: Literal["engine", "frontend"]
    dp: Rank = 0
    pp: Rank = 0
    tp: Rank = 0

    @property
    def name(self) -> str:
        """Value of the `source` label, such as `engine-dp0-pp0-tp0` or `frontend-0`."""
        if self.role == "frontend":
            return f"frontend-{self.dp}"
        return f"engine-dp{self.dp}-pp{self.pp}-tp{self.tp}"


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a frame stands in the stream of its source.

    boot: random id of this life of the source; a new one is a counter reset.
    seq: number of this frame, from 1, counting frames that were dropped too.
    t_ns: Unix time at packing, nanoseconds.
    step: forward passes measured so far.
    dropped_total: frames before this one that the sender could not hand over.
    """

    boot: Annotated[str, msgspec.Meta(min_length=8, max_length=32)]
    source: Source
    seq: Count
    t_ns: Count
    step: Count
    dropped_total: Count


class Coverage(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Token rows by what became of them; their sum is every row of the requests covered.

    observed: rows measured, by population (`POPULATIONS` order).
    prefix_cached: rows never computed, their KV came from the prefix cache.
    lost: rows computed but dropped by the tap under load.
    recomputed: rows computed again after a preemption, measured once only.
    shed: rows left out to keep the tap within its budget, or by the operator's control.
    opted_out: rows of requests that asked not to be measured, where that is allowed.
    rejected: rows of draft tokens that speculative decoding rejected; never part of a request.
    """

    observed: Annotated[
        list[Count], msgspec.Meta(min_length=NUM_POPULATIONS, max_length=NUM_POPULATIONS)
    ]
    prefix_cached: Count = 0
    lost: Count = 0
    recomputed: Count = 0
    shed: Count = 0
    opted_out: Count = 0
    rejected: Count = 0


class Moments(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Additive statistics of the layer signals over token rows, as little-endian bytes.

    count: uint64 [P, L], rows whose signals were all finite.
    nonfinite: uint64 [L], NaN and Inf elements in the residual stream.
    sums: float64 [P, L, S, 3], sums of v, log v and (log v)^2 over those rows.
    extremes: float32 [P, L, S, 2], smallest and largest v; NaN where there was no row.
    """

    count: bytes
    nonfinite: bytes
    sums: bytes
    extremes: bytes


class Layers(msgspec.Struct, tag="layers", array_like=True, forbid_unknown_fields=True):
    """Running totals of one source since its boot, over all requests.

    `moments.extremes` alone covers only the time since the source's previous `Layers` frame.
    """

    layers: LayerIds
    num_steps: Count
    num_requests: Count
    coverage: Coverage
    moments: Moments


class Table(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Additive statistics of one group of signals, over its cells, as little-endian bytes.

    group: key of `GROUPS`, which gives the S signals and the axes.
    axes: labels along each axis; the C cells are their product, the last axis fastest.
    count: uint64 [C], rows whose signals were all finite.
    sums: float64 [C, S, 3], sums of v, phi(v) and phi(v)^2, phi being the signal's transform.
    extremes: float32 [C, S, 2], smallest and largest v; NaN where there was no row.
    last: float32 [C, S], the latest v, NaN where there was none; empty in running totals.
    """

    group: Text
    axes: Annotated[
        list[Annotated[list[Text], msgspec.Meta(max_length=MAX_CELLS)]],
        msgspec.Meta(max_length=4),
    ]
    count: bytes
    sums: bytes = b""
    extremes: bytes = b""
    last: bytes = b""


Tables = Annotated[list[Table], msgspec.Meta(max_length=MAX_TABLES)]


class Totals(msgspec.Struct, tag="totals", array_like=True, forbid_unknown_fields=True):
    """Running totals of groups of signals since the boot of the source.

    `extremes` alone cover only the time since the source's previous frame with that group.
    """

    tables: Tables


class Request(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """One finished request, measured over its whole life.

    id: the engine's internal request id, `<client id>-<8 hex>`.
    adapter: LoRA adapter, out of the operator's list; "" for the base model.
    preemptions: times it was preempted and resumed.
    tables: what else was measured of it: attention_mean, confidence, router, probe.
    """

    id: Text
    start_ns: Count
    end_ns: Count
    num_prompt_tokens: Count
    coverage: Coverage
    moments: Moments
    adapter: Text = ""
    preemptions: Count = 0
    tables: Tables = msgspec.field(default_factory=list)


class Requests(msgspec.Struct, tag="requests", array_like=True, forbid_unknown_fields=True):
    """Requests that finished since the last such frame."""

    layers: LayerIds
    requests: Annotated[list[Request], msgspec.Meta(max_length=4096)]


class Signature(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The internals of one request as one short vector (see `wire.signature.entries`).

    is_final: the request is over; else it is a long one, told of while it runs.
    num_prompt_tokens, num_generated_tokens: rows it has so far, whether measured or not.
    values: float32 [len(layout)], NaN where nothing was measured.
    route: which kind of traffic it is, out of the operator's list; "" when nobody said.
    canary: `<prompt>@<round>` of a known-safe task that proved the operator's secret; else "".
    num_unobserved: rows that its values leave out: cached, lost or shed.
    """

    id: Text
    t_ns: Count
    is_final: bool
    num_prompt_tokens: Count
    num_generated_tokens: Count
    adapter: Text
    preemptions: Count
    values: bytes
    route: Text = ""
    canary: Text = ""
    num_unobserved: Count = 0


class Signatures(msgspec.Struct, tag="signatures", array_like=True, forbid_unknown_fields=True):
    """Signatures of requests that finished, or went on for another second."""

    layout: Layout
    signatures: Annotated[list[Signature], msgspec.Meta(max_length=4096)]


class Finished(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Ordinary stats of one finished request, from the front end. Times in seconds.

    id: the client-facing request id; `Request.id` is this plus `-<8 hex>`.
    start_ns: when the request arrived, Unix time; 0 when not known.
    time_to_first_token: from its arrival; NaN when not known.
    traceparent: the caller's place in a trace; "" unless it sent a valid one.
    max_tokens, temperature, top_p: as asked for; 0 and NaN when not known.
    """

    id: Text
    reason: Text
    end_ns: Count
    e2e: float
    queue: float
    prefill: float
    decode: float
    time_per_output_token: float
    prompt_tokens: Count
    generated_tokens: Count
    cached_tokens: Count
    start_ns: Count = 0
    time_to_first_token: float = math.nan
    traceparent: TraceParent = ""
    max_tokens: Count = 0
    temperature: float = math.nan
    top_p: float = math.nan


class Aborted(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """One request whose client hung up; vLLM reports no stats of it. Fields as of `Finished`.

    id: the engine's internal id, as `Request.id`.
    """

    id: Text
    end_ns: Count
    start_ns: Count = 0
    traceparent: TraceParent = ""
    max_tokens: Count = 0
    temperature: float = math.nan
    top_p: float = math.nan


class Serving(msgspec.Struct, tag="serving", array_like=True, forbid_unknown_fields=True):
    """Ordinary latency and token stats of one engine: totals since boot, and new observations."""

    model_name: Text
    engine: Rank
    prompt_tokens: Count
    generated_tokens: Count
    cached_tokens: Count
    preempted: Count
    running: Count
    waiting: Count
    kv_cache_usage: float
    time_to_first_token: Annotated[list[float], msgspec.Meta(max_length=65536)]
    finished: Annotated[list[Finished], msgspec.Meta(max_length=4096)]
    aborted: Annotated[list[Aborted], msgspec.Meta(max_length=4096)] = msgspec.field(
        default_factory=list
    )


class Identity(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an engine executes, as far as it can be named; "" or 0 where it is not known.

    weights_digest, tokenizer_digest: of the files the model was loaded from, see `Manifest`.
    kernels: what computes: the GPU's name, or the CPU's instruction set.
    """

    model_name: Text = ""
    weights_digest: Text = ""
    tokenizer_digest: Text = ""
    engine: Text = ""
    engine_version: Text = ""
    kernels: Text = ""
    attention_backend: Text = ""
    dtype: Text = ""
    kv_cache_dtype: Text = ""
    quantization: Text = ""
    tensor_parallel: Rank = 0
    pipeline_parallel: Rank = 0
    num_layers: Rank = 0
    hidden_size: Count = 0


class File(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One file the model was loaded from: its name in the model's folder, bytes, SHA-256 in hex."""

    name: Text
    num_bytes: Count
    sha256: Text


class Manifest(msgspec.Struct, tag="manifest", array_like=True, forbid_unknown_fields=True):
    """What the model was loaded from; told once it is hashed, and again every minute.

    state: hashing while it is under way; absent when the files cannot be read, with the reason.
    """

    state: Literal["hashing", "complete", "absent"]
    reason: LongText = ""
    weights_digest: Text = ""
    tokenizer_digest: Text = ""
    files: Annotated[list[File], msgspec.Meta(max_length=MAX_FILES)] = msgspec.field(
        default_factory=list
    )


class Status(msgspec.Struct, tag="status", array_like=True, forbid_unknown_fields=True):
    """What a tap says of itself; sent with every flush, so that silence is visible too.

    reason: a short word for a label; detail: the full sentence with the remedy.
    errors: exceptions of ours swallowed so far, by site.
    absent: groups of signals that this engine cannot give, each with its reason.
    shed_level: how much is left out to stay within the budget; 0 means nothing.
    cost_share: the tap's own time over the engine's, of the last closed minute.
    control: revision of the operator's control that is in force; "" when there is none.
    identity: what the engine executes.
    """

    state: TapState
    reason: Annotated[str, msgspec.Meta(max_length=64)] = ""
    detail: LongText = ""
    errors: Annotated[dict[Text, Count], msgspec.Meta(max_length=64)] = msgspec.field(
        default_factory=dict
    )
    model_name: Text = ""
    vllm_version: Text = ""
    tap_version: Text = ""
    runner: Text = ""
    dtype: Text = ""
    fingerprint: Text = ""
    num_layers: Count = 0
    dead_layers: LayerIds = msgspec.field(default_factory=list)
    absent: Annotated[dict[Text, LongText], msgspec.Meta(max_length=32)] = msgspec.field(
        default_factory=dict
    )
    shed_level: Rank = 0
    cost_share: float = 0.0
    control: Annotated[str, msgspec.Meta(max_length=64)] = ""
    identity: Identity = Identity()


Body = Layers | Totals | Requests | Signatures | Serving | Status | Manifest | Scan


class Frame(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """One message: a header and one body."""

    header: Header
    body: Body


@dataclass(frozen=True, slots=True)
class Arrays:
    """`Moments` as numpy views, read-only when they came off the wire."""

    count: NDArray[np.uint64]
    nonfinite: NDArray[np.uint64]
    sums: NDArray[np.float64]
    extremes: NDArray[np.float32]

    @classmethod
    def zeros(cls, num_layers: int) -> "Arrays":
        """Statistics of no rows, over `num_layers` layers."""
        shape = (NUM_POPULATIONS, num_layers)
        return cls(
            np.zeros(shape, np.uint64),
            np.zeros(num_layers, np.uint64),
            np.zeros((*shape, NUM_SIGNALS, NUM_POWERS), np.float64),
            np.full((*shape, NUM_SIGNALS, NUM_EXTREMES), np.nan, np.float32),
        )

    def pack(self) -> Moments:
        """The same numbers as wire bytes."""
        return Moments(
            self.count.astype("<u8", copy=False).tobytes(),
            self.nonfinite.astype("<u8", copy=False).tobytes(),
            self.sums.astype("<f8", copy=False).tobytes(),
            self.extremes.astype("<f4", copy=False).tobytes(),
        )

    @classmethod
    def unpack(cls, moments: Moments, num_layers: int) -> "Arrays":
        """Views of `moments`; `unpack` of a frame has checked the lengths already."""
        shape = (NUM_POPULATIONS, num_layers)
        return cls(
            np.frombuffer(moments.count, "<u8").reshape(shape),
            np.frombuffer(moments.nonfinite, "<u8"),
            np.frombuffer(moments.sums, "<f8").reshape(*shape, NUM_SIGNALS, NUM_POWERS),
            np.frombuffer(moments.extremes, "<f4").reshape(*shape, NUM_SIGNALS, NUM_EXTREMES),
        )


@dataclass(frozen=True, slots=True)
class Cells:
    """`Table` as numpy views, shaped by its axes: [..., C of each axis] and then as there."""

    count: NDArray[np.uint64]
    sums: NDArray[np.float64]
    extremes: NDArray[np.float32]
    last: NDArray[np.float32]

    @classmethod
    def unpack(cls, table: Table) -> "Cells":
        """Views of `table`; `unpack` of a frame has checked the lengths already."""
        shape = tuple(len(labels) for labels in table.axes)
        num = len(GROUPS[table.group].signals)
        last = np.frombuffer(table.last, "<f4")
        return cls(
            np.frombuffer(table.count, "<u8").reshape(shape),
            np.frombuffer(table.sums, "<f8").reshape(*shape, num, NUM_POWERS),
            np.frombuffer(table.extremes, "<f4").reshape(*shape, num, NUM_EXTREMES),
            last.reshape(*shape, num) if len(last) else last,
        )


def pack(frame: Frame, key: bytes | None = None) -> bytes:
    """Bytes of `frame`; signed when `key` is given."""
    payload = _ENCODER.encode(frame)
    return _PREFIX + _mac(payload, key) + payload


def unpack(data: bytes, key: bytes | None = None) -> Frame:
    """The frame in `data`.

    Raises FrameError with the cause when the bytes are not a frame of this schema, are not signed
    by `key` (when given), or hold numbers that cannot be.
    """
    payload = _payload(data, key)
    try:
        frame = _DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError("decode", f"not a frame of schema {SCHEMA}: {error}") from error
    _check(frame.body)
    return frame


_MAC_BYTES: Final = 32
_MAGIC: Final = b"LIS"
_PREFIX: Final = _MAGIC + bytes([SCHEMA])
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Frame)


def _mac(payload: bytes, key: bytes | None) -> bytes:
    return bytes(_MAC_BYTES) if key is None else hmac.digest(key, payload, "sha256")


def _payload(data: bytes, key: bytes | None) -> bytes:
    if len(data) > MAX_BYTES:
        raise FrameError("oversized", f"{len(data)} bytes; at most {MAX_BYTES} are read")
    if data[: len(_MAGIC)] != _MAGIC:
        raise FrameError("magic", "the message does not start with the magic of a frame")
    if data[: len(_PREFIX)] != _PREFIX:
        theirs = data[len(_MAGIC)] if len(data) > len(_MAGIC) else None
        raise FrameError("schema", f"schema {theirs}; install the same release on both sides")
    payload = data[len(_PREFIX) + _MAC_BYTES :]
    mac = data[len(_PREFIX) : len(_PREFIX) + _MAC_BYTES]
    if key is not None and not hmac.compare_digest(mac, _mac(payload, key)):
        raise FrameError("mac", "not signed with this key; give both sides the same key file")
    return payload


def _check(body: Body) -> None:
    match body:
        case Layers():
            _check_moments(body.moments, len(body.layers))
        case Totals():
            _check_tables(body.tables)
        case Requests():
            _check_requests(body)
        case Signatures():
            _check_signatures(body)
        case Serving():
            _check_serving(body)
        case Status():
            _check_finite((body.cost_share,))
        case Scan():
            _check_scan(body)


def _check_requests(body: Requests) -> None:
    for request in body.requests:
        _check_moments(request.moments, len(body.layers))
        _check_tables(request.tables)


def _check_scan(body: Scan) -> None:
    if wrong := wrong_shape(body):
        raise FrameError("shape", wrong)


def _check_signatures(body: Signatures) -> None:
    num_bytes = 4 * size(body.layout)
    if any(len(each.values) != num_bytes for each in body.signatures):
        raise FrameError("shape", f"values of this layout need {num_bytes} bytes")


def _check_serving(body: Serving) -> None:
    _check_finite((body.kv_cache_usage, *body.time_to_first_token))
    for done in body.finished:
        times = (done.e2e, done.queue, done.prefill, done.decode)
        _check_finite((*times, done.time_per_output_token))
        _check_known((done.time_to_first_token, done.temperature, done.top_p))
    for gone in body.aborted:
        _check_known((gone.temperature, gone.top_p))


def _check_moments(moments: Moments, num_layers: int) -> None:
    cells = NUM_POPULATIONS * num_layers
    expected = {
        "count": 8 * cells,
        "nonfinite": 8 * num_layers,
        "sums": 8 * cells * NUM_SIGNALS * NUM_POWERS,
        "extremes": 4 * cells * NUM_SIGNALS * NUM_EXTREMES,
    }
    for field, length in expected.items():
        if len(getattr(moments, field)) != length:
            raise FrameError("shape", f"{field} of {num_layers} layers needs {length} bytes")
    if not np.isfinite(np.frombuffer(moments.sums, "<f8")).all():
        raise FrameError("value", "sums must be finite; non-finite rows are counted apart")


def _check_tables(tables: list[Table]) -> None:
    for table in tables:
        _check_table(table)


def _check_table(table: Table) -> None:
    group = GROUPS.get(table.group)
    if group is None or len(table.axes) != len(group.axes):
        raise FrameError("shape", f"{table.group} is no group of {len(table.axes)} axes")
    num_cells = math.prod(len(labels) for labels in table.axes)
    if num_cells > MAX_CELLS:
        raise FrameError("shape", f"{num_cells} cells; at most {MAX_CELLS} are read")
    num_values = num_cells * len(group.signals)
    expected = {
        "count": (8 * num_cells,),
        "sums": (8 * num_values * NUM_POWERS,),
        "extremes": (4 * num_values * NUM_EXTREMES,),
        "last": (0, 4 * num_values),
    }
    for field, lengths in expected.items():
        if len(getattr(table, field)) not in lengths:
            raise FrameError("shape", f"{field} of {num_cells} cells needs {lengths[-1]} bytes")
    if not np.isfinite(np.frombuffer(table.sums, "<f8")).all():
        raise FrameError("value", "sums must be finite; non-finite rows are not counted")


def _check_finite(values: tuple[float, ...]) -> None:
    if not all(math.isfinite(value) for value in values):
        raise FrameError("value", "times and shares must be finite numbers")


def _check_known(values: tuple[float, ...]) -> None:
    if any(math.isinf(value) for value in values):
        raise FrameError("value", "what is not known is NaN; nothing is infinite")
