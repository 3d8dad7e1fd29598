"""Where the parts of long work run: a pool maps a function over parts, in order.

Guarantee: results come in the order of the parts, whoever computed them and whenever, so that
what is added up from them is the same everywhere, to the last bit.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")
# Told how much more is done, in the unit of the work's total.
Advance = Callable[[int], None]


class Pool(Protocol):
    """Somewhere to compute. Functions and parts must be picklable."""

    def map(self, function: Callable[[Part], Result], parts: Sequence[Part]) -> Iterator[Result]:
        """`function` of each part, in order. Raises what it raises."""
        ...


class Here:
    """This process, one part after the other."""

    def map(self, function: Callable[[Part], Result], parts: Sequence[Part]) -> Iterator[Result]:
        """`function` of each part, when asked for it."""
        return map(function, parts)
