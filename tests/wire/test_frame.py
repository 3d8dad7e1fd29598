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
    SCHEMA,
    Arrays,
    Body,
    Frame,
    Header,
    Requests,
    Status,
    pack,
    unpack,
)
from tests import fakes
from tests.fakes import ENGINE, NOW

KEY = b"sixteen bytes or more"
PREFIX = b"LIS" + bytes([SCHEMA])
MAC_BYTES = 32
HEADER = Header("boot-one", ENGINE, 7, NOW, 3, 1)
BODIES: list[Body] = [
    fakes.live(),
    fakes.layers(),
    fakes.totals(),
    Requests([0, 1, 2], [fakes.request("a"), fakes.request("b")]),
    fakes.signatures("a", "b"),
    fakes.serving(fakes.finished("a"), fakes.finished("b"), aborted=["c"]),
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


def test_deep_nesting_is_refused() -> None:
    """A message of nothing but opening brackets overflows no stack."""
    assert cause_of(message(b"\x91" * 200_000)) == "decode"
