"""Frames: round trips, and how a stranger's bytes are refused."""

import random
import tracemalloc

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import FrameError
from sidecar.wire.frame import (
    CAUSES,
    MAX_BYTES,
    MAX_CELLS,
    MAX_TABLES,
    SCHEMA,
    Arrays,
    Body,
    Cells,
    Frame,
    Header,
    Requests,
    Signature,
    Signatures,
    Status,
    Table,
    Totals,
    pack,
    unpack,
)
from sidecar.wire.signals import GROUPS
from sidecar.wire.signature import Layout, size
from tests import fakes
from tests.fakes import ENGINE, NOW

KEY = b"sixteen bytes or more"
PREFIX = b"LIS" + bytes([SCHEMA])
MAC_BYTES = 32
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HEADER = Header("boot-one", ENGINE, 7, NOW, 3, 1)
LAYOUT = Layout([0, 2], [1], [], [2], 3, 9, ["tone"])


def table(group: str = "router", *lengths: int, last: bool = True) -> Table:
    """Exact, different numbers over axes of these lengths."""
    axes = [[f"{axis}{i}" for i in range(length)] for axis, length in enumerate(lengths or (2, 3))]
    num_cells, num_signals = int(np.prod(lengths or (2, 3))), len(GROUPS[group].signals)
    values = np.arange(num_cells * num_signals, dtype=np.float64) / 8
    return Table(
        group,
        axes,
        np.arange(num_cells, dtype="<u8").tobytes(),
        np.repeat(values, 3).astype("<f8").tobytes(),
        np.repeat(values, 2).astype("<f4").tobytes(),
        values.astype("<f4").tobytes() if last else b"",
    )


def signed(num: int = 1, layout: Layout = LAYOUT) -> Signatures:
    """Signatures whose entries are their own numbers, one of them NaN."""
    values = np.arange(size(layout), dtype="<f4")
    values[1:2] = np.nan
    each = Signature(
        "a-0badcafe",
        NOW,
        is_final=True,
        num_prompt_tokens=8,
        num_generated_tokens=3,
        adapter="legal",
        preemptions=1,
        values=values.tobytes(),
    )
    return Signatures(layout, [each] * num)


def with_tables(*tables: Table) -> Requests:
    request = fakes.request()
    request.tables = list(tables)
    return Requests([0, 1, 2], [request])


BODIES: list[Body] = [
    fakes.live(),
    Status("live", absent={"router": "no experts"}, shed_level=2, cost_share=0.5, control="r1"),
    fakes.layers(),
    Totals([table(last=False), table("expert_load", 2, 4), table("attention", 1, 2, 2)]),
    Requests([0, 1, 2], [fakes.request("a"), fakes.request("b")]),
    with_tables(table("attention_mean"), table("confidence", 3), table("probe", 1)),
    signed(2),
    fakes.serving(
        fakes.finished("a"),
        fakes.finished("b", traceparent=PARENT),
        gone=[fakes.aborted("c", traceparent=PARENT)],
    ),
    fakes.scan(nonfinite=2),
]
each_body = pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)


def cause_of(data: bytes, key: bytes | None = None) -> str:
    with pytest.raises(FrameError) as raised:
        unpack(data, key)
    return raised.value.cause


def message(payload: bytes) -> bytes:
    """An unsigned message around any payload."""
    return PREFIX + bytes(MAC_BYTES) + payload


def framed(body: Body) -> bytes:
    return pack(Frame(HEADER, body))


@each_body
@pytest.mark.parametrize("key", [None, KEY], ids=["unsigned", "signed"])
def test_what_is_packed_is_unpacked(body: Body, key: bytes | None) -> None:
    """Every body comes back as it went, signed or not."""
    frame = Frame(HEADER, body)

    assert frame == unpack(pack(frame, key), key)


def test_numbers_keep_every_bit() -> None:
    """Counts beyond 2^53, tiny sums and NaN extremes survive the wire."""
    arrays = Arrays.zeros(2)
    arrays.count[0, 1] = 2**63 + 1
    arrays.sums[3, 1, 2] = (5e-324, -1.7e308, 0.1)
    arrays.extremes[1, 0, 0] = (np.float32(1e-45), np.float32(3.4e38))
    back = Arrays.unpack(arrays.pack(), 2)

    for name in Arrays.__slots__:
        np.testing.assert_array_equal(getattr(arrays, name), getattr(back, name))


def test_a_table_is_shaped_by_its_axes() -> None:
    """The last axis runs fastest, and each cell has its count, powers, extremes and last."""
    cells = Cells.unpack(table("router", 2, 3))
    assert cells.count.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert cells.sums.shape == (2, 3, 2, 3)
    assert cells.sums[1, 2, 1].tolist() == [11 / 8] * 3
    assert cells.extremes[0, 1, 0].tolist() == [2 / 8] * 2
    assert cells.last[1, 0].tolist() == [6 / 8, 7 / 8]
    assert Cells.unpack(table("router", 2, 3, last=False)).last.shape == (0,)
    assert Cells.unpack(table("expert_load", 1, 4)).count.tolist() == [[0, 1, 2, 3]]


def test_an_unsigned_reader_takes_signed_frames() -> None:
    """A key on the sender alone loses nothing."""
    frame = Frame(HEADER, fakes.live())

    assert frame == unpack(pack(frame, KEY))


def test_an_oversized_message_is_refused() -> None:
    """The limit is exact, and is looked at before anything else."""
    assert cause_of(b"x" * (MAX_BYTES + 1)) == "oversized"
    assert cause_of(b"x" * MAX_BYTES) == "magic"


@pytest.mark.parametrize("data", [b"", b"L", b"LI", b"GET / HTTP/1.1", b"\x80\x04pickle"])
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    """Without our magic nothing is read further."""
    assert cause_of(data) == "magic"


@pytest.mark.parametrize("version", [b"", b"\x00", bytes([SCHEMA + 1]), b"\xff"])
def test_another_schema_is_refused_by_name(version: bytes) -> None:
    """A newer or older release is told from garbage."""
    assert cause_of(b"LIS" + version + bytes(100)) == "schema"


def test_a_wrong_signature_is_refused() -> None:
    """Unsigned, signed with another key, or changed on the way."""
    signed = pack(Frame(HEADER, fakes.live()), KEY)

    assert cause_of(framed(fakes.live()), KEY) == "mac"
    assert cause_of(pack(Frame(HEADER, fakes.live()), b"another key altogether"), KEY) == "mac"
    assert cause_of(signed[:-1] + bytes([signed[-1] ^ 1]), KEY) == "mac"
    assert cause_of(signed[:20], KEY) == "mac"


def test_trailing_and_missing_bytes_are_refused() -> None:
    """A frame ends where it ends."""
    data = framed(fakes.live())

    assert cause_of(data + b"\x00") == "decode"
    assert cause_of(data[:-1]) == "decode"
    assert cause_of(data[: len(PREFIX) + MAC_BYTES]) == "decode"


def _encoded(header: object, body: object) -> bytes:
    return message(msgspec.msgpack.encode([header, body]))


STATUS = ["status", "live", "", "", {}, "", "", "", "", "", "", 0, []]
ENGINE_ROW = ["engine", 0, 0, 0]


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (["short", ENGINE_ROW, 1, 1, 1, 0], STATUS),  # boot id of five characters
        (["boot-one", ["router", 0, 0, 0], 1, 1, 1, 0], STATUS),  # unknown role
        (["boot-one", ENGINE_ROW, -1, 1, 1, 0], STATUS),  # negative number
        (["boot-one", ENGINE_ROW, 1 << 63, 1, 1, 0], STATUS),  # number too large
        (["boot-one", ENGINE_ROW, 1, 1, 1, 0, 0], STATUS),  # a field more
        (["boot-one", ENGINE_ROW, 1, 1, 1], STATUS),  # a field less
        (["boot-one", ENGINE_ROW, 1, 1, 1, 0], [*STATUS, 0]),
        (["boot-one", ENGINE_ROW, 1, 1, 1, 0], ["prompt", "text"]),  # unknown body
        (["boot-one", ENGINE_ROW, 1, 1, 1, 0], ["status", "fine"]),  # unknown state
        (["boot-one", ENGINE_ROW, 1, 1, 1, 0], ["status", "live", "x" * 65]),  # label too long
        (["boot-one", ENGINE_ROW, 1, 1, 1, 0], ["status", "live", "", "x" * 2049]),
    ],
)
def test_what_is_not_typed_as_a_frame_is_refused(header: object, body: object) -> None:
    """Types, ranges, lengths and the number of fields are all checked."""
    good_header = ["boot-one", ENGINE_ROW, 1, 1, 1, 0]
    assert unpack(_encoded(good_header, STATUS)).body == Status("live")

    assert cause_of(_encoded(header, body)) == "decode"


@pytest.mark.parametrize("text", [b"live", b"tiny", b"pump", b"boot-one", b"status"])
def test_text_that_is_not_utf8_is_refused(text: bytes) -> None:
    """In a value, a key, a literal or a tag."""
    data = framed(fakes.live())
    assert text in data

    assert cause_of(data.replace(text, b"\xff" * len(text))) == "decode"


@pytest.mark.parametrize("field", ["count", "nonfinite", "sums", "extremes"])
@pytest.mark.parametrize("change", [b"\x00" * 8, b""])
def test_arrays_must_fit_the_layers(field: str, change: bytes) -> None:
    """Bytes too many or none at all are refused, in totals and in requests."""
    totals, request = fakes.layers(), fakes.request()
    for moments in (totals.moments, request.moments):
        setattr(moments, field, getattr(moments, field) + change if change else b"")

    assert cause_of(framed(totals)) == "shape"
    assert cause_of(framed(Requests([0, 1, 2], [request]))) == "shape"


def in_bodies(bad: Table) -> list[bytes]:
    """Frames with this table among the totals, and in a request."""
    return [framed(Totals([table(), bad])), framed(with_tables(table(), bad))]


@pytest.mark.parametrize("field", ["count", "sums", "extremes", "last"])
@pytest.mark.parametrize("length", [-4, -1, 4, 8, None])
def test_arrays_must_fit_the_cells(field: str, length: int | None) -> None:
    """Bytes too few, too many or none: only `last` may be left out, and as a whole."""
    bad = table()
    whole = getattr(bad, field)
    change = b"" if length is None else (whole + bytes(8))[: len(whole) + length]
    setattr(bad, field, change)
    for data in in_bodies(bad):
        if field == "last" and length is None:
            assert unpack(data)
        else:
            assert cause_of(data) == "shape"


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_a_group_has_as_many_axes_as_the_table_of_signals_says(group: str) -> None:
    """Each group as it is, and with an axis more or less; numbers are read by its own signals."""
    num_axes = len(GROUPS[group].axes)
    good = table(group, *[2] * num_axes)
    for data in in_bodies(good):
        assert unpack(data)
    for num in {num_axes - 1, num_axes + 1} & set(range(1, 5)):
        for data in in_bodies(table(group, *[2] * num)):
            assert cause_of(data) == "shape"
    other = next(name for name, each in GROUPS.items() if len(each.axes) != num_axes)
    good.group = other
    assert cause_of(framed(Totals([good]))) == "shape"


def test_an_unknown_group_is_refused() -> None:
    """A newer release's group has no shape here."""
    bad = table()
    bad.group = "dreams"
    for data in in_bodies(bad):
        assert cause_of(data) == "shape"


def test_a_table_has_so_many_cells_at_most() -> None:
    """More are refused even where every one of them has its bytes."""
    labels = [str(i) for i in range(257)]
    bad = Table("expert_load", [labels, labels], bytes(8 * 257 * 257))
    assert MAX_CELLS < 257 * 257
    for data in in_bodies(bad):
        assert cause_of(data) == "shape"


def test_a_body_has_so_many_tables_at_most() -> None:
    """More are refused where they are counted."""
    few, many = [table()] * MAX_TABLES, [table()] * (MAX_TABLES + 1)
    assert unpack(framed(Totals(few)))
    assert cause_of(framed(Totals(many))) == "decode"
    assert cause_of(framed(with_tables(*many))) == "decode"


@pytest.mark.parametrize("length", [-4, -1, 1, 4, None])
def test_values_must_fit_the_layout(length: int | None) -> None:
    """Each signature has one number for each entry that its layout names."""
    body = signed(2)
    values = body.signatures[0].values
    changed = b"" if length is None else (values + bytes(4))[: len(values) + length]
    bad = msgspec.structs.replace(body.signatures[0], values=changed)
    for place in (0, 1):
        signatures = list(body.signatures)
        signatures[place] = bad
        assert cause_of(framed(Signatures(LAYOUT, signatures))) == "shape"
    assert unpack(framed(Signatures(Layout([]), []))).body == Signatures(Layout([]), [])


def test_a_layout_that_declares_much_allocates_nothing() -> None:
    """Entries are counted, not made: a small frame of the largest layout costs little."""
    ids = list(range(1024))
    layout = Layout(ids, ids, ids, ids, 64, 0, ["x"] * 256)
    data = framed(Signatures(layout, signed().signatures))
    assert cause_of(data) == "shape"
    assert peak_bytes(data) < 1 << 20


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_sums_of_tables_must_be_finite(value: float) -> None:
    """In totals and in requests."""
    bad = table()
    sums = np.frombuffer(bad.sums, "<f8").copy()
    sums[-1] = value
    bad.sums = sums.tobytes()
    for data in in_bodies(bad):
        assert cause_of(data) == "value"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_share_of_a_status_must_be_finite(value: float) -> None:
    """The tap's own cost becomes a gauge."""
    assert cause_of(framed(Status("live", cost_share=value))) == "value"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_sums_must_be_finite(value: float) -> None:
    """One NaN would poison a counter for ever."""
    arrays = fakes.moments(3)
    arrays.sums[1, 2, 0, 0] = value
    totals = fakes.layers()
    totals.moments = arrays.pack()

    assert cause_of(framed(totals)) == "value"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_times_and_shares_must_be_finite(value: float) -> None:
    """So would one in the ordinary stats."""
    usage, first = fakes.serving(), fakes.serving()
    usage.kv_cache_usage = value
    first.time_to_first_token = [value]
    assert cause_of(framed(usage)) == "value"
    assert cause_of(framed(first)) == "value"

    for field in ("e2e", "queue", "prefill", "decode", "time_per_output_token"):
        done = fakes.finished()
        setattr(done, field, value)
        assert cause_of(framed(fakes.serving(done))) == "value"


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_what_is_not_known_of_a_request_is_nan(value: float) -> None:
    """Its first token may never have come; infinite is nothing."""
    for field in ("time_to_first_token", "temperature", "top_p"):
        done = fakes.finished()
        setattr(done, field, float("nan"))
        assert unpack(framed(fakes.serving(done)))
        setattr(done, field, value)
        assert cause_of(framed(fakes.serving(done))) == "value"
    for field in ("temperature", "top_p"):
        gone = fakes.aborted("a")
        setattr(gone, field, value)
        assert cause_of(framed(fakes.serving(gone=[gone]))) == "value"


@pytest.mark.parametrize("parent", [PARENT.upper(), PARENT + "-more", "anything", PARENT + "\n"])
def test_a_frame_carries_no_other_text_than_a_trace_context(parent: str) -> None:
    """A header is not a way out of the engine for what a client writes into it."""
    assert cause_of(framed(fakes.serving(fakes.finished(traceparent=parent)))) == "decode"
    assert (
        cause_of(framed(fakes.serving(gone=[fakes.aborted("a", traceparent=parent)]))) == "decode"
    )


def test_every_cause_is_known() -> None:
    """The tests above have met each cause that becomes a label."""
    met = {"oversized", "magic", "schema", "mac", "decode", "shape", "value"}

    assert set(CAUSES) == met


def accepted_or_refused(data: bytes, key: bytes | None = None) -> None:
    try:
        unpack(data, key)
    except FrameError as error:
        assert error.cause in CAUSES  # noqa: PT017 - both outcomes are allowed


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=400))
def test_random_bytes_raise_nothing_but_frame_errors(data: bytes) -> None:
    """As they are, and as the payload of a well-formed message."""
    accepted_or_refused(data)
    accepted_or_refused(message(data))
    accepted_or_refused(message(data), KEY)


@settings(deadline=None, max_examples=300)
@given(body=st.sampled_from(BODIES), data=st.data())
def test_mutated_frames_raise_nothing_but_frame_errors(body: Body, data: st.DataObject) -> None:
    """Bytes changed, cut out or put in at random places of a valid frame."""
    packed = bytearray(framed(body))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(len(PREFIX), len(packed) - 1))
        length = data.draw(st.integers(0, 6))
        packed[at : at + length] = data.draw(st.binary(max_size=6))
        if len(packed) <= len(PREFIX):
            break
    accepted_or_refused(bytes(packed))


@each_body
def test_truncated_frames_raise_nothing_but_frame_errors(body: Body) -> None:
    """Cut anywhere, a frame is refused."""
    data = framed(body)
    cuts = range(len(data)) if len(data) < 300 else random.Random(1).sample(range(len(data)), 300)
    for cut in cuts:
        cause_of(data[:cut])


def peak_bytes(data: bytes) -> int:
    tracemalloc.start()
    try:
        accepted_or_refused(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# Declares 2^32 - 1 of something, in each form that msgpack knows.
HUGE = [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
HUGE += [b"\xdb\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01"]


@pytest.mark.parametrize("huge", HUGE, ids=["array", "map", "bytes", "text", "extension"])
@each_body
def test_huge_declared_lengths_allocate_nothing(body: Body, huge: bytes) -> None:
    """Put in any place of a frame, 4 GiB declared in 5 bytes cost less than 1 MiB."""
    data = framed(body)
    start = len(PREFIX) + MAC_BYTES
    places = {start, *random.Random(2).sample(range(start, len(data)), 40)}
    for at in places:
        assert peak_bytes(data[:at] + huge) < 1 << 20
        assert peak_bytes(data[:at] + huge + data[at:]) < 1 << 20


def test_the_largest_frames_take_a_small_multiple_of_their_size() -> None:
    """The most objects that 1 MiB can declare cost less than 16 MiB."""
    small = fakes.finished("a", "b", 0)
    most = fakes.serving(*[small] * 4096)
    most.time_to_first_token = [0.0] * 65536
    payload = framed(most)
    assert MAX_BYTES // 2 < len(payload) <= MAX_BYTES

    assert peak_bytes(payload) < 16 << 20


LABELS = [[str(10 + i % 90) for i in range(4096)]] * 4
CROWDS = {
    "labels": Requests([], [fakes.request(num_layers=0)] * 20),
    "tables": Requests([], [fakes.request(num_layers=0)] * 2000),
}
CROWDS["labels"].requests[0].tables = [Table("dreams", LABELS, b"")]
CROWDS["tables"].requests[0].tables = [Table("", [], b"")] * MAX_TABLES


@pytest.mark.parametrize("crowd", CROWDS)
def test_a_crowd_of_small_things_takes_a_small_multiple_of_its_size(crowd) -> None:
    """Labels and tables are the smallest that a frame can declare by the hundred thousand."""
    data = framed(CROWDS[crowd])
    assert MAX_BYTES // 2 < len(data) <= MAX_BYTES
    assert peak_bytes(data) < 24 * len(data)


def test_deep_nesting_is_refused() -> None:
    """A message of nothing but opening brackets overflows no stack."""
    assert cause_of(message(b"\x91" * 200_000)) == "decode"
