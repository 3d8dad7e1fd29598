"""Types of the fields of frames, each with its bound: what is longer or larger is refused."""

from typing import Annotated, Final

import msgspec

MAX_TEXT: Final = 256  # characters of a name or an id; senders cut, or the frame is refused
MAX_LONG_TEXT: Final = 2048  # and of a sentence

Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
LongText = Annotated[str, msgspec.Meta(max_length=MAX_LONG_TEXT)]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 62))]
Rank = Annotated[int, msgspec.Meta(ge=0, lt=1 << 20)]
LayerIds = Annotated[list[Rank], msgspec.Meta(max_length=1024)]
