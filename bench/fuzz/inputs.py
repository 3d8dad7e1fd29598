"""What strangers send: bytes near to right ones, and right ones with parts of nonsense."""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
from hypothesis import strategies as st

_MAX_EDITS: Final = 4
_DEEP: Final = 3_000  # nested deeper than any reader's stack

_EDGES: Final = st.sampled_from(
    [0, 1, -1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, -(2**63), 2**64 - 1]
) | st.sampled_from([0.0, -0.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf")])
_LEAVES: Final = (
    _EDGES
    | st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
NONSENSE: Final = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)
_DEEPS: Final = st.sampled_from(
    [
        b"\x91" * _DEEP + b"\xc0",  # msgpack: arrays in arrays
        b"\x81\xa1a" * _DEEP + b"\xc0",
        b"[" * _DEEP + b"]" * _DEEP,
        b'{"a":' * _DEEP + b"1" + b"}" * _DEEP,
        b"- " * _DEEP + b"1",
    ]
)
# What means something to JSON, YAML or a line of either.
_WORDS: Final = st.sampled_from(
    [
        *(
            b"{",
            b"}",
            b"[",
            b"]",
            b":",
            b": ",
            b",",
            b"\n",
            b"\n  ",
            b"- ",
            b"? ",
            b'"',
            b"'",
            b"\\",
        ),
        *(
            b"null",
            b"true",
            b"NaN",
            b"Infinity",
            b"1e999",
            b"-0",
            b"0x",
            b"0o9",
            b"0b",
            b"1_",
            b"!!",
        ),
        *(
            b"2001-99-99",
            b"1:2:3",
            b"&a ",
            b"*a",
            b"<<: ",
            b"!!python/object:os.system ",
            b"!!int x",
        ),
        *(
            b"!!timestamp 9",
            b"!!binary =",
            b"!!float .",
            b"!!set {a}",
            b"!!omap [a]",
            b"%YAML 9.9\n",
        ),
        *(
            b"\x00",
            b"\xff\xfe",
            b"\xed\xa0\x80",
            b"\xef\xbb\xbf",
            b"\r",
            b"\t",
            b"\xc2\x85",
            b"--- ",
        ),
        *(b'"\\ud800"', b'"\\u0000"', b"9" * 400, b"a: b\n", b"headers:", b"http_server_config:"),
    ]
)


def near(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Any bytes; or right ones, cut, changed, repeated or joined in a few places."""
    return st.binary(max_size=200) | _DEEPS | _edited(seeds)


def packed(
    payloads: Sequence[bytes], wrapped: Callable[[bytes], bytes]
) -> st.SearchStrategy[bytes]:
    """MessagePack with one or two parts replaced by nonsense, and wrapped as right ones are."""
    return (_replaced(payloads) | _DEEPS | _edited(payloads)).map(wrapped)


def written(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Text out of words that mean something; or JSON of anything."""
    words = st.lists(_WORDS | st.binary(max_size=4), max_size=12).map(b"".join)
    nonsense = NONSENSE.filter(_is_json).map(lambda each: json.dumps(each).encode())
    mixed = st.tuples(st.sampled_from(list(seeds)), words).map(b"".join)
    return words | nonsense | mixed | _inserted(seeds)


@st.composite
def _edited(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    data = bytearray(draw(st.sampled_from(list(seeds))))
    for _ in range(draw(st.integers(1, _MAX_EDITS))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 5)):
            case 0 if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case 1:
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case 2:
                del data[at : at + draw(st.integers(1, 64))]
            case 3:
                del data[at:]
            case 4:
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
            case _:
                data[at:] = draw(st.sampled_from(list(seeds)))[at:]
    return bytes(data)


@st.composite
def _inserted(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    data = draw(st.sampled_from(list(seeds)))
    for _ in range(draw(st.integers(1, _MAX_EDITS))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(_WORDS) + data[at + draw(st.integers(0, 8)) :]
    return data


@st.composite
def _replaced(draw: st.DrawFn, payloads: Sequence[bytes]) -> bytes:
    payload = draw(st.sampled_from(list(payloads)))
    plain = msgspec.msgpack.decode(payload)
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.sampled_from(_places(payload)))
        _put(plain, at, draw(NONSENSE))
    return msgspec.msgpack.encode(plain)


@lru_cache
def _places(payload: bytes) -> list[tuple[Any, ...]]:
    """Paths to every value in nested maps and lists, but the whole."""
    return [at for at in _below(msgspec.msgpack.decode(payload), ()) if at]


def _below(plain: Any, at: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    items: Any = ()
    if isinstance(plain, dict):
        items = plain.items()
    elif isinstance(plain, list):
        items = enumerate(plain)
    return [at, *(found for key, value in items for found in _below(value, (*at, key)))]


def _put(plain: Any, at: tuple[Any, ...], value: Any) -> None:
    """Replace the value at a path, unless an earlier one has taken the way there."""
    try:
        for key in at[:-1]:
            plain = plain[key]
        plain[at[-1]] = value
    except (KeyError, IndexError, TypeError):
        return


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
