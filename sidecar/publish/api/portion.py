"""How much goes into one answer: no client can make the sidecar write hundreds of megabytes.

Guarantee: an answer holds about `MAX_NUMBERS` numbers (some 20 MB) at most, unless one item alone
has more.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from sidecar.publish.api.problems import Unanswerable

MAX_NUMBERS: Final = 1_000_000
DEFAULT_LIMIT: Final = 100
_Item = TypeVar("_Item")


def portion(
    items: Sequence[_Item], num_numbers: Callable[[_Item], int], limit: int | None = None
) -> Sequence[_Item]:
    """As many of the first `items` as fit into one answer; always the first one.

    Raises Unanswerable when a client asked for `limit` of them, and fewer fit.
    """
    kept = items[: _num_fitting(items, num_numbers)]
    if limit is not None and len(kept) < len(items):
        raise Unanswerable(
            422,
            f"limit={limit}: an answer holds {MAX_NUMBERS} numbers at most, and these need more",
            f"ask for limit={len(kept)} or less, or without a limit for as many as fit",
        )
    return kept


def _num_fitting(items: Sequence[_Item], num_numbers: Callable[[_Item], int]) -> int:
    left = MAX_NUMBERS
    for index, item in enumerate(items):
        left -= num_numbers(item)
        if left < 0:
            return max(1, index)
    return len(items)
