"""Stand-ins with simple, exact behaviour: a source, a clock and an inbox."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from sidecar.fold.reducer import Limits, Reducer
from sidecar.wire.frame import (
    NUM_EXTREMES,
    NUM_POPULATIONS,
    NUM_POWERS,
    NUM_SIGNALS,
    Aborted,
    Arrays,
    Body,
    Coverage,
    File,
    Finished,
    Frame,
    Header,
    Identity,
    Layers,
    Manifest,
    Request,
    Requests,
    Serving,
    Signature,
    Signatures,
    Source,
    Status,
    Table,
    Totals,
    pack,
    unpack,
)
from sidecar.wire.scan import CONFIDENCE, Scan
from sidecar.wire.signals import GROUPS
from sidecar.wire.signature import Layout, size

SECOND = 10**9
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOW = 1_790_000_000 * SECOND  # the start of a window of 10 s
STALE_SECONDS = 30
LIMITS = Limits(stale_ns=STALE_SECONDS * SECOND, max_age_ns=10 * SECOND)
ENGINE = Source("engine")
FRONTEND = Source("frontend")


class FakeSource:
    """A source that numbers its frames as `wire.channel.Sender` does, and loses what it is told."""

    def __init__(self, source: Source = ENGINE, boot: str = "boot-one") -> None:
        self.source = source
        self.boot = boot
        self.num_sent = 0
        self.num_dropped = 0

    def frame(self, body: Body, t_ns: int = NOW) -> Frame:
        """The next frame, as it comes out of the wire."""
        self.num_sent += 1
        header = Header(self.boot, self.source, self.num_sent, t_ns, 0, self.num_dropped)
        return unpack(pack(Frame(header, body)))

    def drop(self) -> None:
        """The next frame is dropped by the sender, and counted by it."""
        self.num_sent += 1
        self.num_dropped += 1

    def lose(self) -> None:
        """The next frame is handed over and never arrives."""
        self.num_sent += 1


class FakeClock:
    """A clock in nanoseconds that moves when told to."""

    def __init__(self, now_ns: int = NOW) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND)


class Ticking:
    """A stopwatch on which every reading is a quarter of a millisecond after the one before."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 0.00025
        return self.seconds


class FakeInbox:
    """Messages in order; an exception in their place is raised."""

    def __init__(self, messages: Sequence[bytes | Exception] = ()) -> None:
        self.messages = deque(messages)
        self.closed = False

    def receive(self, timeout_seconds: float) -> bytes | None:
        if not self.messages:
            return None
        message = self.messages.popleft()
        if isinstance(message, Exception):
            raise message
        return message

    def close(self) -> None:
        self.closed = True


def moments(num_layers: int, scale: float = 1.0, rows: Sequence[int] = (4, 60, 0, 8)) -> Arrays:
    """Exact, different numbers in every cell; all are sums of powers of two."""
    made = Arrays.zeros(num_layers)
    made.count[:] = np.array(rows, np.uint64)[:, None]
    cells = np.arange(made.sums.size, dtype=np.float64).reshape(made.sums.shape)
    made.sums[:] = (scale * (1.0 + cells / 256)) * (made.count > 0)[..., None, None]
    shape = (NUM_POPULATIONS, num_layers, NUM_SIGNALS, NUM_EXTREMES)
    ends = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 64 * np.float32(scale)
    made.extremes[:] = np.where(made.count[..., None, None] > 0, ends, np.nan)
    made.nonfinite[:] = np.arange(num_layers, dtype=np.uint64)
    assert made.sums.shape[-1] == NUM_POWERS
    return made


def layers(
    num_layers: int = 3,
    scale: float = 1.0,
    rows: Sequence[int] = (4, 60, 0, 8),
    first_layer: int = 0,
    num_steps: int = 7,
) -> Layers:
    """Totals of an engine."""
    return Layers(
        list(range(first_layer, first_layer + num_layers)),
        num_steps,
        2,
        Coverage(list(rows), 16, 1, 3, shed=5, opted_out=6, rejected=2),
        moments(num_layers, scale, rows).pack(),
    )


def live(model_name: str = "tiny") -> Status:
    """A tap that works."""
    return Status(
        "live",
        errors={"pump": 2},
        model_name=model_name,
        vllm_version="0.32.0",
        runner="v1",
        dtype="bfloat16",
        fingerprint="f00d",
        num_layers=3,
        absent={"router": "no router: this model is dense", "probe": "none is configured"},
        shed_level=1,
        cost_share=0.0078125,
        control="r7",
        identity=Identity(model_name, "a1b2", "c3d4", "vllm", "0.32.0", "AVX512", num_layers=3),
    )


def manifest() -> Manifest:
    """What a model of two files was loaded from."""
    files = [File("config.json", 2, "0a"), File("model.safetensors", 1 << 40, "0b")]
    return Manifest("complete", "", "a1b2", "c3d4", files)


def table(
    group: str,
    *axes: Sequence[str],
    count: int | Sequence[int] = 8,
    scale: float = 1.0,
    last: bool = False,
) -> Table:
    """A table with exact, different numbers in every cell; `count` rows in each."""
    shape = tuple(len(labels) for labels in axes)
    num_signals = len(GROUPS[group].signals)
    counts = np.broadcast_to(np.array(count, "<u8"), (int(np.prod(shape)),))
    sums = np.arange(counts.size * num_signals * NUM_POWERS, dtype="<f8").reshape(
        counts.size, num_signals, NUM_POWERS
    )
    sums = scale * (1.0 + sums / 256) * (counts > 0)[:, None, None]
    ends = np.arange(counts.size * num_signals * NUM_EXTREMES, dtype="<f4") / 64 * scale
    return Table(
        group,
        [list(labels) for labels in axes],
        counts.tobytes(),
        sums.astype("<f8").tobytes(),
        ends.astype("<f4").tobytes(),
        ends[::2].astype("<f4").tobytes() if last else b"",
    )


PHASES = ("prefill", "decode")


def totals(scale: float = 1.0, count: int = 8, *, heads: Sequence[str] = ("0", "1")) -> Totals:
    """One table of each group."""
    return Totals(
        [
            table("attention", ["0", "2"], PHASES, heads, scale=scale, count=count),
            table("confidence", ["", "support"], scale=scale, count=[count, 0]),
            table("router", ["0", "1", "2"], PHASES, scale=scale, count=count),
            table("expert_load", ["0", "1"], ["0", "1", "2"], count=np.arange(6) * count),
            table("probe", ["refusal"], scale=-scale, count=count),
            table("probe_exceedance", ["refusal"], ["0.9", "0.99"], count=[count // 4, 0]),
            table("requests", ["", "support", "other"], count=[5, 1, 0]),
        ]
    )


def signatures(*ids: str, is_final: bool = True, layers: Sequence[int] = (0, 2)) -> Signatures:
    """Signatures of these requests, with a NaN in each."""
    layout = Layout(list(layers), probes=["refusal"])
    values = np.arange(size(layout), dtype="<f4") / 8
    values[1] = np.nan
    signed = [Signature(each, NOW, is_final, 64, 9, "support", 1, values.tobytes()) for each in ids]
    return Signatures(layout, signed)


def scan(
    internal_id: str = "cmpl-1-0-0badcafe",
    positions: Sequence[int] = range(12),
    *,
    num_layers: int = 3,
    num_prompt_tokens: int = 8,
    num_rows: int = 12,
    is_final: bool = True,
    nonfinite: int = 0,
) -> Scan:
    """Rows at these positions; each value is position + layer / 8 + signal / 64, exactly."""
    at = np.array(positions, "<u4")
    layer, signal = np.arange(num_layers), np.arange(NUM_SIGNALS)
    values = at[:, None, None] + layer[:, None] / 8 + signal / 64
    tokens = at[at >= num_prompt_tokens - 1]
    confidence = tokens[:, None] + np.arange(len(CONFIDENCE)) / 64
    return Scan(
        internal_id,
        list(range(num_layers)),
        num_prompt_tokens,
        num_rows,
        is_final,
        at.tobytes(),
        values.astype("<f4").tobytes(),
        np.full((len(at), num_layers), nonfinite, "<u4").tobytes() if nonfinite else b"",
        tokens.tobytes(),
        confidence.astype("<f4").tobytes(),
    )


def finished(
    client_id: str = "cmpl-1-0",
    reason: str = "stop",
    end_ns: int = NOW,
    traceparent: str = "",
) -> Finished:
    """The front end's half of a request of 64 prompt and 9 generated tokens."""
    return Finished(
        client_id,
        reason,
        end_ns,
        *(2.0, 0.25, 0.5, 1.0, 0.125, 64, 9, 16),
        start_ns=end_ns - 2 * SECOND,
        time_to_first_token=0.5,
        traceparent=traceparent,
        max_tokens=9,
        temperature=0.5,
        top_p=0.875,
    )


def aborted(internal_id: str, end_ns: int = NOW, traceparent: str = "") -> Aborted:
    """What the front end says of a request whose client hung up after a second."""
    return Aborted(internal_id, end_ns, end_ns - SECOND, traceparent, 9, 0.5, 0.875)


def serving(
    *done: Finished, engine: int = 0, model_name: str = "tiny", gone: Sequence[Aborted] = ()
) -> Serving:
    """Ordinary stats with these newly finished and aborted requests."""
    first = [0.5] * len(done)
    return Serving(model_name, engine, 640, 90, 160, 1, 3, 2, 0.25, first, list(done), list(gone))


def request(
    internal_id: str = "cmpl-1-0-0badcafe", num_layers: int = 3, end_ns: int = NOW
) -> Request:
    """The engine's half of a request."""
    covered = Coverage([4, 60, 0, 8], prefix_cached=16)
    return Request(
        internal_id,
        end_ns - SECOND,
        end_ns,
        64,
        covered,
        moments(num_layers, 0.5).pack(),
        adapter="support",
        preemptions=1,
        tables=[
            table("attention_mean", ["0", "2"], PHASES, count=[4, 9, 0, 9], last=True),
            table("confidence", ["support"], count=9, last=True),
            table("probe", ["refusal"], count=1, scale=-1.0, last=True),
        ],
    )


def reduced(*frames: Frame, now_ns: int = NOW) -> Reducer:
    """A reducer that read `frames` at once."""
    reducer = Reducer(LIMITS)
    for frame in frames:
        reducer.update(frame, now_ns)
    return reducer


def everything() -> Reducer:
    """Two stages of an engine, two front ends, losses and refusals; as of NOW + 10 s."""
    then, now = NOW, NOW + 10 * SECOND
    reducer = Reducer(LIMITS)
    stages = [FakeSource(Source("engine", 0, stage), f"boot-000{stage}") for stage in range(2)]
    for times, t_ns in ((1, then), (3, now)):
        for first_layer, stage in enumerate(stages):
            stage.drop()
            grown = [totals(k, 8 * k) for k in (times, times + 1)]
            for body in (live(), layers(2, first_layer=2 * first_layer), *grown):
                reducer.update(stage.frame(body, t_ns), t_ns + SECOND // 8)
            stage.lose()
    frontend, refused = FakeSource(FRONTEND), FakeSource(Source("frontend", 1), "boot-9999")
    measured = Requests([2, 3], [request(f"{name}-0badcafe", 2) for name in "ab"])
    reducer.update(stages[1].frame(measured, now), now)
    done = finished("a", traceparent=TRACEPARENT), finished("b", "length")
    told = serving(*done, gone=[aborted("c-0badcafe")])
    reducer.update(frontend.frame(told, now), now)
    verdict = Status("refused", "release", "vLLM 9.9 is not known; use 0.33", model_name="tiny")
    reducer.update(refused.frame(verdict, now), now)
    for _ in range(3):
        reducer.refuse("schema", now)
    return reducer
