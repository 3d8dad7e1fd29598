"""The C library's allocator, told to give large blocks back.

An exposition, an answer or a window is one block of megabytes that lives for a moment. glibc learns
from the first such block to keep the next ones on its heap, between small ones that stay: resident
memory then grows for hours (`python -m bench.soak`). With a fixed threshold each large block is
mapped for itself, and is the system's again once it is freed.

Source of the numbers: mallopt(3) and glibc's malloc.h.
"""

import ctypes
from typing import Final

_MMAP_THRESHOLD: Final = -3
_TRIM_THRESHOLD: Final = -1
_ARENA_MAX: Final = -8
_LARGE_BYTES: Final = 128 << 10  # glibc's own first threshold; setting it stops it from growing
_NUM_ARENAS: Final = 2


def give_large_blocks_back() -> bool:
    """Tell it, for this process; False where there is no such allocator, as with musl."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = (
        (_MMAP_THRESHOLD, _LARGE_BYTES),
        (_TRIM_THRESHOLD, _LARGE_BYTES),
        (_ARENA_MAX, _NUM_ARENAS),
    )
    return {mallopt(name, value) for name, value in options} == {1}
