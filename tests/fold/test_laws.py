"""Laws that every fold obeys; a new fold is enrolled by being in the room."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sidecar.fold
from sidecar.fold.exemplars import Exemplar, Exemplars
from sidecar.fold.histogram import Distribution, Histogram
from sidecar.fold.windows import WINDOW_NS, Extremes, Stamped

VALUES = st.lists(st.floats(-10, 10) | st.sampled_from([float("nan"), float("inf")]), max_size=5)


@st.composite
def stamped(draw: st.DrawFn) -> list[Stamped]:
    steps = draw(st.lists(st.integers(0, 25), max_size=12))
    times = np.cumsum([7, *steps])[1:]
    ends = [draw(st.floats(0, 8, width=32)) for _ in times]
    return [
        Stamped(int(time) * WINDOW_NS // 10, np.array([[end, end + 1]], np.float32))
        for time, end in zip(times, ends, strict=True)
    ]


def exemplars() -> st.SearchStrategy[list[Exemplar]]:
    one = st.builds(
        Exemplar, st.floats(-10, 10), st.integers(0, 9), st.sampled_from("ab"), st.just("s")
    )
    return st.lists(one | st.none(), max_size=12)


# How to make each fold, and a stream of its items.
FOLDS: dict[type, tuple[Callable[[], Any], st.SearchStrategy[list[Any]]]] = {
    Histogram: (lambda: Histogram((0.0, 1.0, 4.0)), st.lists(VALUES, max_size=12)),
    Extremes: (Extremes, stamped()),
    Exemplars: (lambda: Exemplars((0.0, 1.0, 4.0)), exemplars()),
}


def folds() -> Iterator[type]:
    for module in pkgutil.iter_modules(sidecar.fold.__path__, "sidecar.fold."):
        for _, found in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            is_fold = all(hasattr(found, verb) for verb in ("update", "get", "merge"))
            if is_fold and found.__module__ == module.name and module.name != "sidecar.fold.base":
                yield found


def folded(make: Callable[[], Any], items: list[Any]) -> Any:
    fold = make()
    for item in items:
        fold.update(item)
    return fold


def test_every_fold_is_enrolled() -> None:
    """A class with the three verbs that has no law test fails here."""
    assert set(FOLDS) == set(folds())


@pytest.mark.parametrize("fold", FOLDS)
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_merge_equals_concatenation(fold: type, data: st.DataObject) -> None:
    """Folding two parts apart and merging them is folding the whole."""
    make, streams = FOLDS[fold]
    items = data.draw(streams)
    cut = data.draw(st.integers(0, len(items)))

    merged = folded(make, items[:cut])
    merged.merge(folded(make, items[cut:]))

    np.testing.assert_equal(_plain(merged.get()), _plain(folded(make, items).get()))


@pytest.mark.parametrize("fold", FOLDS)
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_a_result_is_left_alone_by_later_updates(fold: type, data: st.DataObject) -> None:
    """What `get` returned does not change when more items come."""
    make, streams = FOLDS[fold]
    items = data.draw(streams)
    cut = data.draw(st.integers(0, len(items)))
    partly = folded(make, items[:cut])
    result = partly.get()
    before = _plain(result)

    for item in items[cut:]:
        partly.update(item)

    np.testing.assert_equal(_plain(result), before)


def _plain(result: Any) -> Any:
    # Sums of floats depend on the order of addition in the last digits.
    if isinstance(result, np.ndarray):
        return result.copy()
    if not isinstance(result, Distribution):
        return result
    return result._replace(sum=round(result.sum, 9))
