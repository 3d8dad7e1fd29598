"""Sealed bytes: what a file is, what it holds, and proof that not one byte of it has changed.

Layout: one line of JSON (read it with `head -n 1 FILE`), the payload, and the SHA-256 of both:

    {"format": "llm-internals-sidecar", "kind": ..., "version": ..., "about": {...},
     "num_bytes": ..., "sha256": ..., "signed_by": ..., "signature": ...}

The signature is over the line without itself, which holds the payload's digest. Guarantees: any
changed, added or missing byte is refused with StoreError; a signed file is believed only when the
key that the reader trusts made its signature.
"""

import hashlib
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import msgspec

from sidecar.errors import StoreError

FORMAT: Final = "llm-internals-sidecar"
_MAX_LINE: Final = 1 << 20
_NUM_CHECK: Final = 32
_Payload = TypeVar("_Payload")


class Signer(Protocol):
    """Who signs: `signing.Private`, or a fake."""

    @property
    def name(self) -> str:
        """Fingerprint of the public key, in hex."""

    def sign(self, data: bytes) -> bytes:
        """The signature of `data`."""


class Verifier(Protocol):
    """Who is trusted: `signing.Public`, or a fake."""

    @property
    def name(self) -> str:
        """Fingerprint of the public key, in hex."""

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether `signature` is of `data` and by this key."""


class Sealed(NamedTuple):
    """What was in a file.

    about: for the reader; nothing is judged by it.
    signed_by: fingerprint of the key, "" when unsigned; proven only if a verifier was given.
    """

    about: dict[str, Any]
    payload: bytes
    signed_by: str


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    kind: str
    version: int
    about: dict[str, Any]
    num_bytes: int
    sha256: str
    signed_by: str = ""
    signature: str = ""


def seal(
    kind: str, version: int, about: dict[str, Any], payload: bytes, signer: Signer | None = None
) -> bytes:
    """The bytes of a file. `about` must be JSON-able; `kind` is a word."""
    digest = hashlib.sha256(payload).hexdigest()
    line = _Line(FORMAT, kind, version, about, len(payload), digest)
    if signer is not None:
        line.signed_by = signer.name
        line.signature = signer.sign(_signed(line)).hex()
    body = msgspec.json.encode(line) + b"\n" + payload
    return body + hashlib.sha256(body).digest()


def unseal(data: bytes, kind: str, version: int, verifier: Verifier | None = None) -> Sealed:
    """What is in `data`. Raises StoreError with the reason and the remedy.

    verifier: whose signature is demanded; None reads signed and unsigned files alike.
    """
    line, payload = _opened(data)
    if line.kind != kind:
        raise StoreError(f"this is a {line.kind} file; a {kind} file is needed")
    if line.version != version:
        raise StoreError(
            f"version {line.version} of a {kind} file; this release reads {version}: make it again"
        )
    if verifier is not None:
        _demand(line, verifier)
    return Sealed(line.about, payload, line.signed_by)


def decode(payload: bytes | msgspec.Raw, kind: type[_Payload]) -> _Payload:
    """A payload, or a part of one, in MessagePack.

    Raises StoreError when it is none of that kind, or nested deeper than it can be.
    """
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise StoreError(f"its payload cannot be read: {error}") from error


def _opened(data: bytes) -> tuple[_Line, bytes]:
    if not data.startswith(f'{{"format":"{FORMAT}"'.encode()):
        raise StoreError("no file of this package; was the path of another file given?")
    body, check = data[:-_NUM_CHECK], data[-_NUM_CHECK:]
    if hashlib.sha256(body).digest() != check:
        raise StoreError("the file is torn or was changed: its checksum is another; copy it again")
    end = body.find(b"\n", 0, _MAX_LINE)
    try:
        line = msgspec.json.decode(body[:end], type=_Line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise StoreError(f"the first line does not say what this is: {error}") from error
    payload = body[end + 1 :]
    # Where the digest is a stranger's work the signature still covers only what the line says.
    if (len(payload), hashlib.sha256(payload).hexdigest()) != (line.num_bytes, line.sha256):
        raise StoreError("the payload is not the one that the first line tells of")
    return line, payload


def _demand(line: _Line, verifier: Verifier) -> None:
    if not line.signature:
        raise StoreError("the file is not signed; sign it with the key whose public half is given")
    try:
        signature = bytes.fromhex(line.signature)
    except ValueError as error:
        raise StoreError("the signature is not hexadecimal") from error
    if line.signed_by != verifier.name or not verifier.verifies(signature, _signed(line)):
        signer = line.signed_by[:16] or "nobody"
        raise StoreError(f"signed by {signer}, not by the trusted key {verifier.name[:16]}")


def _signed(line: _Line) -> bytes:
    """What a signature is of: the line without it, with a prefix that no other protocol has."""
    bare = msgspec.structs.replace(line, signature="")
    return b"llm-internals-sidecar file\n" + msgspec.json.encode(bare, order="deterministic")
