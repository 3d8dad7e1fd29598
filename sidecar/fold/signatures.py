"""The latest signature of each of the last requests, running or finished.

Guarantees: one signature per request and source, the latest; at most `MAX_SIGNATURES` of them and
`MAX_BYTES` bytes, whatever comes: those unheard the longest go first.
"""

from typing import Final, NamedTuple

import msgspec

from sidecar.wire.frame import Signature, Signatures
from sidecar.wire.signature import Layout

MAX_SIGNATURES: Final = 2048
MAX_BYTES: Final = 16 << 20
_ENCODER: Final = msgspec.msgpack.Encoder()


class Signed(NamedTuple):
    """One signature, and what its entries are of."""

    source: str
    layout: Layout
    signature: Signature


class RecentSignatures:
    """A bounded queue of signatures; a later one of a request replaces the earlier."""

    def __init__(self, max_signatures: int = MAX_SIGNATURES, max_bytes: int = MAX_BYTES) -> None:
        self._max_signatures = max_signatures
        self._max_bytes = max_bytes
        self._held: dict[tuple[str, str], tuple[Signed, int]] = {}  # the latest heard stands last
        self._num_bytes = 0
        self._layout_bytes = b""
        self._layout = Layout([])

    def update(self, source: str, body: Signatures) -> None:
        """Take the signatures of one frame."""
        layout, layout_bytes = self._shared(body.layout)
        for signature in body.signatures:
            key = (source, signature.id)
            self._forget(key)
            # The layout counts in full, since nobody promises that it is shared.
            num_bytes = len(signature.values) + layout_bytes
            self._held[key] = (Signed(source, layout, signature), num_bytes)
            self._num_bytes += num_bytes
        while len(self._held) > self._max_signatures or self._num_bytes > self._max_bytes:
            self._forget(next(iter(self._held)))

    def get(self, limit: int) -> list[Signed]:
        """The latest `limit` signatures, latest first."""
        latest = reversed(self._held.values())
        return [signed for (signed, _), _ in zip(latest, range(limit), strict=False)]

    def canaries(self) -> dict[str, str]:
        """`<prompt>@<round>` of the proven canaries among them, by engine id of the request."""
        return {
            signed.signature.id: signed.signature.canary
            for signed, _ in self._held.values()
            if signed.signature.canary
        }

    def _shared(self, layout: Layout) -> tuple[Layout, int]:
        """The layout heard last when it equals this one; and about its bytes in memory."""
        encoded = _ENCODER.encode(layout)
        if encoded != self._layout_bytes:
            self._layout, self._layout_bytes = layout, encoded
        return self._layout, 16 * len(encoded)

    def _forget(self, key: tuple[str, str]) -> None:
        if key in self._held:
            _, num_bytes = self._held.pop(key)
            self._num_bytes -= num_bytes
