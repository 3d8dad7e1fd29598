"""Sealed bytes: whatever was changed is refused."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import StoreError
from sidecar.store.sealed import seal, unseal
from sidecar.store.signing import Private, Public, make_keys

ABOUT = {"model": "m", "windows": 3}
DATA = seal("baseline", 1, ABOUT, b"payload \n with lines")


def keys(folder: Path, name: str = "a") -> tuple[Private, Public]:
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    make_keys(private, public)
    return Private.read(private), Public.read(public)


def resealed(data: bytes, **fields: object) -> bytes:
    """`data` with other fields in its first line, and the checksum of a forger."""
    line, _, payload = data[:-32].partition(b"\n")
    told = {**json.loads(line), **fields}
    body = json.dumps(told, separators=(",", ":")).encode() + b"\n" + payload
    return body + hashlib.sha256(body).digest()


def test_the_first_line_says_what_it_is() -> None:
    """`head -n 1` of a file shows kind, version and what it is about."""
    line = json.loads(DATA.split(b"\n")[0])

    assert (line["kind"], line["version"], line["about"]) == ("baseline", 1, ABOUT)


def test_what_was_sealed_comes_back() -> None:
    """About and payload are the same, and an unsigned file names no signer."""
    assert unseal(DATA, "baseline", 1) == (ABOUT, b"payload \n with lines", "")


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(place: int, flip: int) -> None:
    """Not one byte can change, whether of the line, the payload or the checksum."""
    mutated = bytearray(DATA)
    mutated[place] ^= flip

    with pytest.raises(StoreError):
        unseal(bytes(mutated), "baseline", 1)


@given(st.integers(0, len(DATA) - 1), st.binary(min_size=1, max_size=40))
def test_torn_and_longer_files_are_refused(place: int, more: bytes) -> None:
    """A file that ends early, goes on, or has a hole is refused."""
    for data in (DATA[:place], DATA + more, DATA[:place] + more + DATA[place:]):
        with pytest.raises(StoreError):
            unseal(data, "baseline", 1)


@given(st.binary(max_size=200))
def test_a_stranger_with_the_right_checksum_is_refused(tail: bytes) -> None:
    """Bytes that begin like ours and carry a true checksum still must be a line and its payload."""
    body = b'{"format":"llm-internals-sidecar"' + tail

    with pytest.raises(StoreError):
        unseal(body + hashlib.sha256(body).digest(), "baseline", 1)


def test_another_kind_or_version_is_named() -> None:
    """The message says what the file is and what is needed."""
    with pytest.raises(StoreError, match="this is a baseline file; a snapshot file is needed"):
        unseal(DATA, "snapshot", 1)
    with pytest.raises(StoreError, match="version 1 of a baseline file; this release reads 2"):
        unseal(DATA, "baseline", 2)
    with pytest.raises(StoreError, match="another file"):
        unseal(b"PAR1 something", "baseline", 1)


def test_a_signature_is_believed_from_the_trusted_key_only(tmp_path: Path) -> None:
    """The right key opens the file; another one, or none in the file, does not."""
    private, public = keys(tmp_path)
    _, stranger = keys(tmp_path, "b")
    signed = seal("baseline", 1, ABOUT, b"payload", private)

    assert unseal(signed, "baseline", 1, public).signed_by == public.name
    assert unseal(signed, "baseline", 1).payload == b"payload"
    with pytest.raises(StoreError, match="not by the trusted key"):
        unseal(signed, "baseline", 1, stranger)
    with pytest.raises(StoreError, match="not signed"):
        unseal(DATA, "baseline", 1, public)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "snapshot"},
        {"version": 2},
        {"about": {"model": "another"}},
        {"signature": "zz"},
        {"signature": "00" * 64},
        {"signature": ""},
    ],
)
def test_a_forged_line_is_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    """Who changes the line and mends the checksum has still no signature of it."""
    private, public = keys(tmp_path)
    forged = resealed(seal("baseline", 1, ABOUT, b"payload", private), **fields)

    with pytest.raises(StoreError, match="sign"):
        unseal(forged, str(fields.get("kind", "baseline")), fields.get("version", 1), public)  # type: ignore[arg-type]


def test_a_payload_under_another_signature_is_refused(tmp_path: Path) -> None:
    """Who puts other numbers under a signed line, and mends the checksum, is refused."""
    private, public = keys(tmp_path)
    body = seal("baseline", 1, ABOUT, b"payload", private)[:-32].replace(b"payload", b"tamper!")

    with pytest.raises(StoreError, match="not the one that the first line tells of"):
        unseal(body + hashlib.sha256(body).digest(), "baseline", 1, public)


def test_a_forged_signer_is_refused(tmp_path: Path) -> None:
    """A stranger's signature under the trusted key's name is not the trusted key's."""
    _, public = keys(tmp_path)
    stranger, _ = keys(tmp_path, "b")
    stranger.name = public.name
    signed = seal("baseline", 1, ABOUT, b"payload", stranger)

    with pytest.raises(StoreError, match="not by the trusted key"):
        unseal(signed, "baseline", 1, public)


def test_keys_are_written_once_and_private(tmp_path: Path) -> None:
    """A private key is readable by its owner only, and is never overwritten."""
    private, public = tmp_path / "key", tmp_path / "pub"
    make_keys(private, public)

    assert private.stat().st_mode & 0o077 == 0
    with pytest.raises(StoreError, match="cannot write a new key"):
        make_keys(private, public)


def test_other_keys_are_refused(tmp_path: Path) -> None:
    """No file, no key and the wrong half of a pair are named with the path."""
    private, public = tmp_path / "key", tmp_path / "pub"
    make_keys(private, public)

    for read, path in (
        (Private.read, public),
        (Public.read, private),
        (Private.read, tmp_path / "none"),
        (Public.read, tmp_path / "none"),
    ):
        with pytest.raises(StoreError, match=str(path)):
            read(path)
