"""Frames to load a sidecar with: of a wanted size, or as a whole engine sends them."""

import secrets
from collections.abc import Iterator
from typing import Final

from sidecar.wire.frame import Body, Frame, Header, Source, pack
from sidecar.wire.synthetic import SyntheticEngine

# Layers, or heads of ten layers' attention, that make a frame of so many KB.
_LAYERS: Final = {1: 2, 20: 47}
_HEADS: Final = {200: 72}
SIZES: Final = (1, 20, 200)


def body_of(kilobytes: int) -> Body:
    """A body that packs to about so many KB: running totals of layers; the largest, of heads."""
    if kilobytes in _LAYERS:
        return SyntheticEngine(_LAYERS[kilobytes]).step()
    engine = SyntheticEngine(10, num_heads=_HEADS[kilobytes], num_experts=0)
    return engine.tables()


class Stream:
    """Messages of one source, numbered and stamped as its sender would."""

    def __init__(self, source: Source, boot: str = "") -> None:
        self.source = source
        self.num_frames = 0
        self._boot = boot or secrets.token_hex(8)

    def message(self, body: Body, t_ns: int) -> bytes:
        """The next frame, packed."""
        self.num_frames += 1
        return pack(Frame(Header(self._boot, self.source, self.num_frames, t_ns, 0, 0), body))


def traffic(engine: SyntheticEngine, t_ns: int) -> Iterator[Body]:
    """What an engine under load says in a hundred frames.

    Layers above all; tables and status once; eight finished requests, each with its signature.
    """
    yield engine.status()
    yield engine.tables()
    for _ in range(8):
        yield engine.requests(1, t_ns)
        yield engine.serving(t_ns)
        yield engine.signatures(1, t_ns)
        layers = engine.step()
        for _ in range(9):
            yield layers
    yield layers
    yield layers
