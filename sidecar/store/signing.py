"""Keys: ed25519 (RFC 8032), in PEM files as openssl writes them.

openssl genpkey -algorithm ed25519 -out baseline.key
openssl pkey -in baseline.key -pubout -out baseline.pub
"""

import hashlib
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sidecar.errors import StoreError

_RAW: Final = (serialization.Encoding.Raw, serialization.PublicFormat.Raw)


class Private:
    """A key that signs; `sealed.Signer`."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.name = Public(key.public_key()).name

    @classmethod
    def read(cls, path: Path) -> "Private":
        """The unencrypted private key in a PEM file. Raises StoreError."""
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(f"no private key in {path}: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise StoreError(f"the key in {path} is not ed25519; make one with openssl genpkey")
        return cls(key)

    def sign(self, data: bytes) -> bytes:
        """The signature of `data`, 64 bytes."""
        return self._key.sign(data)


class Public:
    """A key that is trusted; `sealed.Verifier`."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self.name = hashlib.sha256(key.public_bytes(*_RAW)).hexdigest()

    @classmethod
    def read(cls, path: Path) -> "Public":
        """The public key in a PEM file. Raises StoreError."""
        try:
            key = serialization.load_pem_public_key(path.read_bytes())
        except (OSError, ValueError) as error:
            raise StoreError(f"no public key in {path}: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise StoreError(
                f"the key in {path} is not ed25519; make one with openssl pkey -pubout"
            )
        return cls(key)

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether `signature` is of `data` and by this key."""
        try:
            self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


def make_keys(private: Path, public: Path) -> None:
    """Write a new pair of keys; neither file may exist. Raises StoreError."""
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    told = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _create(private, secret, 0o600)
    _create(public, told, 0o644)


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        raise StoreError(f"cannot write a new key to {path}: {error}") from error
