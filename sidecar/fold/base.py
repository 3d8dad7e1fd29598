"""The seam of this room: a fold takes items one by one and can say at any time what they add to.

Law, tested for every fold here: folding `a` then `b` equals folding each apart and merging.
"""

from typing import Protocol, Self, TypeVar

_Item_contra = TypeVar("_Item_contra", contravariant=True)
_Result_co = TypeVar("_Result_co", covariant=True)


class Fold(Protocol[_Item_contra, _Result_co]):
    """Constant memory per fold, however many items it took."""

    def update(self, item: _Item_contra) -> None:
        """Take one item."""

    def get(self) -> _Result_co:
        """What the items so far add up to; a value that later updates leave alone."""

    def merge(self, other: Self) -> None:
        """Take everything that `other` took, as if it had come after our own items."""
